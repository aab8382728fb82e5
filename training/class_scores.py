"""Scores of a classifier: top-1 and top-5 accuracy, cross-entropy, and top-1 accuracy per class.

Legend: B batch, K classes.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from transformers import PreTrainedModel

from .models import class_names


@torch.inference_mode()
def score_classes(
    model: PreTrainedModel, images: Iterable[dict[str, Any]], accelerator: Accelerator
) -> dict[str, Any]:
    """Scores a classifier on the images of all processes.

    Args:
        model: The classifier; it is left in the mode (training or evaluation) in which it was passed.
        images: Batches {"pixel_values" (B, C, H, W), "labels" (B,)} of this process.
        accelerator: Gathers the outcomes of all processes.

    Returns:
        `top_1`, `top_5` (in 0..1), `val_loss`, `images`, and `per_class`; NaN where there are no images.
    """
    was_training = model.training
    model.eval()
    names = class_names(model)
    rows: list[list[float]] = []
    for batch in images:
        labels = batch["labels"].to(accelerator.device)
        logits = model(pixel_values=batch["pixel_values"].to(accelerator.device)).logits
        rows += outcomes(logits.float(), labels).tolist()
    model.train(was_training)
    return scores_of(sums_by_class(gather_object(rows), len(names)), names)


def outcomes(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, K), (B,) -> (B, 5): per image its label, 1, whether top-1 and top-5 are right, and the loss."""
    ranked = logits.topk(min(5, logits.shape[1])).indices
    hits = ranked == labels[:, None]
    losses = F.cross_entropy(logits, labels, reduction="none").double()
    return torch.stack([labels, torch.ones_like(losses), hits[:, 0], hits.any(1), losses], dim=1)


def sums_by_class(rows: Sequence[Sequence[float]], num_labels: int) -> Tensor:
    """Rows of `outcomes` -> (4, K), their sums by label, which do not depend on the order: `fsum` rounds once."""
    of_class: list[list[Sequence[float]]] = [[] for _ in range(num_labels)]
    for label, *values in rows:
        of_class[int(label)].append(values)
    sums = [[math.fsum(column) for column in zip(*values, strict=True)] or [0.0] * 4 for values in of_class]
    return torch.tensor(sums, dtype=torch.float64).T


def scores_of(sums: Tensor, names: list[str]) -> dict[str, Any]:
    """(4, K) sums of `outcomes` by class -> scores; NaN for a class without images."""
    images, first, among_five, loss = (sums.sum(1) / max(1.0, sums[0].sum().item())).tolist()
    has_images = images > 0
    rows = sums.T.tolist()
    return {
        "top_1": first if has_images else math.nan,
        "top_5": among_five if has_images else math.nan,
        "val_loss": loss if has_images else math.nan,
        "images": int(sums[0].sum()),
        "per_class": [
            {"name": name, "images": int(count), "top_1": hits / count if count else math.nan}
            for name, (count, hits, _, _) in zip(names, rows, strict=True)
        ],
    }
