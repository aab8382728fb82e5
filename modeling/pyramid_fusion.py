"""Fusion of a feature pyramid: projection of each level, upsampling, concatenation and joint projection.

A linear map of channels commutes with bilinear interpolation, biases included, because interpolation weights
sum to one. So the joint projection is applied to each level before upsampling, and the concatenation of all
levels at the finest resolution is never materialized: sum_i up(W_i z_i) instead of [W_1 ... W_L]
concat_i(up(z_i)).

Legend: B batch, C channels, h, w height and width of a feature map.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, channels_last, nn

from .blocks import Decoded
from .projections import LinearMap, NormedMap, NormedProjection, TorchLinearMap
from .upsampling import upsample


class LinearFusion(nn.Module):
    """Eq. 1 of the SegDeformer paper: two linear layers with only the upsampling between them."""

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
        # Interpolation does not change the bias of a level.
        shifts = [part @ level.shift for part, level in zip(parts, projections, strict=True)]
        shift = sum(shifts) if shift is None else shift + sum(shifts)
        summed = sum_upsampled([as_features(feature_map) for feature_map in feature_maps], matrices, shift)
        return Decoded(as_map(summed if finish is None else finish(summed)))


class SegformerFusion(LinearFusion):
    """SegFormer's all-MLP decoder (Xie et al., NeurIPS 2021): `LinearFusion`, batch normalization and ReLU.

    The columns of the second layer are ordered fine to coarse; in transformers' checkpoints they are coarse
    to fine.
    """

    def __init__(self, in_channels: Sequence[int], hidden_size: int, depth: int = 2) -> None:
        super().__init__(in_channels, hidden_size)
        self.fusion = NormedMap(len(in_channels) * hidden_size, hidden_size)
        self.deeper = deeper_layers(hidden_size, depth)

    def forward(self, feature_maps: Sequence[Tensor]) -> Decoded:
        """Maps (B, C_i, h_i, w_i), fine to coarse -> (B, hidden, h_0, w_0)."""
        fused = super().forward(feature_maps).feature_map
        return Decoded(as_map(self.deeper(as_features(fused))))


class ConvFusion(nn.Module):
    """The SegDeformer authors' fusion: all layers are 1x1 convolution, batch normalization and ReLU."""

    def __init__(self, in_channels: Sequence[int], hidden_size: int, depth: int = 2) -> None:
        super().__init__()
        self.projections = nn.ModuleList(NormedProjection(channels, hidden_size) for channels in in_channels)
        self.fusion = NormedMap(len(in_channels) * hidden_size, hidden_size)
        self.deeper = deeper_layers(hidden_size, depth)

    def forward(self, feature_maps: Sequence[Tensor]) -> Decoded:
        """Maps (B, C_i, h_i, w_i), fine to coarse -> (B, hidden, h_0, w_0)."""
        levels = [
            project(as_features(feature_map))
            for project, feature_map in zip(self.projections, feature_maps, strict=True)
        ]
        matrix, shift, finish = self.fusion()
        fused = finish(sum_upsampled(levels, matrix.chunk(len(levels), dim=1), shift))
        return Decoded(as_map(self.deeper(fused)))


def deeper_layers(hidden_size: int, depth: int) -> nn.Sequential:
    """The layers after projection and fusion of a decoder of `depth` layers, on maps (B, h, w, C)."""
    return nn.Sequential(*(NormedProjection(hidden_size, hidden_size) for _ in range(depth - 2)))


def sum_upsampled(levels: Sequence[Tensor], matrices: Sequence[Tensor], shift: Tensor | None) -> Tensor:
    """Levels (B, h_i, w_i, C_i), fine to coarse, matrices (C, C_i), shift (C,) -> sum (B, h_0, w_0, C)."""
    summed = F.linear(levels[0], matrices[0], shift)
    for level, matrix in zip(levels[1:], matrices[1:], strict=True):
        mixed = F.linear(level, matrix)
        summed = summed + as_features(upsample(as_map(mixed), summed.shape[1:3]))
    return summed


def as_features(feature_map: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h, w, C), channels contiguous in memory."""
    return feature_map.contiguous(memory_format=channels_last).permute(0, 2, 3, 1)


def as_map(features: Tensor) -> Tensor:
    """(B, h, w, C) -> (B, C, h, w), a view."""
    return features.permute(0, 3, 1, 2)
