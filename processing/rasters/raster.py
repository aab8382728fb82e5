"""Images of any size behind one small protocol: windows are read, never the whole image.

A raster is anything with `shape` (channels, height, width) and `read(rows, columns, scale)`. `open_raster` makes
one of files, arrays, memory maps and zarr-like arrays; files that need rasterio are in files.py. What a
window becomes for a model depends on the processor and the raster's type, never on the content of the window.

Legend: C channels, H, W pixels; h, w pixels of a window.
"""

import os
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..image_opening import PIXEL_LIMIT, ImageReadError, Source, describe
from ..image_reading import decode_once, read_image, to_numpy, to_rgb
from ..mask_models import undivided
from ..tiling import overlap_slices
from .area_averaging import area_average, window_edges
from .files import RasterFile, is_raster_file
from .spans import Span

CODED_MODES = (
    "1",
    "P",
    "PA",
    "LAB",
    "YCbCr",
    "HSV",
    "CMYK",
)  # Pillow's modes that are not channels as stored
ALPHA_MODES = ("LA", "RGBA")


@runtime_checkable
class Raster(Protocol):
    """An image that is read by windows.

    Optional members: `georeference` (`Georeference`); `valid(rows, columns, scale=1.0)`, a boolean array (h, w),
    True where the raster has data, or None where all of it has; `may_lack_data`, False if every pixel has data;
    `name`, for messages; `close()`.
    """

    shape: tuple[int, int, int]

    def read(self, rows: Span, columns: Span, scale: float = 1.0) -> np.ndarray:
        """Returns the pixels (C, h, w) of a window inside the raster, of the raster's own type.

        Args:
            rows: First row, and the one after the last.
            columns: The same for columns.
            scale: Factor of at most 1: h and w are the numbers of rows and columns times `scale`, rounded, at
                least 1. Below 1, pixels are averages over areas.
        """
        ...


class ArrayRaster:
    """An array, memory map or zarr-like array (what has `shape`, `dtype` and slices) as a raster.

    Args:
        array: (H, W), (H, W, C) or (C, H, W).
        channels_first: Which of the two last it is. Default: channels are the shorter of the first and last
            axis; where both are equal, they are last.
        name: Name in messages.
        mask: (H, W) bool, False where there are no data. Default: all finite pixels are data.
    """

    georeference = None

    def __init__(
        self,
        array: Any,
        channels_first: bool | None = None,
        name: str | None = None,
        mask: np.ndarray | None = None,
    ) -> None:
        self.name = name or f"{type(array).__name__} of shape {tuple(array.shape)}"
        if array.ndim not in (2, 3) or 0 in array.shape or np.dtype(array.dtype).kind not in "biuf":
            raise ImageReadError(
                f"{self.name} and type {array.dtype} is not an image. Pass numbers as (H, W), (H, W, C) or (C, H, W)."
            )
        self.array, self.mask = array, mask
        is_first = array.shape[0] < array.shape[-1] if channels_first is None else channels_first
        self.channels_first = array.ndim == 3 and is_first
        sides = array.shape if self.channels_first or array.ndim == 2 else array.shape[-1:] + array.shape[:2]
        self.shape = (1, *sides) if array.ndim == 2 else tuple(sides)

    @property
    def may_lack_data(self) -> bool:
        """Whether some pixels may not be finite."""
        return np.dtype(self.array.dtype).kind == "f"

    def read(self, rows: Span, columns: Span, scale: float = 1.0) -> np.ndarray:
        """The pixels (C, h, w) of a window."""
        return self.read_with_validity(rows, columns, scale)[0]

    def read_with_validity(
        self, rows: Span, columns: Span, scale: float = 1.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """The pixels (C, h, w) of a window, and where they are data (h, w)."""
        if scale != 1:
            edges = window_edges(rows, scale), window_edges(columns, scale)
            return area_average(self.read_with_validity, *edges)
        pixels = self._stored(rows, columns)
        valid = (
            np.ones(pixels.shape[1:], bool) if self.mask is None else self.mask[slice(*rows), slice(*columns)]
        )
        return pixels, valid & np.isfinite(pixels).all(0) if pixels.dtype.kind == "f" else valid

    def _stored(self, rows: Span, columns: Span) -> np.ndarray:
        window = slice(*rows), slice(*columns)
        if self.channels_first:
            pixels = np.asarray(self.array[(slice(None), *window)])
        else:
            pixels = np.asarray(self.array[window])
            pixels = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
        return pixels.astype(np.uint8) * 255 if pixels.dtype == bool else pixels


def open_raster(
    source: Source | Raster, num_channels: int | None = None, pixel_limit: int = PIXEL_LIMIT
) -> Raster:
    """Opens anything that holds an image for reading by windows.

    Args:
        source: Path or open rasterio dataset of a raster file (GeoTIFF, COG, VRT, JPEG 2000, ...), which is read by
            windows; any other source of `read_image`, which is decoded at once; an array, memory map, tensor or zarr-like array; or
            a raster, which is returned as it is.
        num_channels: Number of channels that the model takes; None for one of RGB images. A band or channel that
            is marked as alpha is the validity of the pixels, unless exactly that many channels need it.
        pixel_limit: Most pixels of a file that is decoded at once.

    Raises:
        ImageReadError: If the file is missing, damaged, or not an image.
    """
    if is_open_dataset(source):
        source = source.name
    if isinstance(source, Raster):
        return checked(source)
    if is_raster_file(source):
        return RasterFile(source, num_channels)
    if isinstance(source, str | os.PathLike):
        check_place(os.fspath(source))
    if isinstance(source, Tensor):
        return ArrayRaster(to_numpy(source), name=describe(source))
    if hasattr(source, "shape") and hasattr(source, "dtype") and hasattr(source, "__getitem__"):
        return ArrayRaster(source)
    image = decode_once(source, pixel_limit, num_channels)[0]
    name = describe(source)
    pixels, mask = _channels(image, num_channels, name)
    return ArrayRaster(pixels, channels_first=False, name=name, mask=mask)


def read_window(
    raster: Raster, top: int, left: int, height: int, width: int, scale: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Reads a window that may reach beyond the raster.

    Args:
        raster: The raster.
        top: First row; may be negative.
        left: First column; may be negative.
        height: Rows of the window.
        width: Columns of the window.
        scale: As of `Raster.read`. Below 1, the parts outside the raster count as invalid in each area.

    Returns:
        Pixels (C, h, w) of the raster's type, and where they are valid (h, w): False outside and without data.
    """
    sides = raster.shape[1:]
    spans = (top, top + height), (left, left + width)
    if all(start >= 0 and stop <= side for (start, stop), side in zip(spans, sides, strict=True)):
        return _read(raster, *spans, scale)
    if scale == 1:
        return _with_surroundings(raster, *spans)
    return area_average(
        lambda rows, columns: _with_surroundings(raster, rows, columns),
        window_edges(spans[0], scale),
        window_edges(spans[1], scale),
    )


def window_values(processor: Any, pixels: np.ndarray, valid: np.ndarray, name: str | None = None) -> Tensor:
    """Turns the pixels of a window into what the model takes, as `processor` does it with an image, without resizing.

    Args:
        processor: The model's image processor.
        pixels: (C, h, w), as `read_window` returns them.
        valid: (h, w), False where there are no data.
        name: Name of the raster in messages.

    Returns:
        Values (C, h, w) float32: 0, the mean, where there are no data.

    Raises:
        ImageReadError: If the number of channels is wrong, or black and white are unknown for this type of pixels.
    """
    pixels = np.where(valid, pixels, np.zeros((), pixels.dtype))
    options = {"do_resize": False, "input_data_format": "channels_first", "return_tensors": "pt"}
    options |= undivided(processor)
    try:
        if not hasattr(processor, "decode_mask"):  # not ours: takes 8-bit RGB images
            limits = getattr(processor, "value_range", None)
            pixels = read_image(pixels, value_range=limits, input_data_format="channels_first")
            options.pop("input_data_format")
        values = processor(pixels, **options)["pixel_values"][0]
    except ImageReadError as error:
        if name is not None:
            error.args = (str(error).replace(describe(pixels), name),)
        raise
    return values.float() * torch.from_numpy(valid)


def is_open_dataset(source: Any) -> bool:
    """Whether this is a file that the caller has opened by rasterio, whose `shape` and `read` are not those of a raster."""
    return all(hasattr(source, name) for name in ("name", "read", "indexes", "colorinterp", "dataset_mask"))


def checked(raster: Raster) -> Raster:
    """Returns a raster. Raises ImageReadError if its shape is not (channels, height, width)."""
    if len(raster.shape) != 3 or min(raster.shape) < 1:
        raise ImageReadError(
            f"{getattr(raster, 'name', type(raster).__name__)} has the shape {tuple(raster.shape)}. A raster has the shape "
            "(channels, height, width), each at least 1."
        )
    return raster


def check_place(path: str) -> None:
    """Raises ImageReadError for remote files that only GDAL could open."""
    if path.startswith("/vsi") or "://" in path and not path.startswith(("http://", "https://")):
        raise ImageReadError(f"'{path}' is not a file on this machine. Copy it to a local disk.")


def _read(raster: Raster, rows: Span, columns: Span, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """The pixels (C, h, w) of a window inside the raster, and where they are valid (h, w)."""
    both = getattr(raster, "read_with_validity", None)
    if both is not None:
        return both(rows, columns, scale)
    pixels = raster.read(rows, columns, scale)
    is_valid = getattr(raster, "valid", None)
    valid = None if is_valid is None else is_valid(rows, columns, scale)
    if valid is None:
        valid = np.ones(pixels.shape[1:], dtype=bool)
    if pixels.dtype.kind == "f":
        valid = valid & np.isfinite(pixels).all(0)
    return pixels, valid


def _with_surroundings(raster: Raster, rows: Span, columns: Span) -> tuple[np.ndarray, np.ndarray]:
    """As `_read` at scale 1, for a window that may reach beyond the raster."""
    channels, *sides = raster.shape
    size = [stop - start for start, stop in (rows, columns)]
    cuts = [overlap_slices(*cut) for cut in zip((rows[0], columns[0]), size, sides, strict=True)]
    inside = [(part.start, part.stop) for part, _ in cuts]
    overlaps = all(start < stop for start, stop in inside)
    found, found_valid = _read(raster, *(inside if overlaps else [(0, 1), (0, 1)]), 1.0)
    pixels, valid = np.zeros((channels, *size), found.dtype), np.zeros(size, dtype=bool)
    if overlaps:
        rows_there, columns_there = (place for _, place in cuts)
        pixels[:, rows_there, columns_there] = found
        valid[rows_there, columns_there] = found_valid
    return pixels, valid


def _channels(
    image: Image.Image | np.ndarray, num_channels: int | None, name: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """A decoded image -> (H, W) or (H, W, C) as stored, where codes for colors become RGB; and where alpha is not 0."""
    if isinstance(image, np.ndarray):
        return image, None
    pixels = np.asarray(to_rgb(image, None, name) if image.mode in CODED_MODES else image)
    if image.mode == "I" and image.format == "PNG":
        return pixels.astype(np.uint16), None  # at most 16 bits
    if image.mode in ALPHA_MODES and num_channels != pixels.shape[-1]:
        return pixels[..., :-1], pixels[..., -1] > 0
    return pixels, None


__all__ = ["ArrayRaster", "Raster", "open_raster", "read_window", "window_values"]
