"""Overlapping windows over a map of any number of axes: where they lie, how they blend, and the blended map row by row.

Nothing here knows models: `predict` may be any function of a window's place. A map is never held as a whole: its rows
(cells along the first axis) leave as soon as no further window touches them.

Legend: K channels, G... cells of the map along each axis, N... those of a window, R rows.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise, product

import torch
from torch import Tensor

Place = tuple[int, ...]  # of a window: its first cell along each axis


def window_starts(length: int, window: int, step: int) -> list[int]:
    """First cells, `step` apart, of the windows that cover `length`; the last one moves back to end where the map ends."""
    last = max(0, length - window)
    return [*range(0, last, step), last]


def constant_weights(window: Sequence[int]) -> Tensor:
    """(N...) ones: all windows over a cell count alike, as in mmsegmentation's sliding inference."""
    return torch.ones(tuple(window))


def gaussian_weights(window: Sequence[int], sigma: float = 0.125, smallest: float = 1e-3) -> Tensor:
    """(N...) a bell over the window, 1 at its centre: cells count more where the window sees more around them.

    MONAI's importance map: the deviation is `sigma` of the window along each axis (nnU-Net has the same eighth), and no
    weight is below `smallest`, so that cells in corners that one window alone covers keep their digits.
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
    """Weighted means of overlapping windows: pieces (K, R, G...) of the map, top to bottom, R rows at a time.

    size: (G...) cells of the map. starts: for each axis the first cells of its windows, which cover it.
    weights: (N...) of the cells of a window; windows are no longer than the map.
    predict: places of windows -> for each of them the values (K, N...). It gets the windows that begin in one row together.

    The memory is that of as many rows as a window has.
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
    """The same shape without its first `rows`, with as many zeros at the end."""
    kept = values.narrow(axis, rows, values.shape[axis] - rows)
    return torch.cat([kept, torch.zeros_like(values.narrow(axis, 0, rows))], dim=axis)


class RowReader:
    """Rows of a map that arrives in pieces (K, R, G...), asked for from top to bottom; what lies above is forgotten."""

    def __init__(self, pieces: Iterable[Tensor]) -> None:
        self.pieces = iter(pieces)
        self.held = next(self.pieces)
        self.first = 0  # row of the map that `held` begins with

    @property
    def channels(self) -> int:
        return len(self.held)

    def read(self, start: int, stop: int) -> Tensor:
        """Rows start..stop-1, (K, stop - start, G...); `start` is nowhere above that of an earlier call."""
        self.forget(start)
        while self.first + self.held.shape[1] < stop:
            self.held = torch.cat([self.held, next(self.pieces)], dim=1)
            self.forget(start)
        return self.held[:, : stop - start]

    def forget(self, start: int) -> None:
        """Drops the held rows above `start`."""
        rows = min(start - self.first, self.held.shape[1])
        self.held, self.first = self.held[:, rows:], self.first + rows
