"""Scores of class boundaries: Boundary IoU, and the boundary F score (BF), within a distance of them.

Boundary IoU: Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR 2021.
Boundary F: Csurka et al., "What is a good evaluation measure for semantic segmentation?", BMVC 2013.

Ignored regions are removed from the prediction as well, so that a perfect prediction scores 1. Memory does
not grow with the number of classes.

Legend: B batch, H, W image axes, K classes, N boundary pixels; `ids` are integer class ids.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from copy import copy
from numbers import Real
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .label_maps import default_ignore_index
from .metrics import as_equal_ids, check_ids, count_ids, is_counted

COMPARED_AT_ONCE = 1 << 22  # pairs of a boundary pixel and a neighbor
PER_CLASS = "per_class_"
DENSE = 1 / 4  # share of boundary pixels above which comparing whole images is faster
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
            counts = self._count(predicted, labeled)
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
    def _count(self, predicted: Tensor, labeled: Tensor) -> Tensor:
        """Two (H, W) -> what an image adds to `counts`; both are `num_labels` where pixels are not counted."""


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

    Raises:
        ValueError: If `dilation_ratio` is out of its range.
    """

    def __init__(
        self, num_labels: int, ignore_index: int | None = None, dilation_ratio: float = 0.02
    ) -> None:
        self.dilation_ratio = checked_fraction("dilation_ratio", dilation_ratio)
        counts = torch.zeros(2, num_labels, dtype=torch.int64)  # intersection, sum of both
        super().__init__(num_labels, ignore_index, counts)

    def compute(self) -> dict[str, Any]:
        """Returns `boundary_iou`, the mean over classes that occur, and `per_class_boundary_iou`, a list."""
        intersection, both = self.counts.cpu().double()
        per_class = intersection / (both - intersection)
        return {"boundary_iou": per_class.nanmean().item(), "per_class_boundary_iou": per_class.tolist()}

    def _count(self, predicted: Tensor, labeled: Tensor) -> Tensor:
        """Two (H, W) -> (2, K): the boundary pixels in both, and the sum of those in each."""
        radius = max(1, round(self.dilation_ratio * math.hypot(*labeled.shape)))
        count = self.num_labels
        label_edge = (labeled != count) & boundary(labeled, radius)
        predicted_edge = (labeled != count) & boundary(predicted, radius)
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

    Raises:
        ValueError: If `tolerance` is out of its range.
    """

    def __init__(self, num_labels: int, ignore_index: int | None = None, tolerance: float = 0.0075) -> None:
        self.tolerance = checked_fraction("tolerance", tolerance)
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

    def _count(self, predicted: Tensor, labeled: Tensor) -> Tensor:
        """Two (H, W) -> (2, 3, K) on the CPU: what one image adds to `counts`."""
        distance = max(1.0, self.tolerance * math.hypot(*labeled.shape))
        count = self.num_labels
        edges = [torch.where(contour(ids), ids, count) for ids in (predicted, labeled)]  # others are void
        found, present = (count_ids(edge, edge < count, count).cpu() for edge in edges)
        hits, recalled = (
            count_ids(edge, within(edge, other, distance, count), count).cpu()
            for edge, other in (edges, edges[::-1])
        )
        precision, recall = hits.double() / found, recalled.double() / present
        either = (found > 0) | (present > 0)
        both = precision + recall
        f_score = torch.where(both > 0, 2 * precision * recall / both, 0.0)  # NaN > 0 is false
        values = torch.stack([torch.where(either, f_score, torch.nan), precision, recall])
        return torch.stack([(values.nan_to_num() * UNIT).round().long(), (~values.isnan()).long()])


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


def contour(ids: Tensor) -> Tensor:
    """(H, W) -> (H, W) bool: whether one of the four neighbors inside the image has another id."""
    edge = torch.zeros_like(ids, dtype=torch.bool)
    differs = ids[1:] != ids[:-1]
    edge[1:] |= differs
    edge[:-1] |= differs
    differs = ids[:, 1:] != ids[:, :-1]
    edge[:, 1:] |= differs
    edge[:, :-1] |= differs
    return edge


def within(edges: Tensor, others: Tensor, distance: float, void: int) -> Tensor:
    """Two (H, W) -> (H, W) bool: which boundary pixels have one of their class in `others` in reach.

    Args:
        edges: Class ids of boundary pixels, `void` elsewhere.
        others: The same for the other boundaries.
        distance: Reach in pixels, Euclidean.
        void: Id of all pixels that are not on a boundary.
    """
    reach = math.floor(distance)
    edges, others = edges.to(torch.int16), F.pad(others.to(torch.int16), [reach] * 4, value=void)
    candidates = torch.isin(edges, others[others != void].unique())
    if candidates.count_nonzero() > DENSE * candidates.numel():
        return within_by_image(edges, others, distance) & candidates
    matched = torch.zeros_like(candidates)
    matched[candidates] = within_by_pixel(edges, others, candidates, distance)
    return matched


def within_by_image(edges: Tensor, others: Tensor, distance: float) -> Tensor:
    """(H, W) and the others (H + 2 r, W + 2 r) -> (H, W) bool: compares whole images, one per neighbor."""
    height, width = edges.shape
    matched = torch.zeros_like(edges, dtype=torch.bool)
    is_equal = torch.empty_like(matched)
    for row, column in steps_within(distance).tolist():
        torch.eq(edges, others[row : row + height, column : column + width], out=is_equal)
        matched |= is_equal
    return matched


def within_by_pixel(edges: Tensor, others: Tensor, candidates: Tensor, distance: float) -> Tensor:
    """As `within_by_image`, but for the N candidates alone -> (N,) bool.

    Neighbors are compared from the nearest on. Pixels that have found one drop out, so most are compared only
    a few times.
    """
    flat, wanted = others.flatten(), edges[candidates]
    rows, columns = candidates.nonzero(as_tuple=True)
    places = rows * others.shape[1] + columns
    rows, columns = steps_within(distance).to(edges.device).unbind(1)
    offsets = rows * others.shape[1] + columns
    missing = torch.arange(len(places), device=edges.device)
    hit = torch.zeros(len(places), dtype=torch.bool, device=edges.device)
    start, step = 0, 1
    while start < len(offsets) and len(missing):
        seen = flat[places[missing, None] + offsets[start : start + step]]  # (N, step)
        is_hit = (seen == wanted[missing, None]).any(1)
        hit[missing[is_hit]] = True
        missing = missing[~is_hit]
        start += step
        step = max(1, min(2 * step, COMPARED_AT_ONCE // max(1, len(missing))))
    return hit


def steps_within(distance: float) -> Tensor:
    """-> (steps, 2): rows and columns from the corner of the square around a pixel to all within `distance`."""
    reach = math.floor(distance)
    square = torch.cartesian_prod(*[torch.arange(2 * reach + 1)] * 2)
    lengths = (square - reach).square().sum(1)
    inside = lengths <= distance**2
    return square[inside][lengths[inside].argsort(stable=True)]


def boundary(ids: Tensor, radius: int) -> Tensor:
    """(H, W) -> (H, W) bool: whether another id or the image border is within `radius` rows and columns."""
    padded = F.pad(ids.to(torch.int16), [radius] * 4, value=-1)
    lowest, highest = padded, padded
    for axis in (-2, -1):
        lowest = running(torch.minimum, lowest, 2 * radius + 1, axis)
        highest = running(torch.maximum, highest, 2 * radius + 1, axis)
    return lowest != highest


def running(combine: Callable[[Tensor, Tensor], Tensor], values: Tensor, length: int, axis: int) -> Tensor:
    """(..., N, ...) -> (..., N - length + 1, ...): running minimum or maximum, in log2(length) steps."""
    covered = 1
    while covered < length:
        shift = min(covered, length - covered)
        kept = values.shape[axis] - shift
        values = combine(values.narrow(axis, 0, kept), values.narrow(axis, shift, kept))
        covered += shift
    return values


def add_boundaries(scores: dict[str, Any], *boundaries: dict[str, Any]) -> None:
    """Adds what `compute` of boundary scores returned to that of `ConfusionMatrix`, in place."""
    for computed in boundaries:
        for name, value in computed.items():
            if not name.startswith(PER_CLASS):
                scores[name] = value
                continue
            for row, score in zip(scores["per_class"], value, strict=True):
                row[name.removeprefix(PER_CLASS)] = score
