"""Overlapping windows over a map of any number of axes: where they lie, and how they blend row by row.

Independent of models: `predict` may be any function of the place of a window. The map is never in memory as a
whole: its rows (cells along the first axis) are yielded as soon as no further window covers them.

Legend: K channels, G... cells of the map along each axis, N... those of a window, R rows.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise, product

import torch
from torch import Tensor

Place = tuple[int, ...]  # the first cell of a window along each axis


def window_starts(length: int, window: int, step: int) -> list[int]:
    """First cells, `step` apart, of windows that cover `length`; the last window ends where the map ends."""
    last = max(0, length - window)
    return [*range(0, last, step), last]


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


WEIGHTS: dict[str, Callable[[Sequence[int]], Tensor]] = {
    "gaussian": gaussian_weights,
    "constant": constant_weights,
}


def blended_rows(
    size: Sequence[int],
    starts: Sequence[Sequence[int]],
    weights: Tensor,
    predict: Callable[[list[Place]], Iterable[Tensor]],
) -> Iterator[Tensor]:
    """Yields the weighted mean of overlapping windows as pieces (K, R, G...) of the map, top to bottom.

    Memory holds as many rows as a window has.

    Args:
        size: Cells (G...) of the map.
        starts: For each axis the first cells of the windows, which together cover it.
        weights: (N...) weights of the cells of a window, which is at most as large as the map.
        predict: Places of windows -> the values (K, N...) of each. Called once for all windows that begin in
            the same row.
    """
    rows, *window = weights.shape
    total, weight = None, None
    for top, next_top in pairwise([*starts[0], size[0]]):
        places = [(top, *rest) for rest in product(*starts[1:])]
        for place, values in zip(places, predict(places), strict=True):
            if total is None:
                weights = weights.to(values)
                total, weight = (
                    values.new_zeros(len(values), rows, *size[1:]),
                    weights.new_zeros(rows, *size[1:]),
                )
            under = (..., *(slice(first, first + n) for first, n in zip(place[1:], window, strict=True)))
            total[under] += values * weights
            weight[under] += weights
        done = next_top - top
        yield total[:, :done] / weight[:done]
        total, weight = moved_up(total, 1, done), moved_up(weight, 0, done)


def moved_up(values: Tensor, axis: int, rows: int) -> Tensor:
    """Drops the first `rows` along `axis` and appends as many zeros."""
    kept = values.narrow(axis, rows, values.shape[axis] - rows)
    return torch.cat([kept, torch.zeros_like(values.narrow(axis, 0, rows))], dim=axis)


class RowReader:
    """Reads rows of a map that arrives in pieces (K, R, G...), from top to bottom; rows above are dropped."""

    def __init__(self, pieces: Iterable[Tensor]) -> None:
        self.pieces = iter(pieces)
        self.held = next(self.pieces)
        self.first = 0  # row of the map that `held` begins with

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
