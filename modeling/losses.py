"""Segmentation losses of logits at the decoder's stride against labels at image size.

Every loss is that of the bilinearly enlarged logits, in float32 and over labelled pixels only, yet the enlarged
(B, K, H, W) tensor never exists. All terms make do with two ways through it: block of rows by block of rows for what
needs all classes of a pixel (`LabelLikelihood`), class by class for what needs all pixels (`mean_over_classes`).

Legend: B batch, K classes, (h, w) grid of the logits, (H, W) image, R rows of the image, S rows of the grid.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import floor

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.utils.checkpoint import checkpoint

from ..configuration.options import choose
from .upsampling import interpolation_matrix, upsample

FOCAL_GAMMA = 2.0  # Lin et al. 2017
BOUNDARY_RADIUS = 3  # pixels on either side of a boundary
BLOCK_ELEMENTS = {"cpu": 2**21}  # of one block of rows: near the cache on a CPU,
DEFAULT_BLOCK_ELEMENTS = 2**25  # enough to fill the device elsewhere
CHECKPOINT = {"use_reentrant": False, "preserve_rng_state": False}


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


def row_blocks(source: int, target: int, rows: int) -> Iterator[tuple[slice, slice]]:
    """Cuts `target` rows into blocks; each comes with the rows of the source that its interpolation reads."""
    for start in range(0, target, rows):
        stop = min(start + rows, target)
        above, below = ((row + 0.5) * source / target - 0.5 for row in (start, stop - 1))
        # A float32 matrix may round a centre that lies on a source row to either side of it.
        first, last = max(floor(above - 1e-3), 0), floor(below + 1e-3) + 1
        yield slice(start, stop), slice(min(first, source - 1), min(last + 1, source))


@dataclass(frozen=True)
class Enlargement:
    """The bilinear resize of a (B, K, h, w) map to (H, W) as two matrices, applied to some rows at a time."""

    along_height: Tensor  # (H, h)
    along_width: Tensor  # (W, w)

    @classmethod
    def between(cls, feature_map: Tensor, size: Sequence[int]) -> "Enlargement":
        height, width = (
            interpolation_matrix(source, target, dtype=feature_map.dtype, device=feature_map.device)
            for source, target in zip(feature_map.shape[2:], size, strict=True)
        )
        return cls(height, width)

    def blocks(self, feature_map: Tensor) -> Iterator[tuple[slice, slice]]:
        limit = BLOCK_ELEMENTS.get(feature_map.device.type, DEFAULT_BLOCK_ELEMENTS)
        row = feature_map.shape[0] * feature_map.shape[1] * self.along_width.shape[0]
        return row_blocks(feature_map.shape[2], self.along_height.shape[0], max(1, limit // row))

    def rows(self, feature_map: Tensor, rows: slice, sources: slice) -> Tensor:
        """(B, K, h, w) -> (R, B, K, W): rows first, so that each axis costs one matrix product."""
        widened = feature_map[:, :, sources].movedim(2, 0) @ self.along_width.T
        return (self.along_height[rows, sources] @ widened.flatten(1)).unflatten(1, widened.shape[1:])

    def transposed_rows(self, enlarged: Tensor, rows: slice, sources: slice) -> Tensor:
        """(R, B, K, W) -> (B, K, S, w): the transpose of `rows`, which carries gradients back."""
        shrunk = (self.along_height[rows, sources].T @ enlarged.flatten(1)).unflatten(1, enlarged.shape[1:])
        return (shrunk @ self.along_width).movedim(0, 2)


class LabelLikelihood(torch.autograd.Function):
    """Log-probability of each pixel's label, and the log of its softmax's denominator, block of rows by block of rows.

    The backward pass enlarges the logits again instead of keeping them: softmax minus one-hot, times the gradient.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K, h, w), (B, H, W) -> two (B, H, W)."""
        ctx.save_for_backward(logits, labels)
        enlargement = Enlargement.between(logits, labels.shape[1:])
        likelihoods, normalizers = [], []
        for rows, sources in enlargement.blocks(logits):
            enlarged = enlargement.rows(logits, rows, sources)
            label = labels[:, rows].transpose(0, 1).unsqueeze(2)
            likelihood = enlarged.log_softmax(2).gather(2, label)
            likelihoods.append(likelihood.squeeze(2))
            normalizers.append((enlarged.gather(2, label) - likelihood).squeeze(2))
        return torch.cat(likelihoods).transpose(0, 1), torch.cat(normalizers).transpose(0, 1)

    @staticmethod
    def backward(ctx: FunctionCtx, grad_likelihood: Tensor, grad_normalizer: Tensor) -> tuple[Tensor, None]:
        """two (B, H, W) -> (B, K, h, w)."""
        logits, labels = ctx.saved_tensors
        total = torch.zeros_like(logits)
        with torch.autocast(logits.device.type, enabled=False):
            enlargement = Enlargement.between(logits, labels.shape[1:])
            for rows, sources in enlargement.blocks(logits):
                # (B, R, W) -> (R, B, 1, W)
                label, to_label, to_normalizer = (
                    pixels[:, rows].transpose(0, 1).unsqueeze(2)
                    for pixels in (labels, grad_likelihood, grad_normalizer)
                )
                gradient = enlargement.rows(logits, rows, sources).softmax(2)
                gradient.mul_(to_normalizer - to_label).scatter_add_(2, label, to_label)
                total[:, :, sources] += enlargement.transposed_rows(gradient, rows, sources)
        return total, None


@dataclass(frozen=True)
class Pixels:
    """What the terms read: the logits, and for every pixel of the image what `LabelLikelihood` found."""

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


def mean_over_classes(pixels: Pixels, loss_of_class: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """Mean over the classes present in the batch of loss_of_class(probability, is_class, is_labelled), each (B, H, W).

    Probabilities are made for one class at a time, and again in the backward pass.
    """
    logits, size = pixels.logits.unbind(1), pixels.labels.shape[1:]

    def loss_of(label: int, logit: Tensor, log_normalizer: Tensor) -> Tensor:
        probability = (upsample(logit.unsqueeze(1), size).squeeze(1) - log_normalizer).exp()
        return loss_of_class(probability, (pixels.labels == label) & pixels.is_labelled, pixels.is_labelled)

    counts = torch.zeros(len(logits), dtype=torch.long, device=pixels.labels.device)
    counts = counts.scatter_add(0, pixels.labels.flatten(), pixels.is_labelled.flatten().long())
    is_present = counts > 0
    present = range(len(logits))
    if (
        not torch.compiler.is_compiling()
    ):  # one more synchronisation; a compiled graph goes through all classes
        present = is_present.nonzero().flatten().tolist()
    total = pixels.log_likelihood[:0].sum()  # 0, with a graph, also if no class is present
    for label in present:
        loss = checkpoint(loss_of, label, logits[label], pixels.log_normalizer, **CHECKPOINT)
        total = total + torch.where(is_present[label], loss, 0)
    return total / is_present.sum().clamp(min=1)


def dice(pixels: Pixels) -> Tensor:
    """Soft Dice loss (Milletari et al. 2016, arXiv:1606.04797, with plain sums below), over the batch as in nnU-Net.

    Mean over the classes present, as for the Lovasz loss: of 150 classes a batch lacks most, and their Dice, 0 for any
    probability above 0, would only add a constant.
    """

    def loss_of_class(probability: Tensor, is_class: Tensor, is_labelled: Tensor) -> Tensor:
        overlap, mass = ((probability * mask).sum() for mask in (is_class, is_labelled))
        return 1 - 2 * overlap / (mass + is_class.sum()).clamp(min=1)

    return mean_over_classes(pixels, loss_of_class)


def lovasz(pixels: Pixels) -> Tensor:
    """Lovasz-softmax, the convex surrogate of the mean IoU (Berman et al. 2018, arXiv:1705.08790), over the batch."""
    return mean_over_classes(pixels, lovasz_of_class)


def lovasz_of_class(probability: Tensor, is_class: Tensor, is_labelled: Tensor) -> Tensor:
    """three (B, H, W) -> (): the errors, largest first, times what each adds to the Jaccard loss of those before it."""
    distances = (is_class.to(probability.dtype) - probability).abs()
    errors = torch.where(is_labelled, distances, -1)  # ignored ones go last
    errors, order = errors.flatten().sort(descending=True)
    is_class = is_class.flatten()[order]
    size = is_class.sum()
    left, union = size - is_class.cumsum(0), size + (~is_class).cumsum(0)
    # Differences of 1 - left / union in closed form: subtracting neighbours in float32 loses them on large images.
    steps = torch.where(is_class, 1 / union, left / (union * (union - 1)).clamp(min=1))
    return (errors.clamp(min=0) * steps).sum()


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
        choose("loss", name, LOSS_TERMS)
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
        log_likelihood, log_normalizer = LabelLikelihood.apply(logits, labels)
        log_likelihood = torch.where(is_labelled, log_likelihood, 0)
        weight = pixel_weights(labels, logits, class_weights) * is_labelled
        count = weight.sum() if reduction == "valid" else torch.ones_like(weight).sum()
        pixels = Pixels(logits, labels, is_labelled, weight, log_likelihood, log_normalizer, count)
        return sum(factor * LOSS_TERMS[name](pixels) for factor, name in factors)


__all__ = ["LOSS_TERMS", "check_labels", "parse_terms", "segmentation_loss"]
