"""Scores of class boundaries: Boundary IoU, and the boundary F score (BF), within a distance of them.

Boundary IoU: Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR 2021.
Boundary F: Csurka et al., "What is a good evaluation measure for semantic segmentation?", BMVC 2013.

Ignored regions are removed from the prediction as well, so that a perfect prediction scores 1. Memory does
not grow with the number of classes.

Legend: B batch, H, W image axes, K classes, N boundary pixels; `ids` are integer class ids.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from .boundary_pixels import boundary, contour, within
from .label_maps import default_ignore_index
from .metrics import as_equal_ids, check_ids, count_ids, is_counted

PER_CLASS = "per_class_"
UNIT = 2**32  # sums of scores are integers, so that they do not depend on order or processes


class BoundaryScore(ABC):
    """Counts over images that can be summed over processes. Subclasses implement `_count` and `compute`.

    Args:
        num_labels: Number of classes.
        ignore_index: Label of pixels that are not counted; None is 255, or 65535 where 255 is a class.
        counts: Zeros, int64, to which images are added.
    """

    def __init__(self, num_labels: int, ignore_index: int | None, counts: Tensor) -> None:
        self.num_labels, self.counts = num_labels, counts
        self.ignore_index = default_ignore_index(num_labels) if ignore_index is None else ignore_index

    def update(self, prediction: Tensor | np.ndarray, labels: Tensor | np.ndarray) -> None:
        """Adds one whole image or a batch of them.

        Args:
            prediction: Predicted class ids (..., H, W).
            labels: Class ids (..., H, W) of the same shape.

        Raises:
            ValueError: If shapes differ, a type is not an integer, or an id is neither a class nor ignored.
        """
        for predicted, labeled in without_void(prediction, labels, self.num_labels, self.ignore_index):
            self.add(self.sums(predicted, labeled, labeled.shape, slice(None)))

    def add(self, sums: Tensor) -> None:
        """Adds one image, given the sums of `sums` over all its rows."""
        counts = self._settled(sums)
        self.counts = self.counts.to(counts.device) + counts

    def reduced(self, reduce: Callable[[Tensor], Tensor]) -> Self:
        """Returns the sum over processes; this object keeps its own counts.

        Args:
            reduce: Sums a tensor over all processes, such as `accelerator.reduce`.
        """
        other = copy(self)
        other.counts = reduce(self.counts.clone())
        return other

    @abstractmethod
    def compute(self) -> dict[str, Any]:
        """Returns the scores of all images so far."""

    @abstractmethod
    def distance(self, size: Sequence[int]) -> float:
        """The distance from boundaries in pixels, in an image of (H, W)."""

    @abstractmethod
    def sums(self, predicted: Tensor, labeled: Tensor, size: Sequence[int], inner: slice) -> Tensor:
        """Sums over some rows of an image, which add up to those of all its rows.

        Args:
            predicted: (R, W) rows of the prediction, `num_labels` where pixels are not counted.
            labeled: The same of the labels.
            size: (H, W) of the whole image.
            inner: The rows to sum; `halo` rows above and below them are given too, as far as the image has them.
        """

    def _settled(self, sums: Tensor) -> Tensor:
        """The sums over all rows of an image -> what it adds to `counts`."""
        return sums

    def halo(self, size: Sequence[int]) -> int:
        """The number of neighboring rows that the score of a row of an image of (H, W) depends on."""
        return math.floor(self.distance(size)) + 1


class BoundaryIoU(BoundaryScore):
    """IoU of the pixels within a distance of the class boundaries, pooled over images.

    The distance is `dilation_ratio` of the image diagonal, at least one pixel. The image border counts as a
    boundary, as in the authors' definition. One pass covers all classes: a pixel is off the boundary of its
    class if and only if the smallest and the largest id in the square around it are equal, so memory and time
    do not grow with the number of classes. Ignored regions are ignored in the prediction as well, so that a
    perfect prediction scores 1.

    Args:
        num_labels: Number of classes.
        ignore_index: Label of pixels that are not counted. Default: 255, or 65535 where 255 is a class.
        dilation_ratio: The distance as a fraction of the image diagonal, from 0 to 1. Default: 0.02.
        pixels: The distance in whole pixels of 1 or more, whatever the size of the image. Default: None, by the diagonal.

    Raises:
        ValueError: If `dilation_ratio` or `pixels` is out of its range.
    """

    def __init__(
        self,
        num_labels: int,
        ignore_index: int | None = None,
        dilation_ratio: float = 0.02,
        *,
        pixels: int | None = None,
    ) -> None:
        self.dilation_ratio = checked_fraction("dilation_ratio", dilation_ratio)
        self.pixels = checked_pixels(pixels)
        counts = torch.zeros(2, num_labels, dtype=torch.int64)  # intersection, sum of both
        super().__init__(num_labels, ignore_index, counts)

    def compute(self) -> dict[str, Any]:
        """Returns `boundary_iou`, the mean over classes that occur, and `per_class_boundary_iou`, a list."""
        intersection, both = self.counts.cpu().double()
        per_class = intersection / (both - intersection)
        return {"boundary_iou": per_class.nanmean().item(), "per_class_boundary_iou": per_class.tolist()}

    def distance(self, size: Sequence[int]) -> int:
        """The distance from boundaries in pixels, in an image of (H, W)."""
        return self.pixels or max(1, round(self.dilation_ratio * math.hypot(*size)))

    def sums(self, predicted: Tensor, labeled: Tensor, size: Sequence[int], inner: slice) -> Tensor:
        """-> (2, K): the boundary pixels in both, and the sum of those in each."""
        radius, count = self.distance(size), self.num_labels
        label_edge, predicted_edge = (boundary(ids, radius)[inner] for ids in (labeled, predicted))
        labeled, predicted = labeled[inner], predicted[inner]
        label_edge, predicted_edge = (edge & (labeled != count) for edge in (label_edge, predicted_edge))
        shared = label_edge & predicted_edge & (labeled == predicted)
        both = count_ids(labeled, label_edge, count) + count_ids(predicted, predicted_edge, count)
        return torch.stack([count_ids(labeled, shared, count), both])


class BoundaryF(BoundaryScore):
    """Boundary F score: precision and recall of boundary pixels within a distance, and their harmonic mean.

    A boundary pixel of a class is one of its pixels with a pixel of another class above, below, left or
    right of it; the image border is not a boundary. Precision is the share of predicted boundary pixels of a
    class with a labeled one of the class within the distance, recall the share of labeled ones with a
    predicted one. The distance is Euclidean, `tolerance` of the image diagonal, at least one pixel.

    As in the paper, the scores of a class are means over images: F over those in which the class has a
    boundary in labels or prediction (0 if only in one), precision over those with a predicted, and recall
    over those with a labeled boundary.

    Args:
        num_labels: Number of classes.
        ignore_index: Label of pixels that are not counted. Default: 255, or 65535 where 255 is a class.
        tolerance: The distance as a fraction of the image diagonal, from 0 to 1. Default: 0.0075, as in the paper.
        pixels: The distance in whole pixels of 1 or more, whatever the size of the image. Default: None, by the diagonal.

    Raises:
        ValueError: If `tolerance` or `pixels` is out of its range.
    """

    def __init__(
        self,
        num_labels: int,
        ignore_index: int | None = None,
        tolerance: float = 0.0075,
        *,
        pixels: int | None = None,
    ) -> None:
        self.tolerance = checked_fraction("tolerance", tolerance)
        self.pixels = checked_pixels(pixels)
        # Of F, precision and recall: the sum over images in units, and the number of images.
        super().__init__(num_labels, ignore_index, torch.zeros(2, 3, num_labels, dtype=torch.int64))

    def compute(self) -> dict[str, Any]:
        """Computes the scores of all images so far.

        Returns:
            `boundary_f`, `boundary_precision` and `boundary_recall`, means over classes that occur, from 0 to
            1, and the same names after `per_class_`, lists with NaN for classes that do not occur.
        """
        totals, images = self.counts.cpu().double()
        per_class = dict(zip(("f", "precision", "recall"), totals / UNIT / images, strict=True))
        means = {f"boundary_{name}": values.nanmean().item() for name, values in per_class.items()}
        return means | {f"per_class_boundary_{name}": values.tolist() for name, values in per_class.items()}

    def distance(self, size: Sequence[int]) -> float:
        """The distance from boundaries in pixels, in an image of (H, W)."""
        return self.pixels or max(1.0, self.tolerance * math.hypot(*size))

    def sums(self, predicted: Tensor, labeled: Tensor, size: Sequence[int], inner: slice) -> Tensor:
        """-> (4, K) on the CPU: predicted and labeled boundary pixels, and those of each that are matched."""
        distance, count = self.distance(size), self.num_labels
        edges = [torch.where(contour(ids), ids, count) for ids in (predicted, labeled)]  # others are void
        found, present = (count_ids(edge[inner], edge[inner] < count, count).cpu() for edge in edges)
        hits, recalled = (
            count_ids(edge[inner], within(edge, other, distance, count)[inner], count).cpu()
            for edge, other in (edges, edges[::-1])
        )
        return torch.stack([found, present, hits, recalled])

    def _settled(self, sums: Tensor) -> Tensor:
        """(4, K) sums over an image -> (2, 3, K): what it adds to `counts`."""
        found, present, hits, recalled = sums
        precision, recall = hits.double() / found, recalled.double() / present
        either = (found > 0) | (present > 0)
        both = precision + recall
        f_score = torch.where(both > 0, 2 * precision * recall / both, 0.0)  # NaN > 0 is false
        values = torch.stack([torch.where(either, f_score, torch.nan), precision, recall])
        return torch.stack([(values.nan_to_num() * UNIT).round().long(), (~values.isnan()).long()])


def checked_pixels(value: int | None) -> int | None:
    """The value. Raises ValueError unless it is a whole number of 1 or more, or None."""
    is_whole = isinstance(value, Integral) and not isinstance(value, bool) and value >= 1
    if value is not None and not is_whole:
        raise ValueError(f"pixels is {value!r}, but must be a whole number of pixels of 1 or more.")
    return value


def checked_fraction(name: str, value: float) -> float:
    """The value. Raises ValueError unless it is a number from 0 to 1."""
    if not isinstance(value, Real) or not 0 <= value <= 1:
        raise ValueError(f"{name} is {value!r}, but must be a fraction of the image diagonal, from 0 to 1.")
    return value


def without_void(
    prediction: Tensor | np.ndarray, labels: Tensor | np.ndarray, num_labels: int, ignore_index: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """(..., H, W) each -> the checked images (H, W), with the id `num_labels` in both where not counted."""
    prediction, labels = as_equal_ids(prediction, labels)
    counted = is_counted(labels, ignore_index)
    check_ids(prediction, counted, num_labels, "predictions")
    check_ids(labels, counted, num_labels, "labels")
    images = (ids.reshape(-1, *ids.shape[-2:]) for ids in (prediction, labels, counted))
    for predicted, labeled, valid in zip(*images, strict=True):
        yield torch.where(valid, predicted, num_labels), torch.where(valid, labeled, num_labels)


def add_boundaries(scores: dict[str, Any], *boundaries: dict[str, Any]) -> None:
    """Adds what `compute` of boundary scores returned to that of `ConfusionMatrix`, in place."""
    for computed in boundaries:
        for name, value in computed.items():
            if not name.startswith(PER_CLASS):
                scores[name] = value
                continue
            for row, score in zip(scores["per_class"], value, strict=True):
                row[name.removeprefix(PER_CLASS)] = score
