"""Windows of a grid with any number of axes: partition and its inverse, padding, cyclic shift and its mask.

`Windows` is computed once from the size of the grid and passed down; modules store no sizes.

Legend: B batch, G... grid axes, C channels, W windows, N tokens of a window.
"""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Windows(NamedTuple):
    """How a grid is partitioned: sizes of grid and window, windows along each axis, and cyclic shift."""

    grid: tuple[int, ...]
    window: tuple[int, ...]
    counts: tuple[int, ...]
    padded: tuple[int, ...]  # size of the grid after padding to whole windows
    shift: tuple[int, ...]


class ShiftMasks(NamedTuple):
    """Additive masks of shifted windows: one of each kind of window, and the kind of each window."""

    of_kinds: Tensor  # (kinds, N, N)
    kinds: Tensor  # (W,)

    @property
    def of_windows(self) -> Tensor:
        """(W, N, N)."""
        return self.of_kinds[self.kinds]


def plan_windows(
    grid: tuple[int, ...], window: tuple[int, ...], shifted: bool | tuple[bool, ...] = False
) -> Windows:
    """Plans the partition of a grid into windows, padded at the end; the shift is half a window.

    Args:
        grid: Positions along each axis.
        window: Positions of a window along each axis.
        shifted: Whether windows are shifted: along all axes, or along each.
    """
    # Ceiling division in this form, not (-size) % step: torch.compile and torch.export can solve it.
    counts = tuple((size + step - 1) // step for size, step in zip(grid, window, strict=True))
    padded = tuple(count * step for count, step in zip(counts, window, strict=True))
    moved = shifted if isinstance(shifted, tuple) else (shifted,) * len(window)
    shift = tuple(step // 2 if moves else 0 for step, moves in zip(window, moved, strict=True))
    return Windows(grid, window, counts, padded, shift)


def window_partition(features: Tensor, windows: Windows) -> Tensor:
    """(B, G..., C) -> (B, W, N, C): pads, shifts and partitions; windows and tokens in row-major order."""
    return partition(roll(pad(features, windows), windows, -1), windows)


def window_reverse(tokens: Tensor, windows: Windows) -> Tensor:
    """(B, W, N, C) -> (B, G..., C), the inverse of `window_partition`."""
    return crop(roll(merge(tokens, windows), windows, 1), windows.grid)


def pad(features: Tensor, windows: Windows) -> Tensor:
    """(B, G..., C) -> (B, padded..., C), zero-padded at the end of each axis."""
    if not torch.compiler.is_compiling() and windows.padded == windows.grid:  # a program is for any size
        return features
    widths = [0, 0]
    for size, padded in zip(windows.grid[::-1], windows.padded[::-1], strict=True):
        widths += [0, padded - size]
    return F.pad(features, widths)


def crop(features: Tensor, grid: tuple[int, ...]) -> Tensor:
    """(B, padded..., C) -> (B, G..., C)."""
    for axis, size in enumerate(grid, start=1):
        if torch.compiler.is_exporting():  # a view would specialize the program on whether sizes need padding
            features = features.index_select(axis, torch.arange(size, device=features.device))
        else:
            features = features.narrow(axis, 0, size)
    return features


def cropped(feature_map: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, padded...) -> (B, C, *size), as `crop`, for maps with channels first."""
    return crop(feature_map.movedim(1, -1), tuple(size)).movedim(-1, 1)


def roll(features: Tensor, windows: Windows, direction: int) -> Tensor:
    """(B, padded..., C) -> the same shape, shifted cyclically forward (1) or backward (-1).

    By slices: compiling the index arithmetic of `torch.roll` takes seconds for each layer.
    """
    for axis, shift in enumerate(windows.shift, start=1):
        if shift:
            size = features.shape[axis]
            first = size - shift if direction > 0 else shift
            parts = features.narrow(axis, first, size - first), features.narrow(axis, 0, first)
            features = torch.cat(parts, dim=axis)
    return features


def partition(features: Tensor, windows: Windows) -> Tensor:
    """(B, padded..., C) -> (B, W, N, C)."""
    axes = len(windows.window)
    folded = [size for pair in zip(windows.counts, windows.window, strict=True) for size in pair]
    outer, inner = range(1, 2 * axes, 2), range(2, 2 * axes + 1, 2)
    features = features.reshape(features.shape[0], *folded, features.shape[-1])
    features = features.permute(0, *outer, *inner, -1)
    return features.reshape(features.shape[0], prod(windows.counts), prod(windows.window), -1)


def merge(tokens: Tensor, windows: Windows) -> Tensor:
    """(B, W, N, C) -> (B, padded..., C)."""
    axes = len(windows.window)
    tokens = tokens.reshape(tokens.shape[0], *windows.counts, *windows.window, tokens.shape[-1])
    interleaved = [
        axis for pair in zip(range(1, axes + 1), range(axes + 1, 2 * axes + 1), strict=True) for axis in pair
    ]
    return tokens.permute(0, *interleaved, -1).reshape(tokens.shape[0], *windows.padded, tokens.shape[-1])


def shift_masks(windows: Windows, device: torch.device, dtype: torch.dtype) -> ShiftMasks | None:
    """Returns the masks of shifted windows: -100 between tokens that are adjacent only because of the cyclic shift.

    Regions are those of Swin: along each axis the inner windows, the part of the last window that stays, and
    the part that wraps around. Along each axis, all windows but the last one are of the same kind, so that the masks
    are those of a grid with two windows per axis. Returns None without a shift.
    """
    if not any(windows.shift):
        return None
    kinds = torch.zeros((), dtype=torch.long, device=device)
    sides = kinds[None, None]  # (kinds, N), on which side of the seams a token is, along the axes so far
    is_last = torch.arange(2, device=device)[:, None] == 1
    for window, shift, count in zip(windows.window, windows.shift, windows.counts, strict=True):
        wraps = is_last & (torch.arange(window, device=device) >= window - shift)  # (2, w)
        sides = (2 * sides[:, None, :, None] + wraps[:, None]).flatten(2, 3).flatten(0, 1)
        kinds = 2 * kinds[..., None] + (torch.arange(count, device=device) == count - 1)
    apart = sides[:, :, None] != sides[:, None]
    masks = torch.zeros(apart.shape, dtype=dtype, device=device).masked_fill(apart, -100.0)
    return ShiftMasks(masks, kinds.flatten())


def padding_keys(windows: Windows, present: Tensor | None, like: Tensor) -> Tensor | None:
    """-> (1 or B, W, N), additive mask: -100 for cells without image and those that only fill up windows.

    Args:
        windows: The partition.
        present: Mask (B, G...), True for cells with image; None if all of them have.
        like: Tensor whose type and device the result has.

    Returns:
        The mask, or None if there is nothing to hide.
    """
    if present is None:
        # a program for any size cannot decide by one
        if not torch.compiler.is_exporting() and windows.padded == windows.grid:
            return None
        present = torch.ones(1, *windows.grid, device=like.device)
    inside = window_partition(present[..., None].to(like), windows)[..., 0]
    return 100.0 * (inside - 1)
