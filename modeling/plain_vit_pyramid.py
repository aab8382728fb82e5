"""A feature pyramid from a plain vision transformer, whose feature maps all have the same size (Bao et al.,
"BEiT: BERT Pre-Training of Image Transformers", appendix; Li et al., "Exploring Plain Vision Transformer
Backbones for Object Detection").

Transposed convolutions enlarge the feature maps of early layers; late ones are max-pooled. Where BEiT has
batch norm we use a layer norm over the channels of each pixel, so that training also works with a single
small image.

Legend: B batch, C channels, h, w height and width of the input feature maps.
"""

from collections.abc import Sequence

from torch import Tensor, nn


class PixelNorm(nn.LayerNorm):
    """Layer norm over the channels of each pixel."""

    def forward(self, feature_map: Tensor) -> Tensor:
        """(B, C, h, w) -> the same shape."""
        return super().forward(feature_map.movedim(1, -1)).movedim(-1, 1)


def resampling(channels: int, stride: int, wanted: int) -> nn.Module:
    """Builds a module that resamples a feature map from `stride` to `wanted`, both powers of two."""
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
    """Resamples feature maps of one stride, early layers first, to a pyramid; a single map serves all levels.

    Args:
        channels: Channels of each feature map.
        stride: Stride of all input feature maps.
        strides: Strides of the pyramid, fine to coarse.
    """

    def __init__(self, channels: Sequence[int], stride: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.channels = tuple(channels) if len(channels) > 1 else tuple(channels) * len(strides)
        self.strides = tuple(strides)
        self.levels = nn.ModuleList(
            resampling(width, stride, wanted)
            for width, wanted in zip(self.channels, self.strides, strict=True)
        )

    def forward(self, feature_maps: Sequence[Tensor]) -> list[Tensor]:
        """(B, C_i, h, w) each -> (B, C_i, h * stride / stride_i, w * stride / stride_i) each."""
        if len(feature_maps) == 1:
            feature_maps = [feature_maps[0]] * len(self.levels)
        return [level(feature_map) for level, feature_map in zip(self.levels, feature_maps, strict=True)]
