"""Operators on bilinearly upsampled logits (B, K, H, W) that never store them, for the losses.

`label_likelihood` needs all classes of a pixel and iterates over blocks of rows; `class_loss` needs all
pixels of a class and iterates over classes. Both are custom operators with their own gradients: no
intermediate result outlives its block, and torch.compile sees a single node of dynamic size instead of an
unrolled loop.

Legend: B batch, K classes, h, w height and width of the logits, H, W those of the image, R rows of a block of
the image, S rows of the logits from which it is interpolated.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import floor
from re import sub

import torch
from torch import Tensor
from torch.library import custom_op

from .upsampling import interpolation_matrix

BLOCK_ELEMENTS = {"cpu": 2**21}  # elements of a block of rows: about the cache size on a CPU,
DEFAULT_BLOCK_ELEMENTS = 2**25  # and enough to occupy other devices
TVERSKY_ALPHA, TVERSKY_BETA = 0.3, 0.7  # of false positives and negatives: the best of Salehi et al. 2017
OPERATORS = sub(r"\W", "_", __name__)  # namespace; copies of this file in Hub repositories get their own


def row_blocks(source: int, target: int, rows: int) -> Iterator[tuple[slice, slice]]:
    """Splits `target` rows into blocks; yields each with the source rows that it reads."""
    for start in range(0, target, rows):
        stop = min(start + rows, target)
        above, below = ((row + 0.5) * source / target - 0.5 for row in (start, stop - 1))
        # In float32, a center exactly on a source row may be rounded to either side.
        first, last = max(floor(above - 1e-3), 0), floor(below + 1e-3) + 1
        yield slice(start, stop), slice(min(first, source - 1), min(last + 1, source))


@dataclass(frozen=True)
class Enlargement:
    """Bilinear upsampling from (B, K, h, w) to (B, K, H, W) as two matrices, by blocks of rows."""

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
        """(B, K, h, w) -> (R, B, K, W), rows first, so that each axis takes one matrix product."""
        widened = feature_map[:, :, sources].movedim(2, 0) @ self.along_width.T
        return (self.along_height[rows, sources] @ widened.flatten(1)).unflatten(1, widened.shape[1:])

    def transposed_rows(self, enlarged: Tensor, rows: slice, sources: slice) -> Tensor:
        """(R, B, K, W) -> (B, K, S, w): the transpose of `rows`, for the backward pass."""
        shrunk = (self.along_height[rows, sources].T @ enlarged.flatten(1)).unflatten(1, enlarged.shape[1:])
        return (shrunk @ self.along_width).movedim(0, 2)

    def plane(self, feature_map: Tensor) -> Tensor:
        """(B, h, w) -> (B, H, W): upsamples a single class."""
        return self.along_height @ feature_map @ self.along_width.T

    def transposed_plane(self, enlarged: Tensor) -> Tensor:
        """(B, H, W) -> (B, h, w): the transpose of `plane`, for the backward pass."""
        return self.along_height.T @ enlarged @ self.along_width


@custom_op(f"{OPERATORS}::label_likelihood", mutates_args=())
def label_likelihood(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(B, K, h, w), (B, H, W) -> the label's log-probability, the log softmax denominator, both (B, H, W)."""
    likelihood, normalizer = (logits.new_empty(labels.shape) for _ in range(2))
    enlargement = Enlargement.between(logits, labels.shape[1:])
    for rows, sources in enlargement.blocks(logits):
        enlarged = enlargement.rows(logits, rows, sources)
        label = labels[:, rows].transpose(0, 1).unsqueeze(2)  # (R, B, 1, W)
        of_label = enlarged.log_softmax(2).gather(2, label)
        likelihood[:, rows] = of_label.squeeze(2).transpose(0, 1)
        normalizer[:, rows] = (enlarged.gather(2, label) - of_label).squeeze(2).transpose(0, 1)
    return likelihood, normalizer


@custom_op(f"{OPERATORS}::label_likelihood_gradient", mutates_args=())
def label_likelihood_gradient(
    logits: Tensor, labels: Tensor, to_likelihood: Tensor, to_normalizer: Tensor
) -> Tensor:
    """(B, K, h, w), three (B, H, W) -> (B, K, h, w): upsamples the logits again instead of storing them."""
    total = torch.zeros_like(logits)
    with torch.autocast(logits.device.type, enabled=False):
        enlargement = Enlargement.between(logits, labels.shape[1:])
        for rows, sources in enlargement.blocks(logits):
            label, to_label, to_sum = (
                pixels[:, rows].transpose(0, 1).unsqueeze(2)
                for pixels in (labels, to_likelihood, to_normalizer)
            )
            gradient = enlargement.rows(logits, rows, sources).softmax(2)
            gradient.mul_(to_sum - to_label).scatter_add_(2, label, to_label)
            total[:, :, sources] += enlargement.transposed_rows(gradient, rows, sources)
    return total


label_likelihood.register_fake(lambda logits, labels: tuple(logits.new_empty(labels.shape) for _ in range(2)))
label_likelihood_gradient.register_fake(lambda logits, *_: torch.empty_like(logits))
label_likelihood.register_autograd(
    lambda ctx, *gradients: (label_likelihood_gradient(*ctx.saved_tensors, *gradients), None),
    setup_context=lambda ctx, inputs, **_: ctx.save_for_backward(*inputs),
)


def dice_of_class(probability: Tensor, is_class: Tensor, is_labeled: Tensor) -> tuple[Tensor, Tensor]:
    """Three (B, H, W) -> Dice loss of a class, its derivative by the probabilities (B, H, W)."""
    overlap, mass = ((probability * mask).sum() for mask in (is_class, is_labeled))
    total = mass + is_class.sum()
    return 1 - 2 * overlap / total, is_labeled * (2 * overlap / total**2) - is_class * (2 / total)


def tversky_of_class(probability: Tensor, is_class: Tensor, is_labeled: Tensor) -> tuple[Tensor, Tensor]:
    """Three (B, H, W) -> Tversky loss of a class, its derivative by the probabilities (B, H, W)."""
    overlap, mass = ((probability * mask).sum() for mask in (is_class, is_labeled))
    false_positives, false_negatives = mass - overlap, is_class.sum() - overlap
    total = overlap + TVERSKY_ALPHA * false_positives + TVERSKY_BETA * false_negatives
    slope_of_total = TVERSKY_ALPHA * is_labeled + (1 - TVERSKY_ALPHA - TVERSKY_BETA) * is_class
    return 1 - overlap / total, slope_of_total * (overlap / total**2) - is_class / total


def lovasz_of_class(probability: Tensor, is_class: Tensor, is_labeled: Tensor) -> tuple[Tensor, Tensor]:
    """Three (B, H, W) -> Lovasz-softmax loss of a class, its derivative by the probabilities (B, H, W).

    Sorted in decreasing order, each error is weighted by the increase of the Jaccard loss that it causes.
    """
    errors = torch.where(is_class, 1 - probability, probability)
    errors = torch.where(is_labeled, errors, -1)  # ignored pixels are sorted last
    errors, order = errors.flatten().sort(descending=True)
    hits = is_class.flatten()[order]
    left, union = hits.sum() - hits.cumsum(0), (hits.sum() + (~hits).cumsum(0)).to(errors.dtype)
    # Differences of 1 - left / union in closed form: in float32, subtraction cancels on large images.
    steps = torch.where(hits, 1 / union, left / (union * (union - 1)))
    slope = torch.empty_like(steps).scatter_(0, order, steps).view_as(probability) * is_labeled
    return (errors.clamp(min=0) * steps).sum(), torch.where(is_class, -slope, slope)


CLASS_LOSSES = {"dice": dice_of_class, "tversky": tversky_of_class, "lovasz": lovasz_of_class}


@custom_op(f"{OPERATORS}::class_loss", mutates_args=())
def class_loss(
    logits: Tensor, normalizer: Tensor, labels: Tensor, is_labeled: Tensor, name: str
) -> tuple[Tensor, Tensor, Tensor]:
    """(B, K, h, w), three (B, H, W) -> mean loss over classes present, gradients of both inputs."""
    loss = logits.new_zeros(())
    to_logits, to_normalizer = torch.zeros_like(logits), torch.zeros_like(normalizer)
    enlargement = Enlargement.between(logits, labels.shape[1:])
    present = labels[is_labeled].bincount().nonzero().flatten().tolist()
    for label in present:
        probability = (enlargement.plane(logits[:, label]) - normalizer).exp()
        of_class, slope = CLASS_LOSSES[name](probability, (labels == label) & is_labeled, is_labeled)
        loss += of_class / len(present)
        slope *= probability / len(present)
        to_logits[:, label] = enlargement.transposed_plane(slope)
        to_normalizer -= slope
    return loss, to_logits, to_normalizer


class_loss.register_fake(lambda *inputs: (inputs[0].new_empty(()), *map(torch.empty_like, inputs[:2])))
class_loss.register_autograd(
    lambda ctx, scale, *_: (*(scale * gradient for gradient in ctx.saved_tensors), None, None, None),
    setup_context=lambda ctx, output, **_: ctx.save_for_backward(*output[1:]),
)
