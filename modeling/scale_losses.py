"""Losses between the logits of a local crop and those of its context, of which the crop is the center (Perron et al.,
"Adapting Vision Transformers to Ultra-High Resolution Semantic Segmentation with Relay Tokens", 2026).

As in the authors' code, the context is compared within the footprint of the local crop only, and a mean is over
all its cells: those that are not labeled count as 0.

Legend: B batch, K labels, s side of both crops, r context ratio, n side of the footprint in the context, s / r.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .upsampling import upsample


def center(images: Tensor, height: int, width: int) -> Tensor:
    """(B, ..., H, W) -> (B, ..., height, width); the odd row or column is cut at the end."""
    top, left = (images.shape[-2] - height) // 2, (images.shape[-1] - width) // 2
    return images[..., top : top + height, left : left + width]


def class_shares(labels: Tensor, num_labels: int, ratio: int, ignore_index: int) -> Tensor:
    """(B, s, s) -> (B, K, n, n): share of each class in blocks of r x r labels; 0 where one is ignored."""
    height, width = (side // ratio for side in labels.shape[1:])
    blocks = labels[:, : height * ratio, : width * ratio].unflatten(1, (height, ratio))
    blocks = blocks.unflatten(3, (width, ratio)).permute(0, 2, 4, 1, 3).flatten(1, 2)  # (B, r r, n, n)
    classes = torch.arange(num_labels, device=labels.device)[:, None, None]
    shares = sum((part[:, None] == classes).float() for part in blocks.unbind(1)) / ratio**2
    return shares * (blocks != ignore_index).all(1, keepdim=True)


def soft_cross_entropy(logits: Tensor, shares: Tensor) -> Tensor:
    """(B, K, n, n) twice -> scalar, the cross-entropy with target distributions, averaged over all cells."""
    return -(shares * logits.log_softmax(1)).sum(1).mean()


class ScaleLosses(NamedTuple):
    """Two scalars: the loss of the context's logits, and that between them and the local ones."""

    context: Tensor
    consistency: Tensor


def scale_losses(
    local_logits: Tensor,
    context_logits: Tensor,
    labels: Tensor,
    *,
    ratio: int,
    ignore_index: int = 255,
    detach_consistency: bool = False,
    overlap: float = 0.0,
) -> ScaleLosses:
    """(B, K, h, w) twice, (B, s, s) -> two scalars, both 0 if no pixel is labeled.

    Args:
        local_logits: Logits of the local crops, at any stride.
        context_logits: Logits of the contexts, at the same stride.
        labels: Class ids of the local crops.
        ratio: Sides of a pixel of the context over those of a local one.
        ignore_index: Label of pixels without a class. They count in the consistency, as in the authors' code.
        detach_consistency: Whether the consistency has no gradient to the local logits, its target.
        overlap: Share of the crop's side that is cut off before, half on each side.
    """
    size = labels.shape[1:]
    kept = [side - int(side * (1 - (1 - overlap))) for side in size]  # rounded as by the authors
    cells = [side // ratio for side in kept]
    local = upsample(local_logits.float(), size)
    sides = zip(size, local_logits.shape[2:], context_logits.shape[2:], strict=True)
    context = upsample(context_logits.float(), [side * wide // sharp for side, sharp, wide in sides])
    local, context, labels = center(local, *kept), center(context, *cells), center(labels, *kept)
    if 0 in cells:  # a crop smaller than one cell of its context
        nothing = 0 * (local.sum() + context_logits.float().sum())
        return ScaleLosses(nothing, nothing)
    target = F.avg_pool2d(local.softmax(1), ratio)
    consistency = soft_cross_entropy(context, target.detach() if detach_consistency else target)
    return ScaleLosses(
        soft_cross_entropy(context, class_shares(labels, context.shape[1], ratio, ignore_index)),
        torch.where((labels != ignore_index).any(), consistency, 0.0),
    )


__all__ = ["ScaleLosses", "center", "class_shares", "scale_losses", "soft_cross_entropy"]
