"""Encoders with a patch embedding before each stage, and the pre-norm block of their stages.

A block takes its attention module as an argument: over the whole grid (here), in stripes or in windows.

Legend: B batch, C channels, G... grid axes, S... image axes, N tokens.
"""

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import Attention, padding_bias
from .blocks import DropPath, Encoded, Mlp, Revise, in_slices, unchanged
from .patches import CONV, patches_with_image


class GridAttention(Attention):
    """Self-attention over the whole grid."""

    def forward(self, features: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """(B, G..., C), optional mask (B, G...), True for image -> (B, G..., C), probabilities or None."""
        bias = None if padding_mask is None else padding_bias(padding_mask.flatten(1), features.dtype)
        mixed, probabilities = super().forward(features.flatten(1, -2), bias=bias)
        return mixed.reshape(features.shape), probabilities


class PreNormBlock(GradientCheckpointingLayer):
    """Attention and MLP, each with a layer norm before it and a residual connection."""

    def __init__(
        self, attention: nn.Module, dim: int, mlp_ratio: float, drop_path_rate: float, layer_norm_eps: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=layer_norm_eps)
        self.attention = attention
        self.norm2 = nn.LayerNorm(dim, eps=layer_norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, features: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """(B, G..., C), optional mask (B, G...), True for image -> (B, G..., C)."""
        features = features + self.drop_path(self.attention(self.norm1(features), padding_mask)[0])
        return features + self.drop_path(in_slices(self.feed_forward, features))

    def feed_forward(self, features: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.mlp(self.norm2(features))


class OverlappingEmbed(nn.Module):
    """Overlapping patch embedding of CSWin: convolution (7x7 for stride 4, 3x3 for stride 2) and layer norm.

    Images are zero-padded at the end of each axis to a multiple of the stride. With `pads_end=False`, as in
    the authors' code, the remaining pixels are dropped instead.
    """

    def __init__(
        self,
        num_channels: int,
        dim: int,
        stride: tuple[int, ...],
        layer_norm_eps: float = 1e-5,
        pads_end: bool = True,
    ) -> None:
        super().__init__()
        self.stride, self.pads_end = stride, pads_end
        kernel, padding = tuple(2 * step - 1 for step in stride), tuple(step // 2 for step in stride)
        self.projection = CONV[len(stride)](
            num_channels, dim, kernel_size=kernel, stride=stride, padding=padding
        )
        self.norm = nn.LayerNorm(dim, eps=layer_norm_eps)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, C, S...) -> (B, G..., C')."""
        widths = []
        for size, step in zip(pixel_values.shape[:1:-1], self.stride[::-1], strict=True):
            whole = (size + step - 1) // step * step if self.pads_end else max(size, step)
            widths += [0, whole - size]
        return self.norm(self.projection(F.pad(pixel_values, widths)).movedim(1, -1))


class BlockStage(nn.ModuleList):
    """The blocks of one stage in sequence."""

    def forward(self, features: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """(B, G..., C), optional mask (B, G...), True for image -> (B, G..., C)."""
        for block in self:
            features = block(features, padding_mask)
        return features


class PyramidEncoder(nn.Module):
    """Stages, each after a patch embedding."""

    def __init__(self, embeds: list[nn.Module], stages: list[nn.Module]) -> None:
        super().__init__()
        self.embeds = nn.ModuleList(embeds)
        self.stages = nn.ModuleList(stages)

    def forward(
        self, pixel_values: Tensor, pixel_mask: Tensor | None = None, revise: Revise = unchanged
    ) -> Encoded:
        """(B, C, S...), optional mask (B, S...), 1 for image -> features (B, G..., C) of each stage."""
        feature_map = pixel_values
        inputs, outputs = [], []
        for level, (embed, stage) in enumerate(zip(self.embeds, self.stages, strict=True)):
            features = embed(feature_map) if level else revise(0, embed(feature_map))
            inputs.append(features)
            features = revise(level + 1, stage(features, patches_with_image(pixel_mask, features)))
            outputs.append(features)
            feature_map = features.movedim(-1, 1)
        return Encoded(inputs, outputs)
