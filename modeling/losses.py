"""Segmentation losses of logits at the decoder's stride against labels at image size.

Every loss is that of the bilinearly enlarged logits, in float32 and over labelled pixels only, yet the enlarged
(B, K, H, W) tensor never exists: the terms read maps of one number a pixel, which the operators make piece by piece.

Legend: B batch, K classes, (h, w) grid of the logits, (H, W) image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

import torch
import torch.nn.functional as F
from torch import Tensor

from .loss_operators import class_loss, label_likelihood

FOCAL_GAMMA = 2.0  # Lin et al. 2017
BOUNDARY_RADIUS = 3  # pixels on either side of a boundary


def check_labels(labels: Tensor, num_labels: int, ignore_index: int) -> None:
    """(B, H, W): every label must be a class or the ignore index, before a gather meets it.

    Costs one synchronisation on an accelerator. Skipped while torch compiles or exports: a graph cannot raise.
    """
    if torch.compiler.is_compiling():
        return
    wrong = ((labels < 0) | (labels >= num_labels)) & (labels != ignore_index)
    if not wrong.any():
        return
    values, counts = labels[wrong].unique(return_counts=True)
    found = ", ".join(
        f"{value} ({count} pixels)" for value, count in zip(values[:8], counts[:8], strict=True)
    )
    more = f" and {len(values) - 8} more values" if len(values) > 8 else ""
    raise ValueError(
        f"labels hold {found}{more}, but the classes are 0..{num_labels - 1} and the ignore index is {ignore_index}. "
        f"Map these ids to a class or to {ignore_index} (label_map of the image processor), or give the model more labels."
    )


def check_shapes(logits: Tensor, labels: Tensor) -> None:
    """(B, K, h, w) and integers (B, H, W) are required."""
    if logits.ndim != 4:
        raise ValueError(f"logits are {tuple(logits.shape)}, but must be (batch, num_labels, height, width).")
    if labels.ndim != 3 or labels.shape[0] != logits.shape[0]:
        raise ValueError(
            f"labels are {tuple(labels.shape)}, but must be ({logits.shape[0]}, height, width), one class id a pixel. "
            "Remove a channel axis by labels.squeeze(1); turn one-hot masks into ids by argmax(1)."
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels are {labels.dtype}, but must be class ids: pass labels.long().")


@dataclass(frozen=True)
class Pixels:
    """What the terms read: the logits, and for every pixel of the image what `label_likelihood` found."""

    logits: Tensor  # (B, K, h, w)
    labels: Tensor  # (B, H, W), 0 where ignored
    is_labelled: Tensor  # (B, H, W)
    weight: Tensor  # (B, H, W), 0 where ignored
    log_likelihood: Tensor  # (B, H, W), 0 where ignored
    log_normalizer: Tensor  # (B, H, W)
    count: Tensor  # (), what the mean divides by

    def mean(self, values: Tensor) -> Tensor:
        """(B, H, W) -> (): the weighted mean, 0 where nothing counts."""
        return (self.weight * values).sum() / torch.where(self.count > 0, self.count, 1)


def cross_entropy(pixels: Pixels) -> Tensor:
    """Negative log-likelihood of the label."""
    return -pixels.mean(pixels.log_likelihood)


def focal(pixels: Pixels, gamma: float = FOCAL_GAMMA) -> Tensor:
    """Cross-entropy that fades for pixels already right, (1 - p)^gamma (Lin et al. 2017, arXiv:1708.02002, eq. 4)."""
    doubt = -torch.expm1(pixels.log_likelihood)
    return -pixels.mean(doubt.pow(gamma) * pixels.log_likelihood)


def boundary(pixels: Pixels) -> Tensor:
    """Mean cross-entropy of the pixels near a boundary, whatever the reduction.

    U-Net's extra weight near borders (Ronneberger et al. 2015, arXiv:1505.04597, eq. 2) as a band, as Boundary IoU takes
    it (Cheng et al. 2021, arXiv:2103.16562): labelled pixels with another label at most BOUNDARY_RADIUS rows and columns
    away. Edges of the image and of ignored regions are no boundaries.
    """
    band = torch.where(near_boundary(pixels), pixels.weight, 0)
    return cross_entropy(replace(pixels, weight=band, count=band.sum()))


def near_boundary(pixels: Pixels) -> Tensor:
    """-> (B, H, W): labelled pixels whose neighbourhood holds more than one label."""
    labels, size = pixels.labels.float(), 2 * BOUNDARY_RADIUS + 1
    highest, negated_lowest = (
        F.max_pool2d(torch.where(pixels.is_labelled, signed, -torch.inf), size, 1, BOUNDARY_RADIUS)
        for signed in (labels, -labels)
    )
    return pixels.is_labelled & (highest != -negated_lowest)


def dice(pixels: Pixels) -> Tensor:
    """Soft Dice loss (Milletari et al. 2016, arXiv:1606.04797, with plain sums below), over the batch as in nnU-Net.

    Mean over the classes present, as for the Lovasz loss: of 150 classes a batch lacks most, and their Dice, 0 for any
    probability above 0, would only add a constant.
    """
    return class_loss(pixels.logits, pixels.log_normalizer, pixels.labels, pixels.is_labelled, "dice")[0]


def lovasz(pixels: Pixels) -> Tensor:
    """Lovasz-softmax, the convex surrogate of the mean IoU (Berman et al. 2018, arXiv:1705.08790), over the batch."""
    return class_loss(pixels.logits, pixels.log_normalizer, pixels.labels, pixels.is_labelled, "lovasz")[0]


LOSS_TERMS: dict[str, Callable[[Pixels], Tensor]] = {
    "cross_entropy": cross_entropy,
    "dice": dice,
    "focal": focal,
    "lovasz": lovasz,
    "boundary": boundary,
}


def parse_terms(terms: str) -> list[tuple[float, str]]:
    """ "cross_entropy+0.5*dice" -> [(1.0, "cross_entropy"), (0.5, "dice")]."""
    parsed = []
    for term in terms.split("+"):
        factor, _, name = (part.strip() for part in term.rpartition("*"))
        if name not in LOSS_TERMS:
            close = "".join(
                f", did you mean '{known}'?" for known in get_close_matches(name, LOSS_TERMS, n=1)
            )
            raise ValueError(
                f"no loss '{name}' in '{terms}'{close or '.'} Join by '+' any of: {', '.join(LOSS_TERMS)}."
            )
        try:
            parsed.append((float(factor or 1), name))
        except ValueError:
            raise ValueError(f"'{factor}' in '{terms}' is no number. Write e.g. '0.5*{name}'.") from None
    return parsed


def pixel_weights(labels: Tensor, logits: Tensor, class_weights: Sequence[float] | Tensor | None) -> Tensor:
    """(B, H, W) -> (B, H, W): the weight of each pixel's class."""
    if class_weights is None:
        return torch.ones_like(labels, dtype=logits.dtype)
    weights = torch.as_tensor(class_weights, dtype=logits.dtype, device=logits.device)
    if weights.shape != logits.shape[1:2]:
        raise ValueError(f"{weights.numel()} class_weights for {logits.shape[1]} labels. Give one for each.")
    return weights[labels]


def segmentation_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    terms: str = "cross_entropy",
    ignore_index: int = 255,
    class_weights: Sequence[float] | Tensor | None = None,
    reduction: str = "valid",
) -> Tensor:
    """(B, K, h, w), (B, H, W) -> (): sum of the `terms`, e.g. "cross_entropy+0.5*dice".

    class_weights weigh the pixels of cross_entropy, focal and boundary. Their mean is the weighted one over labelled
    pixels ("valid") or, for the first two, over all pixels with ignored ones counting 0 ("all", as mmsegmentation does).
    A batch without a labelled pixel has loss 0 and zero gradients.
    """
    if reduction not in ("valid", "all"):
        raise ValueError(f"no reduction '{reduction}'. Known: 'valid', 'all'.")
    check_shapes(logits, labels)
    labels, factors = labels.long(), parse_terms(terms)
    check_labels(labels, logits.shape[1], ignore_index)
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        is_labelled = labels != ignore_index
        labels = torch.where(is_labelled, labels, 0)
        log_likelihood, log_normalizer = label_likelihood(logits, labels)
        log_likelihood = torch.where(is_labelled, log_likelihood, 0)
        weight = pixel_weights(labels, logits, class_weights) * is_labelled
        count = weight.sum() if reduction == "valid" else torch.ones_like(weight).sum()
        pixels = Pixels(logits, labels, is_labelled, weight, log_likelihood, log_normalizer, count)
        return sum(factor * LOSS_TERMS[name](pixels) for factor, name in factors)


__all__ = ["LOSS_TERMS", "check_labels", "parse_terms", "segmentation_loss"]
