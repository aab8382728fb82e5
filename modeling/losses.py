"""Segmentation losses between logits at the decoder's stride and labels at image size.

Every loss equals that of the linearly upsampled logits, in float32 and over labeled pixels only, but the
upsampled (B, K, G...) tensor is never stored: the terms read maps with one value per pixel, which the
operators compute in blocks.

Legend: B batch, K classes, g... axes of the logits, G... those of the image or volume.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

import torch
import torch.nn.functional as F
from torch import Tensor

from .loss_operators import class_loss, label_likelihood
from .upsampling import upsample

FOCAL_GAMMA = 2.0  # Lin et al. 2017
BOUNDARY_RADIUS = 3  # pixels on each side of a boundary
USUAL_IGNORE_INDEX = 255
AXES = {2: "height, width", 3: "slices, height, width"}
MAX_POOL = {2: F.max_pool2d, 3: F.max_pool3d}


def check_labels(labels: Tensor, num_labels: int, ignore_index: int) -> None:
    """Checks that every label is a class id or the ignore index, which gather operations rely on.

    This takes one device synchronization. It is skipped under torch.compile and export, where a graph cannot
    raise.

    Args:
        labels: Class ids (B, G...).
        num_labels: Number of classes K; valid ids are 0 to K - 1.
        ignore_index: Label of pixels without a class.

    Raises:
        ValueError: If there are other labels, with their values and pixel counts.
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
        f"labels contain {found}{more}, but the classes are 0..{num_labels - 1} and the ignore index is "
        f"{ignore_index}. Map these ids to a class or to {ignore_index} (label_map of the image processor), or "
        "increase num_labels."
    )


def check_shapes(logits: Tensor, labels: Tensor) -> None:
    """Raises ValueError unless logits are (B, K, g...) of two or three axes and labels are integers (B, G...)."""
    if logits.ndim not in (4, 5):
        raise ValueError(
            f"logits are {tuple(logits.shape)}, but must be (batch, num_labels, height, width), or have slices before the "
            "height for volumes."
        )
    if labels.ndim != logits.ndim - 1 or labels.shape[0] != logits.shape[0]:
        raise ValueError(
            f"labels are {tuple(labels.shape)}, but must be ({logits.shape[0]}, {AXES[logits.ndim - 2]}), one class id "
            "per pixel. Remove a channel axis with labels.squeeze(1); convert one-hot masks to ids with argmax(1)."
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels are {labels.dtype}, but must be class ids: pass labels.long().")


def check_label_size(pixel_values: Tensor, labels: Tensor | None) -> None:
    """(B, C, S...), (B, S...) or None. Raises ValueError unless labels are a tensor of the images' size."""
    if labels is None:
        return
    axes = AXES[pixel_values.ndim - 2]
    if not isinstance(labels, Tensor):
        raise ValueError(
            f"labels are of type {type(labels).__name__}; a tensor of class ids (batch, {axes}) is required. "
            "Pass torch.as_tensor(labels)."
        )
    size, found = tuple(pixel_values.shape[2:]), tuple(labels.shape)
    if len(found) == 1 + len(size) and found[1:] != size:  # check_shapes answers other shapes
        given, wanted = ("x".join(map(str, sides)) for sides in (found[1:], size))
        raise ValueError(
            f"labels are {given}, but the images are {wanted} ({axes.replace(', ', ' x ')}). Prepare both "
            "together: processor(images, segmentation_maps)."
        )


def warn_of_lost_classes(logits: Tensor, ignore_index: int) -> None:
    """(B, K, G...). Warns of classes that cannot be learned.

    The softmax of a single class is 1 whatever the logits. And the usual ignore index, 255, is a class itself
    where there are more of them.
    """
    if torch.compiler.is_compiling():
        return
    if logits.shape[1] == 1:
        warnings.warn(
            "the model has only one class, so its loss is 0 and nothing is learned. Add a class for everything else, "
            "and label it in the masks: num_labels=2.",
            stacklevel=3,
        )
    if logits.shape[1] > ignore_index == USUAL_IGNORE_INDEX:
        warnings.warn(
            f"class {ignore_index} is not learned: pixels with this label are ignored. Set semantic_loss_ignore_index, and "
            "ignore_index of the image processor, to a number that is not a class, such as 65535.",
            stacklevel=3,
        )


@dataclass(frozen=True)
class Pixels:
    """Input of the loss terms: logits, labels, and the result of `label_likelihood` for every pixel."""

    logits: Tensor  # (B, K, g...)
    labels: Tensor  # (B, G...), 0 where ignored
    is_labeled: Tensor  # (B, G...)
    weight: Tensor  # (B, G...), 0 where ignored
    log_likelihood: Tensor  # (B, G...), 0 where ignored
    log_normalizer: Tensor  # (B, G...)
    count: Tensor  # (), the divisor of the mean
    class_weights: Tensor  # (K,)
    smoothing: float = 0.0  # share of each label that is spread over all classes

    def mean(self, values: Tensor) -> Tensor:
        """(B, G...) -> (): the weighted mean, 0 if there is no labeled pixel."""
        return self.mean_of(self.weight * values)

    def mean_of(self, weighted: Tensor) -> Tensor:
        """(B, G...) -> (): the mean of values that have their weights, 0 if there is no labeled pixel."""
        return weighted.sum() / torch.where(self.count > 0, self.count, 1)


def cross_entropy(pixels: Pixels) -> Tensor:
    """Negative log-likelihood of the label, smoothed by `label_smoothing`."""
    hard = negative_log_likelihood(pixels)
    if not pixels.smoothing:
        return hard
    return (1 - pixels.smoothing) * hard + pixels.smoothing * cross_entropy_of_all_classes(pixels)


def negative_log_likelihood(pixels: Pixels) -> Tensor:
    return -pixels.mean(pixels.log_likelihood)


def cross_entropy_of_all_classes(pixels: Pixels) -> Tensor:
    """Cross-entropy with the uniform distribution: the second part of a smoothed label.

    As in PyTorch, -1/K sum_k w_k log p_k, where w_k are the class weights (Szegedy et al. 2016,
    arXiv:1512.00567, section 7, without weights). The sum of upsampled logits is the upsampled sum, so one
    map suffices.
    """
    share = pixels.class_weights / len(pixels.class_weights)
    axes = [1] * (pixels.logits.ndim - 2)
    weighted_sum = (pixels.logits * share.reshape(-1, *axes)).sum(1, keepdim=True)
    logits = upsample(weighted_sum, pixels.labels.shape[1:]).squeeze(1)
    return pixels.mean_of(pixels.is_labeled * (share.sum() * pixels.log_normalizer - logits))


def focal(pixels: Pixels, gamma: float = FOCAL_GAMMA) -> Tensor:
    """Focal loss: cross-entropy weighted by (1 - p)^gamma (Lin et al. 2017, arXiv:1708.02002, eq. 4)."""
    doubt = -torch.expm1(pixels.log_likelihood)
    return -pixels.mean(doubt.pow(gamma) * pixels.log_likelihood)


def boundary(pixels: Pixels) -> Tensor:
    """Mean cross-entropy of the pixels near a boundary, for any reduction.

    This is U-Net's additional weight near borders (Ronneberger et al. 2015, arXiv:1505.04597, eq. 2),
    restricted to a strip as in Boundary IoU (Cheng et al. 2021, arXiv:2103.16562): labeled pixels with a
    different label at most BOUNDARY_RADIUS positions away along each axis. Edges of the image and of ignored regions
    are not boundaries.
    """
    band = torch.where(near_boundary(pixels), pixels.weight, 0)
    return negative_log_likelihood(replace(pixels, weight=band, count=band.sum()))


def near_boundary(pixels: Pixels) -> Tensor:
    """-> (B, G...): labeled pixels whose neighborhood contains more than one label."""
    labels, size = pixels.labels.float(), 2 * BOUNDARY_RADIUS + 1
    highest, negated_lowest = (
        MAX_POOL[labels.ndim - 1](
            torch.where(pixels.is_labeled, signed, -torch.inf), size, 1, BOUNDARY_RADIUS
        )
        for signed in (labels, -labels)
    )
    return pixels.is_labeled & (highest != -negated_lowest)


def dice(pixels: Pixels) -> Tensor:
    """Soft Dice loss (Milletari et al. 2016, arXiv:1606.04797, without squares), over the batch.

    Mean over the classes present in the batch, as for the Lovasz loss. The Dice of an absent class is 0 for
    any probability above 0 and would only add a constant, and with 150 classes most are absent.
    """
    return class_loss(pixels.logits, pixels.log_normalizer, pixels.labels, pixels.is_labeled, "dice")[0]


def tversky(pixels: Pixels) -> Tensor:
    """Tversky loss, 1 - TP / (TP + 0.3 FP + 0.7 FN), over the batch (Salehi et al. 2017, arXiv:1706.05721).

    TP, FP and FN are sums of probabilities (eq. 3, alpha 0.3 and beta 0.7). A missed pixel costs more than a
    false one; with 0.5 and 0.5 it is the Dice loss. Mean over the classes present, as for the Dice loss.
    """
    return class_loss(pixels.logits, pixels.log_normalizer, pixels.labels, pixels.is_labeled, "tversky")[0]


def lovasz(pixels: Pixels) -> Tensor:
    """Lovasz-softmax, a surrogate of the mean IoU, over the batch (Berman et al. 2018, arXiv:1705.08790)."""
    return class_loss(pixels.logits, pixels.log_normalizer, pixels.labels, pixels.is_labeled, "lovasz")[0]


def foreground_dice(pixels: Pixels) -> Tensor:
    """Dice loss of nnU-Net and nnFormer, over the batch: 1 - mean of (2 TP + 1e-5) / (2 TP + FP + FN + 1e-5).

    The mean is over all classes but the first, the background, whether they are present or not.
    """
    return class_loss(
        pixels.logits, pixels.log_normalizer, pixels.labels, pixels.is_labeled, "foreground_dice"
    )[0]


def foreground_dice_per_image(pixels: Pixels) -> Tensor:
    """`foreground_dice` of each image or volume, averaged over the batch."""
    return class_loss(
        pixels.logits, pixels.log_normalizer, pixels.labels, pixels.is_labeled, "foreground_dice_per_image"
    )[0]


LOSS_TERMS: dict[str, Callable[[Pixels], Tensor]] = {
    "cross_entropy": cross_entropy,
    "dice": dice,
    "tversky": tversky,
    "focal": focal,
    "lovasz": lovasz,
    "boundary": boundary,
    "foreground_dice": foreground_dice,
    "foreground_dice_per_image": foreground_dice_per_image,
}
LARGEST_FACTOR = 10**6


def parse_terms(terms: str) -> list[tuple[float, str]]:
    """Parses a sum of loss terms: "cross_entropy+0.5*dice" -> [(1.0, "cross_entropy"), (0.5, "dice")].

    Raises:
        ValueError: If a term is unknown, a factor is not a number in its range, or all are 0.
    """
    parsed = []
    for term in terms.split("+"):
        factor, _, name = (part.strip() for part in term.rpartition("*"))
        if name not in LOSS_TERMS:
            close = "".join(
                f", did you mean '{known}'?" for known in get_close_matches(name, LOSS_TERMS, n=1)
            )
            raise ValueError(
                f"no loss '{name}' in '{terms}'{close or '.'} Join any of these by '+': {', '.join(LOSS_TERMS)}."
            )
        try:
            parsed.append((float(factor or 1), name))
        except ValueError:
            raise ValueError(f"'{factor}' in '{terms}' is not a number. Write e.g. '0.5*{name}'.") from None
        if not 0 <= parsed[-1][0] <= LARGEST_FACTOR:
            raise ValueError(
                f"'{factor}' in '{terms}' is not a weight. Use a number from 0 to {LARGEST_FACTOR}, e.g. '0.5*{name}'."
            )
    if not any(factor for factor, _ in parsed):
        raise ValueError(f"all factors in '{terms}' are 0, so there is nothing to learn. Leave them out.")
    return parsed


def weights_of_classes(logits: Tensor, class_weights: Sequence[float] | Tensor | None) -> Tensor:
    """(B, K, g...) -> (K,): the weight of each class, by default 1."""
    if class_weights is None:
        return logits.new_ones(logits.shape[1])
    weights = torch.as_tensor(class_weights, dtype=logits.dtype, device=logits.device)
    if weights.shape != logits.shape[1:2]:
        raise ValueError(
            f"{weights.numel()} class_weights for {logits.shape[1]} labels. Give one weight per label."
        )
    return weights


def segmentation_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    terms: str = "cross_entropy",
    ignore_index: int = 255,
    class_weights: Sequence[float] | Tensor | None = None,
    reduction: str = "valid",
    label_smoothing: float = 0.0,
) -> Tensor:
    """(B, K, g...), (B, G...) -> (): a sum of loss terms on the linearly upsampled logits.

    A batch without labeled pixels has loss 0 and zero gradients.

    Args:
        logits: Logits (B, K, g...) at any stride.
        labels: Class ids (B, G...) of any integer type.
        terms: Loss terms joined by "+", each with an optional factor, such as "cross_entropy+0.5*dice"; the
            terms are "cross_entropy", "dice", "tversky", "focal", "lovasz", "boundary", "foreground_dice" and
            "foreground_dice_per_image".
        ignore_index: Label of pixels that no term counts.
        class_weights: Weights (K,) of the classes in cross_entropy, focal and boundary.
        reduction: "valid" takes the weighted mean over labeled pixels. "all" averages cross_entropy and focal
            over all pixels, with 0 for ignored ones, as mmsegmentation does.
        label_smoothing: Share of each label that is spread over all classes in cross_entropy, from 0 to 1.

    Raises:
        ValueError: If shapes, dtype or values of the labels are wrong, or an option is unknown.
    """
    if reduction not in ("valid", "all"):
        raise ValueError(f"no reduction '{reduction}'. Known: 'valid', 'all'.")
    check_shapes(logits, labels)
    if labels.ndim == 4 and logits.shape[2] == labels.shape[1] == 1:  # one slice: an image, to the last bit
        logits, labels = logits.squeeze(2), labels.squeeze(1)
    warn_of_lost_classes(logits, ignore_index)
    labels, factors = labels.long(), parse_terms(terms)
    check_labels(labels, logits.shape[1], ignore_index)
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        is_labeled = labels != ignore_index
        labels = torch.where(is_labeled, labels, 0)
        log_likelihood, log_normalizer = label_likelihood(logits, labels)
        log_likelihood = torch.where(is_labeled, log_likelihood, 0)
        of_classes = weights_of_classes(logits, class_weights)
        weight = of_classes[labels] * is_labeled
        count = weight.sum() if reduction == "valid" else torch.ones_like(weight).sum()
        pixels = Pixels(
            logits,
            labels,
            is_labeled,
            weight,
            log_likelihood,
            log_normalizer,
            count,
            of_classes,
            label_smoothing,
        )
        return sum(factor * LOSS_TERMS[name](pixels) for factor, name in factors)


__all__ = ["LOSS_TERMS", "check_label_size", "check_labels", "parse_terms", "segmentation_loss"]
