"""Scores of semantic segmentation, from one confusion matrix that stays on the device.

Pixels labeled `ignore_index`, or -100 (Trainer's padding), are not counted. A class is left out of a mean if
its score is 0/0: IoU and Dice (F1) if it occurs in neither labels nor prediction, accuracy (recall) if not in
the labels, precision if not in the prediction. A class that is predicted but never labeled has IoU 0 and
counts. mmsegmentation and `evaluate` define the means in the same way.

Legend: B batch, H, W image axes, K classes; `ids` are integer class ids.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .label_maps import default_ignore_index
from .logits_to_masks import upsampled_argmax
from .plain_text import markdown_table, markdown_text

PADDING = -100
PIXELS_AT_ONCE = 1 << 22
# Mean -> score of a class in `per_class`, and its column in tables.
COLUMNS = {
    "mean_iou": ("iou", "IoU %"),
    "mean_accuracy": ("accuracy", "accuracy %"),
    "mean_precision": ("precision", "precision %"),
    "mean_dice": ("dice", "Dice %"),
    "boundary_iou": ("boundary_iou", "boundary IoU %"),
    "boundary_f": ("boundary_f", "boundary F %"),
}


class ConfusionMatrix:
    """Pixel counts of (label, predicted class) pairs over any number of images, and their scores.

    Matrices of different images or processes can be added with `+`.

    Args:
        num_labels: Number of classes.
        ignore_index: Label of pixels that are not counted. Default: 255, or 65535 where 255 is a class.
        device: Initial device of the matrix; `update` moves it to that of the labels. Default: the CPU.

    Attributes:
        matrix: (K, K) int64 pixel counts; rows are labels, columns predictions.
    """

    def __init__(
        self, num_labels: int, ignore_index: int | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self.num_labels = num_labels
        self.ignore_index = default_ignore_index(num_labels) if ignore_index is None else ignore_index
        self.matrix = torch.zeros(num_labels, num_labels, dtype=torch.int64, device=device)

    def update(self, prediction: Tensor | np.ndarray, labels: Tensor | np.ndarray) -> None:
        """Adds the pixels of one image or a batch.

        Args:
            prediction: Predicted class ids (..., H, W).
            labels: Class ids (..., H, W) of the same shape.

        Raises:
            ValueError: If shapes differ, a type is not an integer, or an id is neither a class nor ignored.
        """
        prediction, labels = as_equal_ids(prediction, labels)
        self.matrix = self.matrix.to(labels.device)
        counted = is_counted(labels, self.ignore_index)
        check_ids(prediction, counted, self.num_labels, "predictions")
        check_ids(labels, counted, self.num_labels, "labels")
        # The loop bounds the memory of the int64 pair ids.
        flat = (ids.flatten().split(PIXELS_AT_ONCE) for ids in (prediction, labels, counted))
        for some_prediction, some_labels, some_counted in zip(*flat, strict=True):
            pairs = some_labels.long() * self.num_labels + some_prediction
            counts = count_ids(pairs, some_counted, self.num_labels**2)
            self.matrix = self.matrix + counts.view_as(self.matrix)  # not in place: see `counts`

    @property
    def counts(self) -> Tensor:
        """The matrix, under the name that the counts of all scores have. Updates replace the tensor."""
        return self.matrix

    @counts.setter
    def counts(self, counts: Tensor) -> None:
        self.matrix = counts

    def add(self, counts: Tensor) -> None:
        """Adds pixel counts (K, K)."""
        self.matrix = self.matrix.to(counts.device) + counts

    def __add__(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        if (self.num_labels, self.ignore_index) != (other.num_labels, other.ignore_index):
            raise ValueError(
                f"cannot add confusion matrices of {self.num_labels} classes (ignored: {self.ignore_index}) "
                f"and {other.num_labels} classes (ignored: {other.ignore_index}). "
                "Build both with the same num_labels and ignore_index."
            )
        return self._with(self.matrix + other.matrix.to(self.matrix.device))

    def reduced(self, reduce: Callable[[Tensor], Tensor]) -> "ConfusionMatrix":
        """Returns the sum over processes; this matrix keeps its own counts.

        Args:
            reduce: Sums a tensor over all processes, such as `accelerator.reduce`.
        """
        return self._with(reduce(self.matrix.clone()))

    def compute(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Computes the scores of all pixels so far.

        Args:
            names: One name per class. Default: the class ids.

        Returns:
            `mean_iou`, `mean_accuracy`, `mean_precision`, `mean_dice` and `pixel_accuracy`, from 0 to 1, and
            `per_class`, a list of dicts with `name`, `iou`, `accuracy`, `precision`, `dice` (NaN for 0/0) and
            `support`, the number of labeled pixels.

        Raises:
            ValueError: If the number of names is not that of the classes.
        """
        matrix = self.matrix.cpu().double()
        hits, labeled, predicted = matrix.diag(), matrix.sum(1), matrix.sum(0)
        columns = {
            "iou": hits / (labeled + predicted - hits),  # 0/0 is NaN
            "accuracy": hits / labeled,  # which is the recall
            "precision": hits / predicted,
            "dice": 2 * hits / (labeled + predicted),  # which is F1
        }
        scores = {f"mean_{name}": shares.nanmean().item() for name, shares in columns.items()}
        scores["pixel_accuracy"] = (hits.sum() / matrix.sum()).item()
        columns["support"] = self.matrix.cpu().sum(1)
        rows = zip(class_names(names, self.num_labels), *(c.tolist() for c in columns.values()), strict=True)
        scores["per_class"] = [dict(zip(("name", *columns), row, strict=True)) for row in rows]
        return scores

    def _with(self, matrix: Tensor) -> "ConfusionMatrix":
        """A matrix of the same settings with these counts."""
        other = ConfusionMatrix(self.num_labels, self.ignore_index)
        other.matrix = matrix
        return other


class TrainerScores:
    """`compute_metrics` for transformers' Trainer.

    With `batch_eval_metrics=True`, memory does not grow with the dataset. Also pass
    `preprocess_logits_for_metrics=reduce_logits` to the Trainer.

    Args:
        num_labels: Number of classes.
        ignore_index: Label of pixels that are not counted. Default: 255, or 65535 where 255 is a class.
        names: One name per class, to get the IoU of each class too.

    Attributes:
        last: All that `ConfusionMatrix.compute` returned at the end of the last evaluation.
    """

    def __init__(
        self, num_labels: int, ignore_index: int | None = None, names: Sequence[str] | None = None
    ) -> None:
        self.names = names
        self.confusion = ConfusionMatrix(num_labels, ignore_index)
        self.last: dict[str, Any] = {}

    def __call__(self, evaluation: Any, compute_result: bool = True) -> dict[str, float]:
        """Adds a batch or the whole dataset.

        Args:
            evaluation: An `EvalPrediction` of class ids (B, H, W), or of lists of such batches.
            compute_result: Whether this is the end of the evaluation. The counts then start again from zero.

        Returns:
            Empty before the end; then the means, and with names `iou_<name>` of each class that occurs.
        """
        ids = evaluation.predictions, evaluation.label_ids
        for batch in zip(*ids, strict=True) if isinstance(evaluation.label_ids, list) else [ids]:
            self.confusion.update(*batch)
        if not compute_result:
            return {}
        self.last = self.confusion.compute(self.names)
        self.confusion = ConfusionMatrix(self.confusion.num_labels, self.confusion.ignore_index)
        means = {name: value for name, value in self.last.items() if name != "per_class"}
        rows = self.last["per_class"] if self.names else []
        return means | {f"iou_{row['name']}": row["iou"] for row in rows if not math.isnan(row["iou"])}


def reduce_logits(logits: Tensor | tuple | list, labels: Tensor) -> Tensor:
    """(B, K, h, w) logits and labels (B, H, W) -> (B, H, W) int32 class ids at the size of the labels.

    For `preprocess_logits_for_metrics` of transformers' Trainer. No (B, K, H, W) tensor is ever in memory.

    Args:
        logits: The logits, or a tuple or list that begins with them.
        labels: The labels; only their size is used.
    """
    logits = logits[0] if isinstance(logits, tuple | list) else logits  # hidden states may come along
    return upsampled_argmax(logits, tuple(labels.shape[-2:])).to(torch.int32)  # NCCL gathers no int16


def as_equal_ids(prediction: Tensor | np.ndarray, labels: Tensor | np.ndarray) -> tuple[Tensor, Tensor]:
    """Both as integer tensors on the prediction's device. Raises ValueError if shapes or types do not fit."""
    prediction, labels = torch.as_tensor(prediction), torch.as_tensor(labels)
    if prediction.shape != labels.shape or labels.ndim < 2:
        raise ValueError(
            f"predictions of shape {tuple(prediction.shape)} and labels of shape {tuple(labels.shape)} "
            "cannot be compared. Both must be class ids of shape (H, W) or (B, H, W); "
            "resize logits to the labels' size and take the argmax."
        )
    if prediction.is_floating_point() or labels.is_floating_point():
        raise ValueError(
            f"predictions are {prediction.dtype} and labels are {labels.dtype}; both must be integer "
            "class ids. Take the argmax of logits over the classes first."
        )
    # Unsigned types would wrap a negative ignore index, and some have no arithmetic in torch.
    prediction, labels = (ids if ids.dtype == torch.int64 else ids.int() for ids in (prediction, labels))
    return prediction, labels.to(prediction.device)


def is_counted(labels: Tensor, ignore_index: int) -> Tensor:
    """(...) -> (...) bool: neither ignored nor padding."""
    return (labels != ignore_index) & (labels != PADDING)


def check_ids(ids: Tensor, counted: Tensor, num_labels: int, what: str) -> None:
    """Raises ValueError if a counted pixel has a class id outside 0..num_labels-1."""
    wrong = counted & ((ids < 0) | (ids >= num_labels))
    if wrong.any():
        values, pixels = ids[wrong].unique(return_counts=True)
        found = ", ".join(
            f"{v} ({n} pixels)" for v, n in zip(values.tolist()[:8], pixels.tolist()[:8], strict=True)
        )
        raise ValueError(
            f"{what} have the class ids {found}, but there are {num_labels} classes, 0..{num_labels - 1}. "
            "Set ignore_index or the label map so that every other id is ignored."
        )


def count_ids(ids: Tensor, counted: Tensor, num_ids: int) -> Tensor:
    """(...) ids and (...) bool -> (num_ids,): how often each id occurs where `counted`."""
    ids = torch.where(counted, ids.long(), num_ids)
    return torch.bincount(ids.flatten(), minlength=num_ids + 1)[:num_ids]


def class_names(names: Sequence[str] | None, num_labels: int) -> list[str]:
    """The given names, or the class ids as text."""
    if names is not None and len(names) != num_labels:
        raise ValueError(
            f"{len(names)} class names for {num_labels} classes. Pass one name per class, or none."
        )
    return list(names) if names is not None else [str(index) for index in range(num_labels)]


def scores_table(scores: dict[str, Any]) -> str:
    """Formats scores as a Markdown table: one line per class, then means.

    Args:
        scores: Result of `ConfusionMatrix.compute`; boundary scores are shown if they were added.
    """
    columns = {mean: column for mean, column in COLUMNS.items() if mean in scores}
    rows = [
        [markdown_text(r["name"]), *(percent(r[name]) for name, _ in columns.values()), f"{r['support']:,}"]
        for r in scores["per_class"]
    ]
    total = f"{sum(row['support'] for row in scores['per_class']):,}"
    rows.append(["**mean**", *(percent(scores[mean]) for mean in columns), total])
    return markdown_table(["class", *(title for _, title in columns.values()), "pixels"], rows)


def without_nan(value: Any) -> Any:
    """The same lists and dicts with None in place of NaN, as strict JSON requires."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def percent(share: float) -> str:
    """A fraction as a percentage with two decimals; a dash for NaN."""
    return "-" if math.isnan(share) else f"{100 * share:.2f}"
