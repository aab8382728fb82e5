"""Decodes PNG files of 8-bit gray or RGB pixels in four fifths of Pillow's time, to the same pixels, with imagecodecs.

Without that package, and for all other files, Pillow decodes them. So it does what seems damaged, and explains the error.
"""

import io

import numpy as np

from .image_opening import DECODING_ERRORS, ImageReadError, identified

try:
    import imagecodecs
except ImportError:
    imagecodecs = None

PNG = b"\x89PNG\r\n\x1a\n"
GRAY, RGB = b"\x08\0\0\0\0", b"\x08\2\0\0\0"  # of 8 bits, not interlaced


def decoded_png(data: bytes) -> np.ndarray | None:
    """A PNG file -> gray (H, W) or RGB (H, W, 3), uint8; None for files that Pillow should decode."""
    if imagecodecs is None or not data.startswith(PNG) or data[24:29] not in (GRAY, RGB):
        return None
    try:
        identified(io.BytesIO(data), "")  # refuses damaged metadata, which this decoder skips
        return imagecodecs.spng_decode(data)
    except (*DECODING_ERRORS, ImageReadError, ImportError):  # ImportError: it was built without this decoder
        return None
