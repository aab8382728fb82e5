"""A pyramid from the maps of a plain vision transformer, which all have one size (Bao et al., "BEiT: BERT Pre-Training of
Image Transformers", appendix; Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection").

The early layers' maps are enlarged by transposed convolutions, the late ones pooled. We normalise each pixel over its
channels where BEiT has batch norm, so that a single small image trains as well.

Legend: B batch, C channels, h, w height and width of the given maps.
"""

from collections.abc import Sequence

from torch import Tensor, nn


class PixelNorm(nn.LayerNorm):
    """Layer norm of each pixel over its channels."""

    def forward(self, feature_map: Tensor) -> Tensor:
        """(B, C, h, w) -> the same shape."""
        return super().forward(feature_map.movedim(1, -1)).movedim(-1, 1)


def resampling(channels: int, stride: int, wanted: int) -> nn.Module:
    """What takes a map from one stride to another, powers of two apart."""
    if wanted >= stride:
        factor = wanted // stride
        return nn.MaxPool2d(factor, ceil_mode=True) if factor > 1 else nn.Identity()
    steps = [nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2)]
    while wanted < stride // 2:
        steps += [PixelNorm(channels), nn.GELU()]
        steps.append(nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2))
        wanted *= 2
    return nn.Sequential(*steps)


class PlainVitPyramid(nn.Module):
    """Maps of one stride, early layers first, as a pyramid with other strides; a single map is used for all levels."""

    def __init__(self, channels: Sequence[int], stride: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.channels = tuple(channels) if len(channels) > 1 else tuple(channels) * len(strides)
        self.strides = tuple(strides)
        self.levels = nn.ModuleList(
            resampling(width, stride, wanted)
            for width, wanted in zip(self.channels, self.strides, strict=True)
        )

    def forward(self, feature_maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C_i, h, w) -> maps (B, C_i, h * stride / stride_i, w * stride / stride_i)."""
        if len(feature_maps) == 1:
            feature_maps = [feature_maps[0]] * len(self.levels)
        return [level(feature_map) for level, feature_map in zip(self.levels, feature_maps, strict=True)]
