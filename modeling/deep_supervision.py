"""Losses of volumes whose logits have the resolution of the labels, and of coarser ones (deep supervision).

Legend: B batch, K classes, D, H, W slices, rows and columns, d, h, w those of coarser logits.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .losses import check_shapes, segmentation_loss


def deep_supervision_loss(
    outputs: Sequence[Tensor], labels: Tensor, weights: Sequence[float], **options: Any
) -> Tensor:
    """Logits (B, K, d, h, w), fine to coarse, and labels (B, D, H, W) -> scalar, the weighted sum of their losses.

    Args:
        outputs: Logits, of which the first have the size of the labels; targets of the others are the nearest labels.
        labels: Class ids.
        weights: Weight of each output.
        **options: Of `segmentation_loss`.

    Raises:
        ValueError: If shapes or labels are wrong.
    """
    check_shapes(outputs[0], labels)
    losses = [
        segmentation_loss(logits, nearest_labels(labels, logits.shape[2:]), **options) for logits in outputs
    ]
    return sum(weight * loss for weight, loss in zip(weights, losses, strict=True))


def nearest_labels(labels: Tensor, size: Sequence[int]) -> Tensor:
    """(B, D, H, W) -> (B, d, h, w): the label at the center of each coarser cell, after it where there are two."""
    for axis, count in enumerate(size, start=1):
        centers = (2 * torch.arange(count, device=labels.device) + 1) * labels.shape[axis] // (2 * count)
        labels = labels.index_select(axis, centers)
    return labels
