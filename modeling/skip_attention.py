"""The skip attention of nnFormer (Zhou et al., 2023, section III-C): windows of the upsampled decoder features attend to
the same windows of the encoder's features, in place of a concatenation or sum.

Legend: B batch, G... grid axes, C channels, W windows, N cells of a window.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import Attention
from .blocks import DropPath, Mlp
from .positions import RelativePositionBias
from .swin_stages import StageSizes
from .windows import padding_keys, plan_windows, window_partition, window_reverse


class SkipAttentionBlock(GradientCheckpointingLayer):
    """Attention of decoder features, unprojected, to the encoder's in windows, then an MLP.

    Args:
        config: Read only for its attention implementation.
        sizes: Sizes of the stage.
        drop_path_rate: Stochastic depth rate of both residuals.
    """

    def __init__(self, config: PreTrainedConfig, sizes: StageSizes, drop_path_rate: float) -> None:
        super().__init__()
        self.window, self.masks_padding = sizes.window, sizes.masks_padding
        self.norm1 = nn.LayerNorm(sizes.dim, eps=sizes.layer_norm_eps)  # of both kinds of features
        self.position_bias = RelativePositionBias(sizes.window, sizes.num_heads, sizes.position_index)
        self.attention = Attention(config, sizes.dim, sizes.num_heads, projects_queries=False)
        self.norm2 = nn.LayerNorm(sizes.dim, eps=sizes.layer_norm_eps)
        self.mlp = Mlp(sizes.dim, int(sizes.dim * sizes.mlp_ratio))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, upsampled: Tensor, skip: Tensor, pixel_mask: Tensor | None = None) -> Tensor:
        """Twice (B, G..., C), optional mask (B, G...), True for image -> (B, G..., C)."""
        features = upsampled + skip
        mixed = self.attend(self.norm1(upsampled), self.norm1(skip), pixel_mask)
        features = features + self.drop_path(mixed)
        return features + self.drop_path(self.mlp(self.norm2(features)))

    def attend(self, asking: Tensor, skip: Tensor, pixel_mask: Tensor | None) -> Tensor:
        """Twice (B, G..., C), optional mask (B, G...), True for image -> (B, G..., C)."""
        windows = plan_windows(tuple(skip.shape[1:-1]), self.window)
        queries, context = (window_partition(features, windows) for features in (asking, skip))
        bias = self.position_bias()[None]
        keys = padding_keys(windows, pixel_mask, skip) if self.masks_padding else None
        if keys is not None:
            bias = bias + keys.expand(skip.shape[0], -1, -1).flatten(0, 1)[:, None, None]
        bias = bias.to(queries.dtype)
        mixed, _ = self.attention(queries.flatten(0, 1), context.flatten(0, 1), bias)
        return window_reverse(mixed.reshape(queries.shape), windows)


class AddedSkip(nn.Module):
    """The skip connection of the first version: a sum."""

    def forward(self, upsampled: Tensor, skip: Tensor, pixel_mask: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Twice (B, G..., C) -> (B, G..., C)."""
        return torch.add(upsampled, skip)
