"""Reads masks from any source; errors name the file and say what to do.

Masks are returned as stored: gray values are the samples in the file, also where Pillow scales them. Palette
masks are ids or colors by the rule of palette_masks.py. Lossy masks are refused, and so are files with several frames.
Raster files with a georeference or nodata value are read by rasters/masks.py.

Legend: H height, W width.
"""

from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from .array_files import stored_mask
from .frames import count_frames
from .image_reading import PIXEL_LIMIT, ImageReadError, Source, channels_last, describe, open_image, to_numpy
from .label_maps import LabelMap
from .mask_encoding import Encoding, encoding_of, stored_samples
from .orientation import turn_upright
from .palette_masks import decode_palette
from .raster_library import raster_module

NOT_IDS = ("F", "CMYK", "LAB", "YCbCr", "HSV")  # Pillow's modes for measurements and colors
EXPORT_AGAIN = "Export the mask again as PNG."


class Stored(NamedTuple):
    """What must be known of a mask file before it is decoded."""

    encoding: Encoding
    frames: int


def read_mask(source: Source, *, table: LabelMap | None = None, pixel_limit: int = PIXEL_LIMIT) -> np.ndarray:
    """Reads any source as ids (H, W) of an integer type, or as the colors (H, W, 3) of an RGB mask.

    The mask is rotated upright by its own EXIF orientation.

    Args:
        source: Path, bytes, binary file, PIL image, array or tensor.
        table: The ids and colors of the classes, which decide whether the indices of a palette image are ids
            or its colors are classes. By default they are ids.
        pixel_limit: Most pixels of a file; larger ones are rejected before they are decoded.

    Raises:
        ImageReadError: If the mask cannot be read, is lossy, has several frames, or has a mode that cannot
            hold class ids.
        PaletteError: If indices and colors of a palette image contradict each other.
    """
    masks = raster_module(source, "masks")
    if masks and (raster := masks.raster_mask(source, table)) is not None:
        return raster.read_whole(pixel_limit)
    is_array = isinstance(source, np.ndarray | Tensor)
    array = source if is_array else stored_mask(source, pixel_limit)
    if array is not None:
        return _mask_array(array, describe(source))
    image, orientation, name, stored = open_image(source, pixel_limit, _inspect)
    _check(image, stored, name)
    if image.mode in ("P", "PA"):
        return turn_upright(decode_palette(image, table, name), orientation)
    mask = np.asarray(image)
    mask = mask[..., 0] if image.mode == "LA" else mask[..., :3] if mask.ndim == 3 else mask
    if mask.ndim == 2:
        mask = stored_samples(mask, stored.encoding)
    return turn_upright(mask, orientation)


def _inspect(image: Image.Image, file: BinaryIO | None) -> Stored:
    return Stored(encoding_of(image, file), count_frames(image, file))


def _check(image: Image.Image, stored: Stored, name: str) -> None:
    """Raises ImageReadError if the file cannot be a mask."""
    if stored.encoding.lossy:
        raise ImageReadError(
            f"{name} is a mask with lossy compression ({stored.encoding.lossy}), which changes class ids at every edge. {EXPORT_AGAIN}"
        )
    if stored.frames > 1:
        raise ImageReadError(
            f"{name} has {stored.frames} frames, but a mask is one image. Export the frame that belongs to the image as PNG."
        )
    if stored.encoding.is_cut:
        raise ImageReadError(
            f"{name} has several channels of 16 bits, of which Pillow reads the high bytes only. "
            "Save masks as palette, 8-bit or 16-bit gray, or 8-bit RGB PNG."
        )
    if stored.encoding.is_misread:
        raise ImageReadError(f"{name} is a BMP with a gray palette that Pillow cannot read. {EXPORT_AGAIN}")
    if image.mode in NOT_IDS:
        raise ImageReadError(
            f"{name} has Pillow mode {image.mode}, which cannot hold class ids. "
            "Save masks as palette, 8-bit or 16-bit gray, or RGB PNG."
        )


def _mask_array(source: np.ndarray | Tensor, name: str) -> np.ndarray:
    mask = to_numpy(source)
    if mask.dtype.kind not in "biu":
        raise ImageReadError(
            f"{name} has dtype {mask.dtype}, but class ids are integers. Convert the mask first."
        )
    if mask.ndim == 3:
        mask = channels_last(mask, (3, 1), None, isinstance(source, Tensor), name)
        mask = mask[..., 0] if mask.shape[-1] == 1 else mask
    if mask.ndim not in (2, 3) or 0 in mask.shape:
        raise ImageReadError(f"{name} is not a mask. Pass ids (H, W) or RGB colors (H, W, 3).")
    return mask.astype(np.uint8) if mask.dtype == bool else mask
