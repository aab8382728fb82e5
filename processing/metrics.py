"""Scores of semantic segmentation, from one confusion matrix that stays on the device.

Pixels labelled `ignore_index`, or -100 (what Trainer pads with), are left out altogether. A class is left out of a mean
when its score is 0/0: IoU and Dice (F1) when neither labels nor prediction hold it, accuracy (recall) when the labels do
not, precision when the prediction does not. A class that is predicted but never labelled has IoU 0 and counts. This is the
practice of mmsegmentation and `evaluate`.

Boundary IoU: Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR 2021.

Legend: B batch, H, W image axes, K classes; `ids` are integer class ids. Rows of the matrix are labels, columns predictions.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .logits_to_masks import upsampled_argmax

PADDING = -100
PIXELS_AT_ONCE = 1 << 22
MEANS = {"mean_iou": "iou", "mean_accuracy": "accuracy", "mean_precision": "precision", "mean_dice": "dice"}


class ConfusionMatrix:
    """Counts of (label, predicted class) pairs over any number of images, and the scores that follow from them.

    Args:
        num_labels: Number of classes.
        ignore_index: Label of pixels that are left out.
        device: Where the matrix starts; it follows the labels.

    Attributes:
        matrix: (K, K) int64 pixel counts; rows are labels, columns predictions.
    """

    def __init__(self, num_labels: int, ignore_index: int = 255, device: torch.device | str = "cpu") -> None:
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.matrix = torch.zeros(num_labels, num_labels, dtype=torch.int64, device=device)

    def update(self, prediction: Tensor | np.ndarray, labels: Tensor | np.ndarray) -> None:
        """(..., H, W) and (..., H, W) class ids: adds their pixels, a few millions at a time."""
        prediction, labels = as_equal_ids(prediction, labels)
        self.matrix = self.matrix.to(labels.device)
        counted = is_counted(labels, self.ignore_index)
        check_ids(prediction, counted, self.num_labels, "predictions")
        check_ids(labels, counted, self.num_labels, "labels")
        # The loop bounds the memory of the int64 pair ids.
        flat = (ids.flatten().split(PIXELS_AT_ONCE) for ids in (prediction, labels, counted))
        for some_prediction, some_labels, some_counted in zip(*flat, strict=True):
            pairs = some_labels.long() * self.num_labels + some_prediction
            self.matrix += count_ids(pairs, some_counted, self.num_labels**2).view_as(self.matrix)

    def __add__(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        if (self.num_labels, self.ignore_index) != (other.num_labels, other.ignore_index):
            raise ValueError(
                f"confusion matrices of {self.num_labels} classes (ignored: {self.ignore_index}) and "
                f"{other.num_labels} classes (ignored: {other.ignore_index}) do not add up. "
                "Build both with the same num_labels and ignore_index."
            )
        return self._with(self.matrix + other.matrix.to(self.matrix.device))

    def reduced(self, reduce: Callable[[Tensor], Tensor]) -> "ConfusionMatrix":
        """The sum over processes, for example with `accelerator.reduce`; this matrix keeps its own counts."""
        return self._with(reduce(self.matrix.clone()))

    def compute(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Means as floats, and `per_class`: one row of name, iou, accuracy, precision, dice and support for each class."""
        matrix = self.matrix.cpu().double()
        hits, labelled, predicted = matrix.diag(), matrix.sum(1), matrix.sum(0)
        columns = {
            "iou": hits / (labelled + predicted - hits),  # 0/0 is NaN
            "accuracy": hits / labelled,  # which is the recall
            "precision": hits / predicted,
            "dice": 2 * hits / (labelled + predicted),  # which is F1
            "support": self.matrix.cpu().sum(1),
        }
        scores = {mean: columns[column].nanmean().item() for mean, column in MEANS.items()}
        scores["pixel_accuracy"] = (hits.sum() / matrix.sum()).item()
        rows = zip(class_names(names, self.num_labels), *(c.tolist() for c in columns.values()), strict=True)
        scores["per_class"] = [dict(zip(("name", *columns), row, strict=True)) for row in rows]
        return scores

    def _with(self, matrix: Tensor) -> "ConfusionMatrix":
        """The same kind of matrix with other counts."""
        other = ConfusionMatrix(self.num_labels, self.ignore_index)
        other.matrix = matrix
        return other


class BoundaryIoU:
    """IoU of the pixels within a distance of the class borders, pooled over images.

    The distance is `dilation_ratio` of the image diagonal, at least one pixel; the image border is a border, as in the
    authors' definition. All classes come from one pass: a pixel lies inside its class exactly when the smallest and
    the largest id of the square around it are equal, so memory and time do not grow with the number of classes.
    Ignored regions are given to the prediction as well, so that a perfect prediction scores 1.

    Args:
        num_labels: Number of classes.
        ignore_index: Label of pixels that are left out.
        dilation_ratio: The distance, as a share of the image's diagonal.
    """

    def __init__(self, num_labels: int, ignore_index: int = 255, dilation_ratio: float = 0.02) -> None:
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.dilation_ratio = dilation_ratio
        self.counts = torch.zeros(2, num_labels, dtype=torch.int64)  # intersection, sum of both

    def update(self, prediction: Tensor | np.ndarray, labels: Tensor | np.ndarray) -> None:
        """(..., H, W) and (..., H, W) class ids of whole images: adds their boundary pixels."""
        prediction, labels = as_equal_ids(prediction, labels)
        counted = is_counted(labels, self.ignore_index)
        check_ids(prediction, counted, self.num_labels, "predictions")
        check_ids(labels, counted, self.num_labels, "labels")
        radius = max(1, round(self.dilation_ratio * math.hypot(*labels.shape[-2:])))
        images = zip(
            *(ids.reshape(-1, *ids.shape[-2:]) for ids in (prediction, labels, counted)), strict=True
        )
        for predicted, labelled, valid in images:
            self.counts = self.counts.to(labels.device) + self._count(predicted, labelled, valid, radius)

    def compute(self) -> dict[str, Any]:
        """`boundary_iou`, the mean over classes that occur, and `per_class_boundary_iou`."""
        intersection, both = self.counts.cpu().double()
        per_class = intersection / (both - intersection)
        return {"boundary_iou": per_class.nanmean().item(), "per_class_boundary_iou": per_class.tolist()}

    def reduced(self, reduce: Callable[[Tensor], Tensor]) -> "BoundaryIoU":
        """The sum over processes, for example with `accelerator.reduce`; this object keeps its own counts."""
        other = BoundaryIoU(self.num_labels, self.ignore_index, self.dilation_ratio)
        other.counts = reduce(self.counts.clone())
        return other

    def _count(self, predicted: Tensor, labelled: Tensor, valid: Tensor, radius: int) -> Tensor:
        """Three (H, W) -> (2, K): boundary pixels shared by both, and the sum of each one's."""
        void = torch.full_like(labelled, self.num_labels)
        labelled, predicted = torch.where(valid, labelled, void), torch.where(valid, predicted, void)
        label_edge = valid & boundary(labelled, radius)
        predicted_edge = valid & boundary(predicted, radius)
        shared = label_edge & predicted_edge & (labelled == predicted)
        count = self.num_labels
        both = count_ids(labelled, label_edge, count) + count_ids(predicted, predicted_edge, count)
        return torch.stack([count_ids(labelled, shared, count), both])


class TrainerScores:
    """`compute_metrics` for transformers' Trainer; with `batch_eval_metrics=True` its memory does not grow.

    Pass `preprocess_logits_for_metrics=reduce_logits` as well. Scores are flat: the means, and `iou_<name>` when names
    are given. Classes that never occur are left out. `last` has all that `ConfusionMatrix.compute` gave at the end of the
    last evaluation.

    Args:
        num_labels: Number of classes.
        ignore_index: Label of pixels that are left out.
        names: Class names, to get a score of each class.
    """

    def __init__(self, num_labels: int, ignore_index: int = 255, names: Sequence[str] | None = None) -> None:
        self.names = names
        self.confusion = ConfusionMatrix(num_labels, ignore_index)
        self.last: dict[str, Any] = {}

    def __call__(self, evaluation: Any, compute_result: bool = True) -> dict[str, float]:
        """Adds a batch (or the whole set); the scores, and a fresh start, when `compute_result`."""
        self.confusion.update(evaluation.predictions, evaluation.label_ids)
        if not compute_result:
            return {}
        self.last = self.confusion.compute(self.names)
        self.confusion = ConfusionMatrix(self.confusion.num_labels, self.confusion.ignore_index)
        means = {name: value for name, value in self.last.items() if name != "per_class"}
        rows = self.last["per_class"] if self.names else []
        return means | {f"iou_{row['name']}": row["iou"] for row in rows if not math.isnan(row["iou"])}


def reduce_logits(logits: Tensor | tuple | list, labels: Tensor) -> Tensor:
    """(B, K, h, w) and labels (B, H, W) -> (B, H, W) int32 class ids, for `preprocess_logits_for_metrics`.

    Resizes a few classes at a time under a running maximum, so that no (B, K, H, W) tensor exists.
    """
    logits = logits[0] if isinstance(logits, tuple | list) else logits  # hidden states may come along
    return upsampled_argmax(logits, tuple(labels.shape[-2:])).to(torch.int32)  # NCCL gathers no int16


def as_equal_ids(prediction: Tensor | np.ndarray, labels: Tensor | np.ndarray) -> tuple[Tensor, Tensor]:
    """Both as integer tensors on the prediction's device; their shapes must be equal."""
    prediction, labels = torch.as_tensor(prediction), torch.as_tensor(labels)
    if prediction.shape != labels.shape or labels.ndim < 2:
        raise ValueError(
            f"predictions of shape {tuple(prediction.shape)} and labels of shape {tuple(labels.shape)} cannot be compared. "
            "Both must be class ids of shape (H, W) or (B, H, W); resize logits to the labels' size and take the argmax."
        )
    if prediction.is_floating_point() or labels.is_floating_point():
        raise ValueError(
            f"predictions are {prediction.dtype} and labels {labels.dtype}; both must be integer class ids. "
            "Take the argmax of logits over the classes first."
        )
    # Unsigned types would wrap a negative ignore index, and some have no arithmetic in torch.
    prediction, labels = (ids if ids.dtype == torch.int64 else ids.int() for ids in (prediction, labels))
    return prediction, labels.to(prediction.device)


def is_counted(labels: Tensor, ignore_index: int) -> Tensor:
    """(...) -> (...) bool: neither ignored nor padding."""
    return (labels != ignore_index) & (labels != PADDING)


def check_ids(ids: Tensor, counted: Tensor, num_labels: int, what: str) -> None:
    """Raises on the first class id outside 0..num_labels-1 among the counted pixels."""
    wrong = counted & ((ids < 0) | (ids >= num_labels))
    if wrong.any():
        values, pixels = ids[wrong].unique(return_counts=True)
        found = ", ".join(
            f"{v} ({n} pixels)" for v, n in zip(values.tolist()[:8], pixels.tolist()[:8], strict=True)
        )
        raise ValueError(
            f"{what} hold the class ids {found}, but there are {num_labels} classes, 0..{num_labels - 1}. "
            "Set ignore_index or the label map so that every other id is ignored."
        )


def count_ids(ids: Tensor, counted: Tensor, num_ids: int) -> Tensor:
    """(...) ids and (...) bool -> (num_ids,): how often each id occurs where counted."""
    ids = torch.where(counted, ids.long(), num_ids)
    return torch.bincount(ids.flatten(), minlength=num_ids + 1)[:num_ids]


def boundary(ids: Tensor, radius: int) -> Tensor:
    """(H, W) -> (H, W) bool: some pixel within `radius` rows and columns has another id or is outside the image."""
    padded = F.pad(ids.to(torch.int16), [radius] * 4, value=-1)
    lowest, highest = padded, padded
    for axis in (-2, -1):
        lowest = running(torch.minimum, lowest, 2 * radius + 1, axis)
        highest = running(torch.maximum, highest, 2 * radius + 1, axis)
    return lowest != highest


def running(combine: Callable[[Tensor, Tensor], Tensor], values: Tensor, length: int, axis: int) -> Tensor:
    """(..., N, ...) -> (..., N - length + 1, ...): minimum or maximum of every `length` neighbours, in log2(length) steps."""
    covered = 1
    while covered < length:
        shift = min(covered, length - covered)
        kept = values.shape[axis] - shift
        values = combine(values.narrow(axis, 0, kept), values.narrow(axis, shift, kept))
        covered += shift
    return values


def class_names(names: Sequence[str] | None, num_labels: int) -> list[str]:
    """The given names, or the class ids as text."""
    if names is not None and len(names) != num_labels:
        raise ValueError(
            f"{len(names)} class names for {num_labels} classes. Pass one name for each class, or none."
        )
    return list(names) if names is not None else [str(index) for index in range(num_labels)]


def scores_table(scores: dict[str, Any]) -> str:
    """The result of `ConfusionMatrix.compute` as a Markdown table, one line for each class, then the means."""
    rows = [
        [r["name"], *(percent(r[c]) for c in MEANS.values()), f"{r['support']:,}"]
        for r in scores["per_class"]
    ]
    total = f"{sum(row['support'] for row in scores['per_class']):,}"
    rows.append(["**mean**", *(percent(scores[mean]) for mean in MEANS), total])
    header = ["class", "IoU %", "accuracy %", "precision %", "Dice %", "pixels"]
    widths = [max(len(line[column]) for line in [header, *rows]) for column in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    aligned = [
        [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
        for line in [header, rule, *rows]
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in aligned)


def without_nan(value: Any) -> Any:
    """The same lists and dicts with None in place of NaN."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def percent(share: float) -> str:
    """A share as a percentage with two digits; a dash for NaN."""
    return "-" if math.isnan(share) else f"{100 * share:.2f}"
