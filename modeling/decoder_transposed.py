"""The plain decoders of relay tokens (Perron et al., 2026, arXiv:2601.05927): from the coarsest feature map alone
to logits at full resolution, in one transposed convolution or in equal steps, by default of two.

Legend: B batch, C channels, K labels, h, w height and width of the coarsest map.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import BatchNorm2d, Decoded


class CoarsestMap(nn.Module):
    """The decoder without layers: its classifier does all the upsampling."""

    def forward(self, feature_maps: Sequence[Tensor], pixel_mask: Tensor | None = None) -> Decoded:  # noqa: ARG002
        """Maps (B, C_i, h_i, w_i), fine to coarse -> the coarsest, (B, C, h, w)."""
        return Decoded(feature_maps[-1])


class ProgressiveStep(nn.Module):
    """Upsamples by a factor and halves the channels: transposed convolution, then 3x3 convolution."""

    def __init__(self, in_channels: int, factor: int) -> None:
        super().__init__()
        channels = in_channels // 2
        self.upsample = nn.ConvTranspose2d(in_channels, channels, kernel_size=factor, stride=factor)
        self.upsample_norm = BatchNorm2d(channels)
        self.convolution = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.norm = BatchNorm2d(channels)

    def forward(self, feature_map: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C // 2, factor h, factor w)."""
        feature_map = F.gelu(self.upsample_norm(self.upsample(feature_map)))
        return F.gelu(self.norm(self.convolution(feature_map)))


class ProgressiveDecoder(nn.Module):
    """Steps of `factor` from the stride of the coarsest map; the classifier takes the last one, to full resolution.

    Args:
        in_channels: Channels of the coarsest map.
        stride: Its stride, a power of `factor`.
        factor: Upsampling of each step.
    """

    def __init__(self, in_channels: int, stride: int, factor: int = 2) -> None:
        super().__init__()
        count = next(number for number in range(stride) if factor ** (number + 1) >= stride)
        if factor ** (count + 1) != stride or in_channels >> count < 1:
            raise ValueError(
                f"the coarsest feature map has stride {stride} and {in_channels} channels, but decoder 'progressive' "
                f"multiplies the resolution by {factor} and halves the channels in each step. Use a stride that is a "
                f"power of {factor} and as many channels, or decoder 'one_step'."
            )
        self.steps = nn.ModuleList(ProgressiveStep(in_channels >> step, factor) for step in range(count))
        self.out_channels = in_channels >> count

    def forward(self, feature_maps: Sequence[Tensor], pixel_mask: Tensor | None = None) -> Decoded:  # noqa: ARG002
        """Maps (B, C_i, h_i, w_i), fine to coarse -> (B, out, stride / factor h, stride / factor w)."""
        feature_map = feature_maps[-1]
        for step in self.steps:
            feature_map = step(feature_map)
        return Decoded(feature_map)
