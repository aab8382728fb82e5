"""The wide context of a window: which area it covers, and how it is cut from an image.

The context has the window's center and `ratio` times its sides. It is reduced to the window's size by the mean
of ratio x ratio blocks. Outside the image the value is 0, the mean of a normalized image.

Legend: C channels, H, W image, h, w window.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from .tiling import overlap_slices


class Box(NamedTuple):
    """A window in pixels of the image; it may reach over the image."""

    top: int
    left: int
    height: int
    width: int


def context_box(box: Box, ratio: int) -> Box:
    """The area that the context of a window covers."""
    top, left, height, width = box
    return Box(
        top - (ratio - 1) * height // 2, left - (ratio - 1) * width // 2, ratio * height, ratio * width
    )


def shared_context_box(box: Box, ratio: int) -> Box:
    """The area of the nearest context on a fixed grid that covers the window.

    The grid begins at (0, 0) and has steps of ratio - 1 windows, so that one of its contexts holds any window. Of two at
    the same distance, the one of an even index counts: windows side by side then share it.
    """
    top, left = (
        start if ratio == 1 else shared_start(start, (ratio - 1) * side)
        for start, side in zip(box[:2], box[2:], strict=True)
    )
    return Box(top, left, ratio * box.height, ratio * box.width)


def shared_start(start: int, step: int) -> int:
    """Along one axis: where the shared context of a window at `start` begins."""
    index, rest = divmod(start, step)
    return (index - (index % 2 if rest == 0 else 0)) * step


def cut_window(pixels: Tensor, box: Box) -> Tensor:
    """(C, H, W) -> (C, h, w), 0 outside the image."""
    sides = zip(box[:2], box[2:], pixels.shape[1:], strict=True)
    (rows, top), (columns, left) = (overlap_slices(*side) for side in sides)
    inside = pixels[:, rows, columns]
    if inside.shape[1:] == box[2:]:
        return inside
    window = pixels.new_zeros(len(pixels), box.height, box.width)
    window[:, top, left] = inside
    return window


def reduced(pixels: Tensor, ratio: int) -> Tensor:
    """(C, ratio * h, ratio * w) -> (C, h, w), the means of ratio x ratio blocks."""
    return F.avg_pool2d(pixels, ratio)
