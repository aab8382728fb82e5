"""Scores of images that come in bands of rows: sums over some rows, which add up to those of the whole image.

What is held does not grow with the height of an image, but with the distance of boundary scores.

Legend: H, W image axes, R rows, K classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .boundary_metrics import BoundaryScore, without_void
from .metrics import ConfusionMatrix


class RowsOfBoundaries:
    """The sums of a boundary score over some rows of an image.

    Args:
        score: The score; its `add` takes the sums over all rows of an image.
        size: (H, W) of the image.
        rows: First row, and the one after the last.

    Attributes:
        needed: First row that `update` needs, and the one after the last: the rows and their neighbors.
        sums: The sums, when `update` was called with all needed rows.
    """

    def __init__(self, score: BoundaryScore, size: Sequence[int], rows: tuple[int, int]) -> None:
        self.score, self.size, self.rows, self.halo = score, tuple(size), rows, score.halo(size)
        self.needed = max(0, rows[0] - self.halo), min(size[0], rows[1] + self.halo)
        self.first, self.done = self.needed[0], rows[0]  # rows: of what is held, and that are summed
        self.held: list[Tensor] | None = None
        self.sums: Tensor | int = 0

    def update(self, prediction: Tensor, labels: Tensor) -> None:
        """Adds the next rows (R, W), as in `BoundaryScore.update`."""
        (rows,) = without_void(prediction, labels, self.score.num_labels, self.score.ignore_index)
        self.held = rows if self.held is None else list(map(torch.cat, zip(self.held, rows, strict=True)))
        end = self.first + len(self.held[0])
        is_last = end == self.needed[1]
        stop = self.rows[1] if is_last else min(end - self.halo, self.rows[1])
        if stop - self.done < self.halo and not is_last:
            return  # too few: the neighbors would take longer than the rows
        inner = slice(self.done - self.first, stop - self.first)
        self.sums = self.sums + self.score.sums(*self.held, self.size, inner)
        first = max(self.first, stop - self.halo)
        self.held = [ids[first - self.first :] for ids in self.held]
        self.first, self.done = first, stop


class RowsOfConfusion:
    """The pixel counts of a confusion matrix over some rows of an image; as `RowsOfBoundaries`, without neighbors."""

    def __init__(self, score: ConfusionMatrix, size: Sequence[int], rows: tuple[int, int]) -> None:  # noqa: ARG002
        self.needed, self.counts = rows, score.reduced(torch.zeros_like)

    def update(self, prediction: Tensor, labels: Tensor) -> None:
        """Adds the next rows (R, W), as in `ConfusionMatrix.update`."""
        self.counts.update(prediction, labels)

    @property
    def sums(self) -> Tensor:
        """The sums so far."""
        return self.counts.matrix


def rows_of(
    score: ConfusionMatrix | BoundaryScore, size: Sequence[int], rows: tuple[int, int]
) -> RowsOfConfusion | RowsOfBoundaries:
    """What sums a score over rows first..stop-1 of an image of (H, W)."""
    kind = RowsOfConfusion if isinstance(score, ConfusionMatrix) else RowsOfBoundaries
    return kind(score, size, rows)
