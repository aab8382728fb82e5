"""Losses of volumes whose logits have the resolution of the labels, and of coarser ones (deep supervision).

Legend: B batch, K classes, D, H, W slices, rows and columns, d, h, w those of coarser logits.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .losses import parse_terms, segmentation_loss

IN_PLANES = ("boundary",)  # terms that look at neighbors, which rows of a folded volume do not have


def check_volume_terms(terms: str) -> None:
    """Raises ValueError for a loss term that is defined for images only."""
    for _, name in parse_terms(terms):
        if name in IN_PLANES:
            raise ValueError(f"the loss '{name}' is for images only. Leave it out of loss='{terms}'.")


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
    check_volume_labels(outputs[0], labels)
    losses = [volume_loss(logits, nearest_labels(labels, logits.shape[2:]), **options) for logits in outputs]
    return sum(weight * loss for weight, loss in zip(weights, losses, strict=True))


def check_volume_labels(logits: Tensor, labels: Tensor) -> None:
    """(B, K, D, H, W), (B, D, H, W). Raises ValueError unless the labels have this shape."""
    wanted, found = (logits.shape[0], *logits.shape[2:]), tuple(labels.shape)
    if found != tuple(wanted):
        raise ValueError(
            f"labels are {found}, but must be {tuple(wanted)}, one class id per voxel of the volumes. Remove a channel axis "
            "with labels.squeeze(1)."
        )


def nearest_labels(labels: Tensor, size: Sequence[int]) -> Tensor:
    """(B, D, H, W) -> (B, d, h, w): the label at the center of each coarser cell, after it where there are two."""
    for axis, count in enumerate(size, start=1):
        centers = (2 * torch.arange(count, device=labels.device) + 1) * labels.shape[axis] // (2 * count)
        labels = labels.index_select(axis, centers)
    return labels


def volume_loss(logits: Tensor, labels: Tensor, **options: Any) -> Tensor:
    """(B, K, D, H, W), (B, D, H, W) -> scalar: the loss of the volume as an image of all its rows.

    Without interpolation, the terms are sums over voxels in any order.
    """
    return segmentation_loss(logits.flatten(2, 3), labels.flatten(1, 2), **options)
