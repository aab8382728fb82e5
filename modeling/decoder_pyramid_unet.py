"""The U-Net decoder for the feature maps of any backbone (Ronneberger et al., "U-Net: Convolutional Networks for
Biomedical Image Segmentation", MICCAI 2015).

As in the paper, the channels double from level to level, and each step upsamples, concatenates the skip
connection and applies two 3x3 convolutions. Differences from the paper: upsampling is bilinear, convolutions
are padded and have batch norm, and the resolution finer than the backbone's finest map is restored by the same
expansion as in Swin-Unet (`PatchExpand`), which needs no convolutions at full resolution.

Legend: B batch, C channels, h, w height and width of a feature map.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from .blocks import ConvNormAct, Decoded
from .decoder_upernet import PyramidConvNormAct
from .patches import PatchExpand


class PyramidUnetStep(nn.Module):
    """Decodes from one resolution to the next finer one.

    Args:
        in_channels: Channels of the coarser feature map.
        skip_channels: Channels of the skip connection.
        out_channels: Channels of the output.
    """

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.fuse = PyramidConvNormAct(skip_channels + in_channels, out_channels)
        self.refine = ConvNormAct(out_channels, out_channels, kernel_size=3)

    def forward(self, feature_map: Tensor, skip: Tensor) -> Tensor:
        """(B, C', h', w'), skip (B, C, h, w) -> (B, out, h, w)."""
        return self.refine(self.fuse([skip, feature_map]))


class PyramidUnetDecoder(nn.Module):
    """The U-Net decoder: from feature maps at any number of scales to one map at pixel resolution.

    Args:
        in_channels: Channels of the feature maps, fine to coarse.
        stride: Stride of the finest feature map in pixels.
        hidden_size: Channels of the finest level and of the output; they double with each coarser level.
    """

    def __init__(self, in_channels: Sequence[int], stride: int, hidden_size: int = 64) -> None:
        super().__init__()
        *skips, coarser = in_channels
        steps = []
        for level, channels in reversed(list(enumerate(skips))):
            steps.append(PyramidUnetStep(coarser, channels, hidden_size * 2**level))
            coarser = hidden_size * 2**level
        self.steps = nn.ModuleList(steps)
        self.expand = PatchExpand(hidden_size, hidden_size, (stride, stride))

    def forward(self, feature_maps: Sequence[Tensor], pixel_mask: Tensor | None = None) -> Decoded:  # noqa: ARG002
        """Maps (B, C_i, h_i, w_i), fine to coarse -> (B, hidden, stride * h_0, stride * w_0)."""
        *skips, feature_map = feature_maps
        for step, skip in zip(self.steps, skips[::-1], strict=True):
            feature_map = step(feature_map, skip)
        return Decoded(self.expand(feature_map.movedim(1, -1)).movedim(-1, 1))
