"""Reads masks from any source; errors name the file and say what to do.

Masks are returned as stored: ids are never converted to gray, and palette indices become colors only on
request.

Legend: H height, W width.
"""

import numpy as np
from torch import Tensor

from .image_reading import (
    PIXEL_LIMIT,
    ImageReadError,
    Source,
    channels_last,
    describe,
    open_image,
    to_numpy,
    to_rgb,
)
from .orientation import turn_upright

LOSSY_FORMATS = ("JPEG", "MPO", "AVIF")


def read_mask(source: Source, *, decode_palette: bool = False, pixel_limit: int = PIXEL_LIMIT) -> np.ndarray:
    """Reads any source as ids (H, W) of an integer type, or as the colors (H, W, 3) of an RGB mask.

    `decode_palette` returns the colors of a palette image, otherwise its indices are the ids. The mask is
    rotated upright by its own EXIF orientation. Raises ImageReadError for lossy formats and modes that cannot
    hold class ids.
    """
    if isinstance(source, np.ndarray | Tensor):
        return _mask_array(source)
    image, orientation, name = open_image(source, pixel_limit)
    if image.format in LOSSY_FORMATS:
        raise ImageReadError(
            f"{name} is a {image.format} mask: lossy compression changes class ids at every edge. "
            "Export the mask again as PNG."
        )
    if decode_palette and image.mode in ("P", "PA"):
        image = to_rgb(image, None, name)
    if image.mode in ("F", "CMYK", "LAB", "YCbCr", "HSV"):
        raise ImageReadError(
            f"{name} has Pillow mode {image.mode}, which cannot hold class ids. "
            "Save masks as palette, 8-bit or 16-bit gray, or RGB PNG."
        )
    mask = np.asarray(image)
    mask = mask[..., 0] if image.mode in ("LA", "PA") else mask[..., :3] if mask.ndim == 3 else mask
    return turn_upright(mask.astype(np.uint8) if mask.dtype == bool else mask, orientation)


def _mask_array(source: np.ndarray | Tensor) -> np.ndarray:
    name, mask = describe(source), to_numpy(source)
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
