"""Crop pairs of a whole image: tiles, the wide context of each, and tiles put together again.

The context of a tile is the square with the same center and `ratio` times its side, reduced to the size of the
tile by the mean of ratio x ratio blocks. It is cut from the same image; outside the image the value is 0, which
is the mean of a normalized image.

Legend: B batch, C channels, H, W height and width of the image, s side of a tile, T tiles of the whole batch,
n, m tiles along height and width.
"""

from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor

from .windows import crop, merge, partition, plan_windows


def tiles_of(images: Tensor, side: int, outside: int = 0) -> Tensor:
    """(B, C, H, W) -> (T, C, s, s): row by row from the top left, padded at the right and below."""
    windows = plan_windows(tuple(images.shape[2:]), (side, side))
    widths = [
        part
        for size, padded in zip(windows.grid[::-1], windows.padded[::-1], strict=True)
        for part in (0, padded - size)
    ]
    tokens = partition(F.pad(images, widths, value=outside).movedim(1, -1), windows)  # (B, n m, s s, C)
    return tokens.flatten(0, 1).unflatten(1, (side, side)).movedim(-1, 1)


def joined_tiles(tiles: Tensor, size: tuple[int, int], side: int) -> Tensor:
    """(T, C, h, w), cells of the tiles of images of `size` (H, W) -> (B, C, ceil(H h / s), ceil(W w / s))."""
    cells = tuple(tiles.shape[2:])
    counts = plan_windows(size, (side, side)).counts
    grid = tuple((pixels * n + side - 1) // side for pixels, n in zip(size, cells, strict=True))
    windows = plan_windows(grid, cells)._replace(
        counts=counts, padded=tuple(count * n for count, n in zip(counts, cells, strict=True))
    )
    tokens = tiles.movedim(1, -1).flatten(1, 2).unflatten(0, (-1, counts[0] * counts[1]))
    return crop(merge(tokens, windows), grid).movedim(-1, 1)


def contexts_of(images: Tensor, side: int, ratio: int) -> Tensor:
    """(B, C, H, W) -> (T, C, s, s): the context of each tile of `tiles_of`."""
    step = gcd(side, ratio)  # all blocks of all contexts begin at multiples of it
    means = F.avg_pool2d(with_surroundings(images, side, ratio), ratio, step)
    rows, columns = (
        block_starts(size, side, ratio, images.device) // step
        for size in plan_windows(tuple(images.shape[2:]), (side, side)).counts
    )
    return tiles_of(means.index_select(2, rows).index_select(3, columns), side)


def context_labels_of(labels: Tensor, side: int, ratio: int, ignore_index: int) -> Tensor:
    """(B, H, W) -> (T, s, s): the label at the center of each block of `contexts_of`, ignored outside."""
    padded = with_surroundings(labels[:, None], side, ratio, ignore_index)
    rows, columns = (
        block_starts(size, side, ratio, labels.device) + ratio // 2
        for size in plan_windows(tuple(labels.shape[1:]), (side, side)).counts
    )
    return tiles_of(padded.index_select(2, rows).index_select(3, columns), side)[:, 0]


def with_surroundings(images: Tensor, side: int, ratio: int, outside: int = 0) -> Tensor:
    """(B, C, H, W) -> (B, C, H', W'): padded on all sides so that it holds the contexts of all tiles."""
    before, widths = (ratio - 1) * side // 2, []
    windows = plan_windows(tuple(images.shape[2:]), (side, side))
    for size, padded in zip(windows.grid[::-1], windows.padded[::-1], strict=True):
        widths += [before, padded - size + (ratio - 1) * side - before]
    return F.pad(images, widths, value=outside)


def block_starts(count: int, side: int, ratio: int, device: torch.device) -> Tensor:
    """-> (count * side,): along one axis of `with_surroundings`, where the blocks of each context begin."""
    tiles, cells = torch.arange(count, device=device) * side, torch.arange(side, device=device) * ratio
    return (tiles[:, None] + cells).flatten()
