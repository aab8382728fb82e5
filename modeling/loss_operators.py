"""Operators on linearly upsampled logits (B, K, G...) that never store them, for the losses.

`label_likelihood` needs all classes of a pixel and iterates over blocks of rows; `class_loss` needs all
pixels of a class and iterates over classes. Both are custom operators with their own gradients: no
intermediate result outlives its block, and torch.compile sees a single node of dynamic size instead of an
unrolled loop.

Legend: B batch, K classes, g... axes of the logits, G... those of the image or volume, R rows of a block of
the image, S rows of the logits from which it is interpolated.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import floor, prod
from re import sub

import torch
from torch import Tensor
from torch.library import custom_op

from .upsampling import along, interpolation_matrix

BLOCK_ELEMENTS = {"cpu": 2**21}  # elements of a block of rows: about the cache size on a CPU,
DEFAULT_BLOCK_ELEMENTS = 2**25  # and enough to occupy other devices
DICE_SMOOTHING = 1e-5  # in voxels, as in nnU-Net
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
    """Linear upsampling from (B, K, g...) to (B, K, G...) as one matrix for each axis, by blocks of rows.

    Rows are positions along the first axis. An axis that keeps its size has no matrix.
    """

    size: tuple[int, ...]  # G...
    matrices: tuple[Tensor | None, ...]  # (G, g) for each axis

    @classmethod
    def between(cls, feature_map: Tensor, size: Sequence[int]) -> "Enlargement":
        options = {"dtype": feature_map.dtype, "device": feature_map.device}
        sides = zip(feature_map.shape[2:], size, strict=True)
        return cls(
            tuple(size),
            tuple(
                None if source == target else interpolation_matrix(source, target, **options)
                for source, target in sides
            ),
        )

    def blocks(self, feature_map: Tensor) -> Iterator[tuple[slice, slice]]:
        limit = BLOCK_ELEMENTS.get(feature_map.device.type, DEFAULT_BLOCK_ELEMENTS)
        row = feature_map.shape[0] * feature_map.shape[1] * prod(self.size[1:])
        for rows, sources in row_blocks(feature_map.shape[2], self.size[0], max(1, limit // row)):
            yield rows, rows if self.matrices[0] is None else sources

    def rows(self, feature_map: Tensor, rows: slice, sources: slice) -> Tensor:
        """(B, K, g...) -> (R, B, K, G...), rows first, so that each axis takes one matrix product."""
        widened = feature_map[:, :, sources].movedim(2, 0)
        for axis in reversed(range(1, len(self.size))):
            widened = along(widened, self.matrices[axis], 2 + axis)
        return along(widened, self.first(rows, sources), 0)

    def transposed_rows(self, enlarged: Tensor, rows: slice, sources: slice) -> Tensor:
        """(R, B, K, G...) -> (B, K, S, g...): the transpose of `rows`, for the backward pass."""
        shrunk = along(enlarged, transposed(self.first(rows, sources)), 0)
        for axis in range(1, len(self.size)):
            shrunk = along(shrunk, transposed(self.matrices[axis]), 2 + axis)
        return shrunk.movedim(0, 2)

    def first(self, rows: slice, sources: slice) -> Tensor | None:
        """-> (R, S), the part of the first axis' matrix."""
        return None if self.matrices[0] is None else self.matrices[0][rows, sources]

    def plane(self, feature_map: Tensor) -> Tensor:
        """(B, g...) -> (B, G...): upsamples a single class."""
        for axis, matrix in enumerate(self.matrices, start=1):
            feature_map = along(feature_map, matrix, axis)
        return feature_map

    def transposed_plane(self, enlarged: Tensor) -> Tensor:
        """(B, G...) -> (B, g...): the transpose of `plane`, for the backward pass."""
        for axis, matrix in enumerate(self.matrices, start=1):
            enlarged = along(enlarged, transposed(matrix), axis)
        return enlarged


def transposed(matrix: Tensor | None) -> Tensor | None:
    return None if matrix is None else matrix.T


@custom_op(f"{OPERATORS}::label_likelihood", mutates_args=())
def label_likelihood(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(B, K, g...), (B, G...) -> the label's log-probability, the log softmax denominator, both (B, G...)."""
    likelihood, normalizer = (logits.new_empty(labels.shape) for _ in range(2))
    enlargement = Enlargement.between(logits, labels.shape[1:])
    for rows, sources in enlargement.blocks(logits):
        enlarged = enlargement.rows(logits, rows, sources)
        label = labels[:, rows].transpose(0, 1).unsqueeze(2)  # (R, B, 1, G...)
        of_label = enlarged.log_softmax(2).gather(2, label)
        likelihood[:, rows] = of_label.squeeze(2).transpose(0, 1)
        normalizer[:, rows] = (enlarged.gather(2, label) - of_label).squeeze(2).transpose(0, 1)
    return likelihood, normalizer


@custom_op(f"{OPERATORS}::label_likelihood_gradient", mutates_args=())
def label_likelihood_gradient(
    logits: Tensor, labels: Tensor, to_likelihood: Tensor, to_normalizer: Tensor
) -> Tensor:
    """(B, K, g...), three (B, G...) -> (B, K, g...): upsamples the logits again instead of storing them."""
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
    """Three (B, G...) -> Dice loss of a class, its derivative by the probabilities (B, G...)."""
    overlap, mass = ((probability * mask).sum() for mask in (is_class, is_labeled))
    total = mass + is_class.sum()
    return 1 - 2 * overlap / total, is_labeled * (2 * overlap / total**2) - is_class * (2 / total)


def tversky_of_class(probability: Tensor, is_class: Tensor, is_labeled: Tensor) -> tuple[Tensor, Tensor]:
    """Three (B, G...) -> Tversky loss of a class, its derivative by the probabilities (B, G...)."""
    overlap, mass = ((probability * mask).sum() for mask in (is_class, is_labeled))
    false_positives, false_negatives = mass - overlap, is_class.sum() - overlap
    total = overlap + TVERSKY_ALPHA * false_positives + TVERSKY_BETA * false_negatives
    slope_of_total = TVERSKY_ALPHA * is_labeled + (1 - TVERSKY_ALPHA - TVERSKY_BETA) * is_class
    return 1 - overlap / total, slope_of_total * (overlap / total**2) - is_class / total


def lovasz_of_class(probability: Tensor, is_class: Tensor, is_labeled: Tensor) -> tuple[Tensor, Tensor]:
    """Three (B, G...) -> Lovasz-softmax loss of a class, its derivative by the probabilities (B, G...).

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


def smoothed_dice_of_class(
    probability: Tensor, is_class: Tensor, is_labeled: Tensor, per_image: bool = False
) -> tuple[Tensor, Tensor]:
    """Three (B, G...) -> Dice loss of a class, smoothed, its derivative by the probabilities (B, G...)."""
    axes = tuple(range(int(per_image), probability.ndim))
    overlap, mass = ((probability * mask).sum(axes, keepdim=True) for mask in (is_class, is_labeled))
    total = mass + is_class.sum(axes, keepdim=True) + DICE_SMOOTHING
    ratio = (2 * overlap + DICE_SMOOTHING) / total
    slope = is_labeled * (ratio / total) - is_class * (2 / total)
    return 1 - ratio.mean(), slope / ratio.numel()


CLASS_LOSSES = {
    "dice": dice_of_class,
    "tversky": tversky_of_class,
    "lovasz": lovasz_of_class,
    "foreground_dice": smoothed_dice_of_class,
    "foreground_dice_per_image": partial(smoothed_dice_of_class, per_image=True),
}


@custom_op(f"{OPERATORS}::class_loss", mutates_args=())
def class_loss(
    logits: Tensor, normalizer: Tensor, labels: Tensor, is_labeled: Tensor, name: str
) -> tuple[Tensor, Tensor, Tensor]:
    """(B, K, g...), three (B, G...) -> mean loss over classes, gradients of both inputs.

    The classes are those present, or all but the first for the Dice of the foreground.
    """
    loss = logits.new_zeros(())
    to_logits, to_normalizer = torch.zeros_like(logits), torch.zeros_like(normalizer)
    enlargement = Enlargement.between(logits, labels.shape[1:])
    counted = range(1, logits.shape[1])
    if not name.startswith("foreground"):
        counted = labels[is_labeled].bincount().nonzero().flatten().tolist()
    for label in counted:
        probability = (enlargement.plane(logits[:, label]) - normalizer).exp()
        of_class, slope = CLASS_LOSSES[name](probability, (labels == label) & is_labeled, is_labeled)
        loss += of_class / len(counted)
        slope *= probability / len(counted)
        to_logits[:, label] = enlargement.transposed_plane(slope)
        to_normalizer -= slope
    return loss, to_logits, to_normalizer


class_loss.register_fake(lambda *inputs: (inputs[0].new_empty(()), *map(torch.empty_like, inputs[:2])))
class_loss.register_autograd(
    lambda ctx, scale, *_: (*(scale * gradient for gradient in ctx.saved_tensors), None, None, None),
    setup_context=lambda ctx, output, **_: ctx.save_for_backward(*output[1:]),
)
