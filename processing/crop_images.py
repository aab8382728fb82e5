"""Images from which crops are cut: decoded ones, files, and rasters, of which only the window of the crop is read.

Legend: C channels, H, W pixels of the image, h, w pixels of a window.
"""

import io
import os
from collections.abc import Callable
from functools import cached_property
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import avg_pool2d

from .first_rows import JPEG, PNG, Rows, rows_of
from .image_opening import (
    BYTES_PER_PIXEL,
    DECODING_ERRORS,
    ImageReadError,
    Source,
    opened_file,
    read_orientation,
)
from .image_reading import image_size
from .orientation import UPRIGHT
from .png_decoding import decoded_png
from .rasters.raster import Raster, read_window
from .tiling import overlap_slices
from .value_ranges import UnknownRangeError

WINDOW_PIXELS = 1 << 24  # of a window that is read at full size before it is resized
REDUCED_PIXELS = 1 << 22  # of a window that is averaged here; larger ones are read at a reduced scale


class DecodedImage:
    """An image in memory.

    Args:
        image: PIL image, or (H, W, C) array.
    """

    def __init__(self, image: Image.Image | np.ndarray) -> None:
        self.image = image
        self.shape = image_size(image)
        self.num_channels = len(image.getbands()) if isinstance(image, Image.Image) else image.shape[2]

    def window(
        self, top: int, left: int, height: int, width: int
    ) -> tuple[Image.Image | np.ndarray, np.ndarray | None]:
        """A window inside the image, of the image's type, and where it has data (None: everywhere)."""
        if isinstance(self.image, Image.Image):
            return self.image.crop((left, top, left + width, top + height)), None
        return self.image[top : top + height, left : left + width], None

    def __call__(
        self, top: int, left: int, height: int, width: int, reduction: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Reads a window that may reach beyond the image, see `PixelReader`."""
        share = inside_share(self.shape, (top, left, height, width), reduction)
        (rows, row_place), (columns, column_place) = (
            overlap_slices(start, length, side)
            for start, length, side in zip((top, left), (height, width), self.shape, strict=True)
        )
        sides = rows.stop - rows.start, columns.stop - columns.start
        if 0 in sides:
            return np.zeros((self.num_channels, *share.shape), np.float32), share
        found = np.asarray(self.window(rows.start, columns.start, *sides)[0]).reshape(*sides, -1)
        pixels = np.zeros((self.num_channels, height, width), found.dtype)
        pixels[:, row_place, column_place] = np.moveaxis(found, -1, 0)
        return averaged(pixels, reduction), share


class EncodedImage:
    """An image file, of which the rows down to the end of a window are decoded.

    Args:
        source: The file.
        rows: Its rows.
        read: Decodes the file, or one with its first rows.
        num_channels: Number of channels of what is decoded; None if it is not known.
    """

    def __init__(
        self,
        source: Source,
        rows: Rows,
        read: Callable[[Source], Image.Image | np.ndarray],
        num_channels: int | None = None,
    ) -> None:
        self.source, self.rows, self.read, self.num_channels = source, rows, read, num_channels
        self.shape = rows.size

    def window(
        self, top: int, left: int, height: int, width: int
    ) -> tuple[Image.Image | np.ndarray, np.ndarray | None]:
        """As `DecodedImage.window`."""
        pixels = self.quickly_decoded(top + height)
        if pixels is not None:
            return self.read(pixels[top : top + height, left : left + width]), None
        return DecodedImage(self.decoded(top + height)).window(top, left, height, width)

    def __call__(
        self, top: int, left: int, height: int, width: int, reduction: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Reads a window that may reach beyond the image, see `PixelReader`."""
        return DecodedImage(self.whole)(top, left, height, width, reduction)

    @cached_property
    def whole(self) -> Image.Image | np.ndarray:
        return self.read(self.source)

    def quickly_decoded(self, rows: int) -> np.ndarray | None:
        """At least the first rows as stored, (H, W) or (H, W, 3), uint8; None for most files, see `decoded_png`."""
        if self.num_channels not in (None, 3):
            return None
        return decoded_png(self.rows.shortened(rows) or self.rows.data)

    def decoded(self, rows: int) -> Image.Image | np.ndarray:
        """The image, or at least its first rows."""
        file = self.rows.shortened(rows)
        try:
            return self.whole if file is None else self.read(io.BytesIO(file))
        except ImageReadError:  # reading the whole file decides
            return self.whole


def encoded_image(
    source: Source,
    read: Callable[[Source], Image.Image | np.ndarray],
    pixel_limit: int,
    num_channels: int | None = None,
) -> EncodedImage | None:
    """Opens an image of which the first rows can be decoded without the others.

    Args:
        source: A path, or any other source of an image.
        read: Decodes an image.
        pixel_limit: Most pixels of an image.
        num_channels: Number of channels of what is decoded; None if it is not known.

    Returns:
        The image; None for other sources and formats, images that must be turned upright, and what seems damaged.
    """
    if str(source).startswith(("http://", "https://")):
        return None
    if not isinstance(source, str | os.PathLike | io.BytesIO):
        return None
    try:
        with opened_file(source, pixel_limit) as file:
            data = first_bytes(file, BYTES_PER_PIXEL * pixel_limit)
        rows = rows_of(data)
        if rows is None or rows.size[0] * rows.size[1] > pixel_limit:
            return None
        is_upright = not rows.has_metadata or read_orientation(data, pixel_limit) == UPRIGHT
    except (*DECODING_ERRORS, ImageReadError):  # decoding it explains the error
        return None
    return EncodedImage(source, rows, read, num_channels) if is_upright else None


def first_bytes(file: BinaryIO, most: int) -> bytes:
    """The content of a file up to `most` bytes; of a format that has no `Rows`, a few."""
    start = file.tell()
    file.seek(0)  # where decoding begins, too
    data = file.read(len(PNG))
    if data.startswith((JPEG, PNG)):
        data += file.read(most)
    file.seek(start)
    return data


class RasterImage:
    """A raster, of which windows are read as `to_image` reads an image.

    Args:
        raster: The raster.
        to_image: Turns pixels (h, w, C) as stored into an RGB image or an array (h, w, C) in 0..255.
        name: Name in messages.
    """

    def __init__(
        self, raster: Raster, to_image: Callable[[np.ndarray], Image.Image | np.ndarray], name: str
    ) -> None:
        self.raster, self.to_image, self.name = raster, to_image, name
        self.shape = tuple(raster.shape[1:])
        self.num_channels = None  # known from what is read

    @property
    def georeference(self) -> Any:
        """Where the raster lies on Earth; None if it does not say."""
        return getattr(self.raster, "georeference", None)

    def window(
        self, top: int, left: int, height: int, width: int
    ) -> tuple[Image.Image | np.ndarray, np.ndarray | None]:
        """A window inside the image, and where it has data; a window of many pixels is read smaller."""
        scale = min(1.0, (WINDOW_PIXELS / (height * width)) ** 0.5)
        pixels, valid = self._read(top, left, height, width, scale)
        return pixels, None if valid.all() else valid

    def __call__(
        self, top: int, left: int, height: int, width: int, reduction: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Reads a window that may reach beyond the image, see `PixelReader`."""
        scale = 1 if height * width <= REDUCED_PIXELS else 1 / reduction
        image, valid = self._read(top, left, height, width, scale)
        pixels = np.moveaxis(np.asarray(image).reshape(*valid.shape, -1), -1, 0)
        if scale == 1 and valid.all():
            pixels = averaged(pixels, reduction)
            return pixels, np.ones(pixels.shape[1:], np.float32)
        if scale == 1:
            return averaged(pixels * valid, reduction), averaged(valid[None], reduction)[0]
        share = inside_share(self.shape, (top, left, height, width), reduction) * valid
        return pixels * share, share

    def _read(
        self, top: int, left: int, height: int, width: int, scale: float
    ) -> tuple[Image.Image | np.ndarray, np.ndarray]:
        pixels, valid = read_window(self.raster, top, left, height, width, scale)
        if not valid.all():
            pixels = np.where(valid, pixels, np.zeros((), pixels.dtype))
        try:
            return self.to_image(np.moveaxis(pixels, 0, -1)), valid
        except UnknownRangeError as error:
            raise UnknownRangeError(f"{self.name}: {error}", error.values) from error
        except ImageReadError as error:
            raise ImageReadError(f"{self.name}: {error}") from error


def inside_share(shape: tuple[int, int], box: tuple[int, int, int, int], reduction: int) -> np.ndarray:
    """The share (h, w) that lies inside an image, of each square of `reduction` pixels of a box."""
    shares = []
    for side, start, length in zip(shape, box[:2], box[2:], strict=True):
        edges = (start + reduction * np.arange(length // reduction + 1)).clip(0, side)
        shares.append(np.diff(edges).astype(np.float32) / reduction)
    return shares[0][:, None] * shares[1]


def averaged(pixels: np.ndarray, reduction: int) -> np.ndarray:
    """(C, H, W) -> (C, H / reduction, W / reduction) float32: means of squares, channel by channel to save memory."""
    if reduction == 1:
        return pixels.astype(np.float32, copy=False)
    channels = (torch.from_numpy(channel.astype(np.float32))[None] for channel in pixels)
    return torch.cat([avg_pool2d(channel, reduction) for channel in channels]).numpy()


AnyImage = DecodedImage | EncodedImage | RasterImage
