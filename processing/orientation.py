"""EXIF orientation: rotates images upright, and masks back to the pixels as stored."""

import numpy as np
from PIL import Image
from torch import Tensor

UPRIGHT = 1
# EXIF code -> (whether to swap rows and columns, axes to flip after that) to make the stored pixels upright
TURNS: dict[int, tuple[bool, tuple[int, ...]]] = {
    1: (False, ()),
    2: (False, (1,)),
    3: (False, (0, 1)),
    4: (False, (0,)),
    5: (True, ()),
    6: (True, (1,)),
    7: (True, (0, 1)),
    8: (True, (0,)),
}
TRANSPOSITIONS = {  # EXIF code -> what makes the stored pixels upright, as `TURNS`, for Pillow
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def swaps_sides(orientation: int) -> bool:
    """Whether this EXIF orientation swaps height and width."""
    return TURNS[orientation][0]


def upright_view(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, ...) as stored -> (H', W', ...) upright: a view, so writing to it changes `pixels`."""
    swapped, flipped = TURNS[orientation]
    return np.flip(pixels.swapaxes(0, 1) if swapped else pixels, flipped)


def turn_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, ...) as stored -> (H', W', ...) upright, contiguous."""
    return np.ascontiguousarray(upright_view(pixels, orientation))


def turn_back(mask: Tensor, orientation: int) -> Tensor:
    """(H', W') upright -> (H, W) as the image file stores its pixels."""
    swapped, flipped = TURNS[orientation]
    mask = mask.flip(flipped)
    return mask.transpose(0, 1).contiguous() if swapped else mask
