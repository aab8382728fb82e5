"""Fusion of feature maps by matrices: a projection of each level, upsampling, and a projection of all levels together.

A matrix over channels and a bilinear interpolation commute, biases included, since the interpolation's weights sum to one.
So the last projection runs level by level below the upsampling, and the concatenation of all levels at the finest size never
exists: sum_i up(W_i z_i) in place of [W_1 ... W_L] concat_i(up(z_i)).

Legend: B batch, C channels, h, w the sides of a map.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, channels_last, nn

from .blocks import Decoded
from .projections import LinearMap, NormedMap, NormedProjection, TorchLinearMap
from .upsampling import upsample


class LinearFusion(nn.Module):
    """Eq. 1 of the SegDeformer paper: two linear layers, with nothing but the upsampling between them."""

    def __init__(self, in_channels: Sequence[int], hidden_size: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(LinearMap(channels, hidden_size) for channels in in_channels)
        self.fusion = TorchLinearMap(len(in_channels) * hidden_size, hidden_size)

    def forward(self, feature_maps: Sequence[Tensor]) -> Decoded:
        """Maps (B, C_i, h_i, w_i), fine to coarse -> (B, hidden, h_0, w_0)."""
        matrix, shift, finish = self.fusion()
        parts = matrix.chunk(len(self.projections), dim=1)
        projections = [project() for project in self.projections]
        matrices = [part @ level.matrix for part, level in zip(parts, projections, strict=True)]
        # A level's own bias passes through the interpolation unchanged, too.
        shifts = [part @ level.shift for part, level in zip(parts, projections, strict=True)]
        shift = sum(shifts) if shift is None else shift + sum(shifts)
        summed = sum_upsampled([as_features(feature_map) for feature_map in feature_maps], matrices, shift)
        return Decoded(as_map(summed if finish is None else finish(summed)))


class SegformerFusion(LinearFusion):
    """SegFormer's all-MLP decoder (Xie et al., NeurIPS 2021): as above, then batch normalization and ReLU.

    The second layer reads its levels fine to coarse. In transformers' checkpoints its columns are ordered coarse to fine.
    """

    def __init__(self, in_channels: Sequence[int], hidden_size: int) -> None:
        super().__init__(in_channels, hidden_size)
        self.fusion = NormedMap(len(in_channels) * hidden_size, hidden_size)


class ConvFusion(nn.Module):
    """The SegDeformer authors' fusion: both layers are 1x1 convolution, batch normalization and ReLU."""

    def __init__(self, in_channels: Sequence[int], hidden_size: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(NormedProjection(channels, hidden_size) for channels in in_channels)
        self.fusion = NormedMap(len(in_channels) * hidden_size, hidden_size)

    def forward(self, feature_maps: Sequence[Tensor]) -> Decoded:
        """Maps (B, C_i, h_i, w_i), fine to coarse -> (B, hidden, h_0, w_0)."""
        levels = [
            project(as_features(feature_map))
            for project, feature_map in zip(self.projections, feature_maps, strict=True)
        ]
        matrix, shift, finish = self.fusion()
        return Decoded(as_map(finish(sum_upsampled(levels, matrix.chunk(len(levels), dim=1), shift))))


def sum_upsampled(levels: Sequence[Tensor], matrices: Sequence[Tensor], shift: Tensor | None) -> Tensor:
    """Levels (B, h_i, w_i, C_i), fine to coarse, matrices (C, C_i), shift (C,) -> (B, h_0, w_0, C)."""
    summed = F.linear(levels[0], matrices[0], shift)
    for level, matrix in zip(levels[1:], matrices[1:], strict=True):
        mixed = F.linear(level, matrix)
        summed = summed + as_features(upsample(as_map(mixed), summed.shape[1:3]))
    return summed


def as_features(feature_map: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h, w, C), with the channels side by side in memory."""
    return feature_map.contiguous(memory_format=channels_last).permute(0, 2, 3, 1)


def as_map(features: Tensor) -> Tensor:
    """(B, h, w, C) -> (B, C, h, w), the same memory."""
    return features.permute(0, 3, 1, 2)
