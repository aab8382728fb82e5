"""Overlapping windows over a map of any number of axes: where they lie, and how they blend row by row.

Independent of models: `predict` may be any function of the place of a window. The map is never in memory as a
whole: its rows (cells along the first axis) are yielded as soon as no further window covers them.

Legend: K channels, G... cells of the map along each axis, N... those of a window's part that counts, R rows.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from math import ceil, prod

import torch
from torch import Tensor

Place = tuple[int, ...]  # the first cell of a window along each axis
PIECE_VALUES = 1 << 22  # most values of a piece of several rows: 16 MiB


def window_starts(length: int, window: int, step: int) -> list[int]:
    """First cells, `step` apart, of windows that cover `length`; the last window ends where the map ends."""
    last = max(0, length - window)
    return [*range(0, last, step), last]


def even_starts(length: int, window: int, step: float) -> list[int]:
    """First cells of as few, evenly spaced windows as cover `length`, `step` of a window apart or less; nnU-Net's rule.

    A window that is larger than the map is centered on it, with the odd cell behind.
    """
    if length <= window:
        return [-((window - length) // 2)]
    number = ceil((length - window) / (window * step)) + 1
    spacing = (length - window) / (number - 1)
    return [round(spacing * index) for index in range(number)]


def constant_weights(window: Sequence[int]) -> Tensor:
    """(N...) of ones: all windows over a cell have equal weight, as in mmsegmentation's sliding inference."""
    return torch.ones(tuple(window))


def gaussian_weights(window: Sequence[int], sigma: float = 0.125, smallest: float = 1e-3) -> Tensor:
    """(N...), a Gaussian with 1 at the center: cells with more context in the window weigh more.

    MONAI's importance map: the std is `sigma` of the window along each axis (nnU-Net uses the same 1/8). No
    weight is below `smallest`, so that corner cells that a single window covers do not lose precision.
    """
    weights = torch.ones(())
    for length in window:
        distance = torch.arange(length, dtype=torch.float32) - (length - 1) / 2
        weights = weights[..., None] * torch.exp(-0.5 * (distance / (sigma * length)) ** 2)
    return (weights / weights.max()).clamp(min=smallest)


def impulse_weights(window: Sequence[int], sigma: float = 0.125) -> Tensor:
    """(N...), nnU-Net's importance map: a unit impulse at half of each side, blurred by a Gaussian; its maximum is 1.

    The Gaussian has a std of `sigma` of the window along each axis, and is cut off after 4 of them. Weights that
    are then 0 get the smallest of the others.
    """
    weights = torch.ones((), dtype=torch.float64)
    for length in window:
        std = sigma * length
        distance = (torch.arange(length, dtype=torch.float64) - length // 2).abs()
        line = torch.exp(-0.5 * (distance / std) ** 2) * (distance <= int(4 * std + 0.5))
        weights = weights[..., None] * line
    weights = weights.float()
    return torch.where(weights > 0, weights, weights[weights > 0].min())


WEIGHTS: dict[str, Callable[[Sequence[int]], Tensor]] = {
    "gaussian": gaussian_weights,
    "constant": constant_weights,
    "center": constant_weights,  # of the central part, where no other window counts
}
EVEN_WEIGHTS: dict[str, Callable[[Sequence[int]], Tensor]] = {
    "gaussian": impulse_weights,
    "constant": constant_weights,
}


@dataclass(frozen=True)
class Grid:
    """Windows over a map, each with the part that counts.

    Attributes:
        cells: Cells (G...) of the map.
        window: Cells of a window along each axis.
        starts: First cells of the parts that count along each axis; they cover the map.
        margin: Cells of a window before the part that counts.
        weights: (N...) weights of the cells of that part.
        pads: Whether windows may reach over the map; else they end where it ends.
    """

    cells: tuple[int, ...]
    window: tuple[int, ...]
    starts: list[list[int]]
    margin: tuple[int, ...]
    weights: Tensor
    pads: bool = False

    @property
    def part(self) -> tuple[int, ...]:
        """Cells of the part that counts along each axis."""
        return tuple(self.weights.shape)


def sliding_grid(
    cells: Sequence[int], window: Sequence[int], overlap: float, blend: str, *, pads: bool = False
) -> Grid:
    """Windows from the first corner on, all of which counts. The last window ends where the map ends.

    Args:
        cells: Cells (G...) of the map.
        window: Cells of a window along each axis.
        overlap: Fraction of a window that its neighbor covers too.
        blend: Name of the weights.
        pads: Whether windows reach over a smaller map, and over the end of the map if they do not overlap.
            By default windows are cut to the size of a smaller map.
    """
    window = tuple(window) if pads else tuple(map(min, window, cells))
    starts = [
        list(range(0, n, w))
        if pads and not overlap
        else window_starts(n, w, max(1, round(w * (1 - overlap))))
        for n, w in zip(cells, window, strict=True)
    ]
    return Grid(tuple(cells), window, starts, (0,) * len(window), WEIGHTS[blend](window), pads)


def center_grid(cells: Sequence[int], window: Sequence[int], overlap: float) -> Grid:
    """Windows whose central parts, 1 - `overlap` of each side, cover the map once.

    The rule of the relay token authors: the grid is moved by half a step from the first corner, along the first
    axis from the last corner. Windows reach over all ends of the map.
    """
    cut = [min(w - 1, round(w * overlap)) for w in window]
    steps = [w - n for w, n in zip(window, cut, strict=True)]
    margin = tuple(n // 2 for n in cut)
    starts = []
    for n, step, before in zip(cells, steps, margin, strict=True):
        first = (before - step // 2) % step
        starts.append(list(range(first - step if first else 0, n, step)))
    starts[0] = [cells[0] - steps[0] - start for start in reversed(starts[0])]
    return Grid(tuple(cells), tuple(window), starts, margin, constant_weights(steps), True)


def even_grid(cells: Sequence[int], window: Sequence[int], overlap: float, blend: str) -> Grid:
    """Evenly spaced whole windows, all of which count; they reach over both ends of a smaller map. nnU-Net's rule.

    Args:
        cells: Cells (G...) of the map.
        window: Cells of a window along each axis.
        overlap: Fraction of a window that its neighbor covers too, at least.
        blend: Name of the weights in `EVEN_WEIGHTS`.
    """
    step = round(1 - overlap, 12)  # 1 - 0.9 is not 0.1
    starts = [even_starts(n, w, step) for n, w in zip(cells, window, strict=True)]
    return Grid(tuple(cells), tuple(window), starts, (0,) * len(starts), EVEN_WEIGHTS[blend](window), True)


def overlap_slices(start: int, length: int, size: int) -> tuple[slice, slice]:
    """Where a part of `length` cells from `start` on lies in a map of `size` cells, and which of its cells do."""
    first = max(0, start)
    stop = max(first, min(start + length, size))
    return slice(first, stop), slice(first - start, stop - start)


def blended_rows(grid: Grid, predict: Callable[[list[Place]], Iterable[Tensor]]) -> Iterator[Tensor]:
    """Yields the weighted mean of overlapping windows as pieces (K, R, G...) of the map, top to bottom.

    Memory holds as many rows as a window has, and a piece.

    Args:
        grid: The windows.
        predict: Places of windows -> the values (K, N...) of the part of each that counts. Called once for all
            windows that begin in the same row.
    """
    rows, *part = grid.part
    size, total, weight = grid.cells, None, None
    for top, next_top in pairwise([*grid.starts[0], size[0]]):
        places = [(top, *rest) for rest in product(*grid.starts[1:])]
        windows = iter(predict(places))  # zip() would hold a window while the next one is predicted
        for place in places:
            values = next(windows)
            if total is None:
                weights = grid.weights.to(values)
                total, weight = (
                    values.new_zeros(len(values), rows, *size[1:]),
                    weights.new_zeros(rows, *size[1:]),
                )
            sides = [overlap_slices(*axis) for axis in zip(place[1:], part, size[1:], strict=True)]
            under, inside = ((..., *(side[k] for side in sides)) for k in (0, 1))
            total[under] += (values * weights)[inside]
            weight[under] += weights[inside]
            del values
        done = next_top - top
        step = max(1, PIECE_VALUES // (len(total) * prod(size[1:])))
        for start in range(max(0, -top), done, step):
            stop = min(start + step, done)
            yield total[:, start:stop] / weight[start:stop]
        for sums in (weight, *total):  # one after the other: no copy of all
            move_up(sums, done)


def move_up(values: Tensor, rows: int) -> None:
    """Drops the first `rows` of `values` (R, ...) and appends as many zeros, in place."""
    kept = max(0, len(values) - rows)
    values[:kept] = values[rows:].clone()
    values[kept:] = 0


class RowReader:
    """Reads rows of a map that arrives in pieces (K, R, G...), from top to bottom; rows above are dropped."""

    def __init__(self, pieces: Iterable[Tensor], first: int = 0) -> None:
        self.pieces = iter(pieces)
        self.held = next(self.pieces)
        self.first = first  # row of the map that `held` begins with

    @property
    def channels(self) -> int:
        return len(self.held)

    def read(self, start: int, stop: int) -> Tensor:
        """Returns rows start..stop-1, (K, stop - start, G...); `start` never decreases from call to call."""
        self.forget(start)
        while self.first + self.held.shape[1] < stop:
            self.held = torch.cat([self.held, next(self.pieces)], dim=1)
            self.forget(start)
        return self.held[:, : stop - start]

    def forget(self, start: int) -> None:
        """Drops the held rows above `start`."""
        rows = min(start - self.first, self.held.shape[1])
        self.held, self.first = self.held[:, rows:], self.first + rows
