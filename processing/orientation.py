"""The EXIF orientation of a photograph: turn pixels upright, and turn masks back to the layout stored on disk."""

import numpy as np
from torch import Tensor

UPRIGHT = 1
# EXIF code -> (are rows and columns swapped, axes to flip after that) to make the stored pixels upright
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


def swaps_sides(orientation: int) -> bool:
    """Whether the stored width is the upright height."""
    return TURNS[orientation][0]


def upright_view(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, ...) as stored -> (H', W', ...) as meant to be seen: the same memory, so that it can also be written to."""
    swapped, flipped = TURNS[orientation]
    return np.flip(pixels.swapaxes(0, 1) if swapped else pixels, flipped)


def turn_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, ...) as stored -> (H', W', ...) as meant to be seen."""
    return np.ascontiguousarray(upright_view(pixels, orientation))


def turn_back(mask: Tensor, orientation: int) -> Tensor:
    """(H', W') upright -> (H, W) as the pixels of the image file are stored."""
    swapped, flipped = TURNS[orientation]
    mask = mask.flip(flipped)
    return mask.transpose(0, 1).contiguous() if swapped else mask
