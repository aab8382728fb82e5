"""Weights with one row per label, and how they change when a model gets other labels.

Legend: K number of labels before, K' after, B batch, C channels, G... grid axes.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import WeightOwner


def rows_of_equal_names(known: Mapping[int, str], wanted: Mapping[int, str]) -> list[int | None]:
    """For each wanted label, the known label of the same name, as `respelled` compares them, or None."""
    row_of = dict(zip(respelled(list(known.values()), list(wanted.values())), known, strict=True))
    return [row_of.get(wanted[label]) for label in sorted(wanted)]


def respelled(names: Sequence[str], others: Sequence[str]) -> list[str]:
    """The names as `others` spell them, where these differ in case, blanks, "_", "-" or Unicode normal form only."""
    spelling = {spelled_plainly(other): other for other in others}
    if len(spelling) < len(others) or len(set(map(spelled_plainly, names))) < len(names):
        return list(names)  # names that differ in nothing else
    return [spelling.get(spelled_plainly(name), name) for name in names]


def spelled_plainly(name: str) -> str:
    name = str(name)  # some checkpoints have numbers for names
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFC", name).casefold()).strip()


def with_kept_rows(stored: Tensor, fresh: Tensor, rows: Sequence[int | None]) -> Tensor:
    """(K, ...), (K', ...) -> (K', ...): stored rows where `rows` has an index, else fresh ones."""
    kept = [fresh[label] if row is None else stored[row].to(fresh) for label, row in enumerate(rows)]
    return torch.stack(kept)


class LabelRows(nn.Module):
    """A module whose own parameters and buffers have one row per label, along the first axis unless stated."""

    label_axes: Mapping[str, int] = {}  # name of a parameter or buffer -> its axis of labels

    @torch.no_grad()
    def replace_labels(self, rows: Sequence[int | None], initialize: Callable[[nn.Module], None]) -> None:
        """Replaces the labels; rows of kept labels are copied, the others are initialized.

        Args:
            rows: For each new label, the row to keep, or None for a new row.
            initialize: Initializes a module in place.
        """
        stored = dict(self.named_parameters(recurse=False)) | dict(self.named_buffers(recurse=False))
        for name, tensor in stored.items():
            shape = list(tensor.shape)
            shape[self.label_axes.get(name, 0)] = len(rows)
            empty = torch.empty(shape, dtype=tensor.dtype, device=tensor.device)
            is_parameter = isinstance(tensor, nn.Parameter)
            setattr(self, name, nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty)
        initialize(self)
        for name, tensor in stored.items():
            axis = self.label_axes.get(name, 0)
            fresh = getattr(self, name).movedim(axis, 0)
            fresh.copy_(with_kept_rows(tensor.movedim(axis, 0), fresh, rows))


class LabelChannels(LabelRows):
    """A convolution whose output channels are the labels."""

    def replace_labels(self, rows: Sequence[int | None], initialize: Callable[[nn.Module], None]) -> None:
        """Replaces the labels and updates `out_channels`."""
        super().replace_labels(rows, initialize)
        self.out_channels = len(rows)


class LabelClassifier(LabelChannels, nn.Conv2d):
    """A 1x1 convolution from features to logits.

    It keeps the constructor of `nn.Conv2d`, with which peft builds the adapter of a convolution.
    """


class VoxelClassifier(LabelChannels, nn.Conv3d):
    """`LabelClassifier` for volumes."""


class TransposedClassifier(LabelChannels, nn.ConvTranspose2d):
    """A transposed convolution from features to logits; the stride is the kernel, so cells do not overlap.

    It keeps the constructor of `nn.ConvTranspose2d`, as `LabelClassifier` keeps that of `nn.Conv2d`.
    """

    label_axes = {"weight": 1}


class VolumeClassifier(LabelChannels, WeightOwner):
    """A transposed convolution from features of volumes to logits; the stride is the kernel, so cells do not overlap.

    Its weight (K, C, kernel...) has the labels first, as classifiers that are no transposed convolutions.

    Args:
        in_channels: Channels C of the features.
        num_labels: Number of labels K.
        kernel: Voxels of a cell along each axis.
    """

    def __init__(self, in_channels: int, num_labels: int, kernel: tuple[int, ...]) -> None:
        super().__init__((num_labels, in_channels, *kernel), has_bias=True)
        self.in_channels = in_channels
        self.out_channels = num_labels

    def forward(self, feature_map: Tensor) -> Tensor:
        """(B, C, G...) -> (B, K, kernel * G...)."""
        weight = self.weight.transpose(0, 1)
        return F.conv_transpose3d(feature_map, weight, self.bias, stride=tuple(weight.shape[2:]))


__all__ = [
    "LabelClassifier",
    "LabelRows",
    "TransposedClassifier",
    "VolumeClassifier",
    "VoxelClassifier",
    "respelled",
    "rows_of_equal_names",
    "with_kept_rows",
]
