"""Label smoothing of Trainer for maps of classes: Trainer's own takes the last axis, the width, for the classes.

Legend: B batch, K classes, h, w cells of the logits, H, W pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..modeling.loss_operators import label_likelihood


def smoothed_loss(loss: Tensor, logits: Tensor, labels: Tensor, factor: float, ignore_index: int) -> Tensor:
    """Mixes a loss with the cross-entropy towards equal probabilities of all classes.

    For a loss that is the mean cross-entropy this is `torch.nn.CrossEntropyLoss(label_smoothing=factor)`; other
    terms of a loss, such as that of an auxiliary head, keep the share 1 - factor.

    Args:
        loss: Scalar, the loss of the model.
        logits: Logits (B, K, h, w) of the model, at any stride.
        labels: Class ids (B, H, W).
        factor: Share of the uniform distribution, from 0 to 1.
        ignore_index: Label of pixels that are not counted.

    Returns:
        The smoothed loss, a scalar.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.float()
        is_labeled = labels != ignore_index
        _, log_normalizer = label_likelihood(logits, torch.where(is_labeled, labels, 0))
        mean_logit = F.interpolate(logits.mean(1, keepdim=True), size=labels.shape[-2:], mode="bilinear")[
            :, 0
        ]
        uniform = torch.where(is_labeled, log_normalizer - mean_logit, 0).sum() / is_labeled.sum().clamp(
            min=1
        )
    return (1 - factor) * loss + factor * uniform
