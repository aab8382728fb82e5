"""Semantic FPN (Kirillov et al., "Panoptic Feature Pyramid Networks", CVPR 2019, section 3.1): the semantic
branch.

After a feature pyramid, each level is upsampled to the finest one in steps of two, and the levels are summed.
As in the usual implementation, the pyramid has twice as many channels as the branch. Levels are upsampled to
the size of the next finer level instead of exactly twice their own, so that odd sizes work; for even sizes
this is the same.

Legend: B batch, C channels, h, w height and width of a feature map.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, channels_last, nn

from .blocks import ConvNormAct, Decoded
from .upsampling import upsample


class FeaturePyramid(nn.Module):
    """Lateral 1x1 convolutions, summed top-down from the coarsest map, each followed by a 3x3 convolution."""

    def __init__(self, in_channels: Sequence[int], hidden_size: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(
            nn.Conv2d(channels, hidden_size, kernel_size=1) for channels in in_channels
        )
        self.smooth = nn.ModuleList(nn.Conv2d(hidden_size, hidden_size, 3, padding=1) for _ in in_channels)

    def forward(self, feature_maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C_i, h_i, w_i), fine to coarse -> maps (B, hidden, h_i, w_i)."""
        levels = [
            lateral(feature_map) for lateral, feature_map in zip(self.laterals, feature_maps, strict=True)
        ]
        for finer in range(len(levels) - 2, -1, -1):
            size = levels[finer].shape[-2:]
            levels[finer] = levels[finer] + F.interpolate(levels[finer + 1], size=size, mode="nearest")
        return [smooth(level) for smooth, level in zip(self.smooth, levels, strict=True)]


class SemanticFpnDecoder(nn.Module):
    """The Semantic FPN decoder: fuses feature maps of any number of scales at the finest resolution.

    Args:
        in_channels: Channels of the feature maps, fine to coarse.
        hidden_size: Channels of the output; the pyramid has twice as many.
        dropout: Channel dropout rate of the output.
        use_pyramid: Whether the feature maps go through a feature pyramid first. Without it, the decoder is the
            semantic branch alone, mmsegmentation's FPN head without a neck.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        hidden_size: int = 128,
        dropout: float = 0.1,
        use_pyramid: bool = True,
    ) -> None:
        super().__init__()
        self.pyramid = FeaturePyramid(in_channels, 2 * hidden_size) if use_pyramid else nn.Identity()
        widths = [2 * hidden_size] * len(in_channels) if use_pyramid else in_channels
        self.branches = nn.ModuleList(
            nn.ModuleList(
                ConvNormAct(hidden_size if step else width, hidden_size, kernel_size=3)
                for step in range(max(level, 1))
            )
            for level, width in enumerate(widths)
        )
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, feature_maps: Sequence[Tensor], pixel_mask: Tensor | None = None) -> Decoded:  # noqa: ARG002
        """Maps (B, C_i, h_i, w_i), fine to coarse -> (B, hidden, h_0, w_0)."""
        feature_maps = [feature_map.contiguous(memory_format=channels_last) for feature_map in feature_maps]
        levels = self.pyramid(feature_maps)
        sizes = [level.shape[-2:] for level in levels]
        summed = sum(self.bring_to_finest(index, level, sizes) for index, level in enumerate(levels))
        return Decoded(self.dropout(summed))

    def bring_to_finest(self, index: int, level: Tensor, sizes: Sequence[Sequence[int]]) -> Tensor:
        """(B, C_i, h_i, w_i) -> (B, hidden, h_0, w_0): a 3x3 convolution before each upsampling."""
        for step, convolve in enumerate(self.branches[index]):
            level = convolve(level)
            level = upsample(level, sizes[index - 1 - step]) if index else level
        return level
