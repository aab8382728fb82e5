"""UPerNet (Xiao et al., ECCV 2018): pyramid pooling, feature pyramid, and auxiliary head.

The parameters are those of the usual implementations. The two 3x3 convolutions over concatenated upsampled
maps, which dominate the cost there, run at low resolution with the same result (`PyramidConv3x3`).

Legend: B batch, C channels, h, w height and width of a feature map.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, channels_last, nn

from .blocks import BatchNorm2d, ConvNormAct, Decoded, is_compiled_for_cpu, reset_before_relu
from .label_rows import LabelClassifier
from .upsampling import PyramidConv3x3, needs_matrices, resampled, upsample, upsample_by_products


class PyramidConvNormAct(nn.Module):
    """A 3x3 `ConvNormAct` over the concatenation of all maps, upsampled to the size of the first."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.convolution = PyramidConv3x3(in_channels, out_channels)
        self.norm = BatchNorm2d(out_channels)

    def forward(self, feature_maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_i, h_i, w_i) -> (B, C', h_0, w_0)."""
        return F.relu(self.norm(self.convolution(feature_maps)), inplace=True)

    def reset_own_weights(self, _std: float) -> None:
        reset_before_relu(self.convolution)


def averaged(feature_map: Tensor, output_size: int | Sequence[int | None]) -> Tensor:
    """(B, C, h, w) -> (B, C, rows, columns): adaptive average pooling, deterministic if PyTorch is told so.

    Args:
        feature_map: The map.
        output_size: (rows, columns), of which None leaves the side as it is, or one number for both.
    """
    # In a program for any size, the cells of each bin are not known.
    if not needs_matrices(feature_map) and not torch.compiler.is_exporting():
        return F.adaptive_avg_pool2d(feature_map, output_size)
    bins = (output_size, output_size) if isinstance(output_size, int) else output_size
    sides = feature_map.shape[2:]
    counts = [side if count is None else count for side, count in zip(sides, bins, strict=True)]
    places = [torch.arange(count, device=feature_map.device) for count in counts]
    return resampled(feature_map, *map(averaging_matrix, sides, counts, places))


def averaged_by_product(feature_map: Tensor, scales: Sequence[int]) -> list[Tensor]:
    """(B, C, h, w) -> for each scale (B, C, scale, scale): adaptive average pooling, all scales by one matrix product."""
    bins = [(scale, row, column) for scale in scales for row in range(scale) for column in range(scale)]
    counts, *places = torch.tensor(bins, device=feature_map.device).unbind(1)
    rows, columns = map(averaging_matrix, feature_map.shape[2:], (counts, counts), places)
    matrix = (rows[:, :, None] * columns[:, None]).flatten(1).expand(feature_map.shape[0], -1, -1)
    exact = torch.promote_types(feature_map.dtype, matrix.dtype)
    with torch.autocast(feature_map.device.type, enabled=False):
        means = torch.bmm(matrix.to(exact), feature_map.flatten(2).transpose(1, 2).to(exact))
    parts = means.to(feature_map.dtype).split([scale**2 for scale in scales], dim=1)
    return [part.transpose(1, 2).unflatten(2, (scale, -1)) for scale, part in zip(scales, parts, strict=True)]


def averaging_matrix(source: int, counts: int | Tensor, places: Tensor) -> Tensor:
    """-> (bins, source): bin places[i] of counts[i] is the mean of the cells that it touches, which bins may share."""
    edges, cells = (places * source)[:, None], torch.arange(source, device=places.device)
    counts = counts[:, None] if isinstance(counts, Tensor) else counts
    first, stop = edges // counts, (edges + source + counts - 1) // counts
    is_inside = ((cells >= first) & (cells < stop)).float()
    return is_inside / is_inside.sum(1, keepdim=True)


class PyramidPooling(nn.Module):
    """Pyramid pooling, at 1, 2, 3 and 6 bins per side in UPerNet, upsampled and fused with the input.

    Args:
        in_channels: Channels C of the input.
        hidden_size: Channels of each branch and of the output.
        scales: Bins per side of each branch.
    """

    def __init__(self, in_channels: int, hidden_size: int, scales: Sequence[int]) -> None:
        super().__init__()
        self.scales = tuple(scales)
        self.branches = nn.ModuleList(ConvNormAct(in_channels, hidden_size) for _ in self.scales)
        self.bottleneck = PyramidConvNormAct(in_channels + len(self.scales) * hidden_size, hidden_size)

    def forward(self, feature_map: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, hidden, h, w)."""
        if is_compiled_for_cpu(feature_map):
            pooled = averaged_by_product(feature_map, self.scales)
        else:
            pooled = [averaged(feature_map, scale) for scale in self.scales]
        parts = [branch(part) for branch, part in zip(self.branches, pooled, strict=True)]
        return self.bottleneck([feature_map, *parts])


class UperNetDecoder(nn.Module):
    """The UPerNet decoder: from feature maps at any number of scales to one map at the size of the finest.

    Args:
        in_channels: Channels of the feature maps, fine to coarse.
        hidden_size: Channels of the decoder and of its output.
        pool_scales: Bins per side of the pyramid pooling.
        dropout: Channel dropout rate of the output.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        hidden_size: int = 512,
        pool_scales: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        *finer, coarsest = in_channels
        self.pooling = PyramidPooling(coarsest, hidden_size, pool_scales)
        self.laterals = nn.ModuleList(ConvNormAct(channels, hidden_size) for channels in finer)
        self.fpn_convs = nn.ModuleList(ConvNormAct(hidden_size, hidden_size, kernel_size=3) for _ in finer)
        self.fusion = PyramidConvNormAct(len(in_channels) * hidden_size, hidden_size)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, feature_maps: Sequence[Tensor], pixel_mask: Tensor | None = None) -> Decoded:  # noqa: ARG002
        """Maps (B, C_i, h_i, w_i), fine to coarse -> (B, hidden, h_0, w_0)."""
        *finer, coarsest = [
            feature_map.contiguous(memory_format=channels_last) for feature_map in feature_maps
        ]
        levels = [lateral(feature_map) for lateral, feature_map in zip(self.laterals, finer, strict=True)]
        top = self.pooling(coarsest)  # PPM
        levels = self.add_top_down(levels, top)  # FPN
        levels = [conv(level) for conv, level in zip(self.fpn_convs, levels, strict=True)]
        return Decoded(self.dropout(self.fusion([*levels, top])))

    def add_top_down(self, levels: Sequence[Tensor], top: Tensor) -> list[Tensor]:
        """Maps (B, C, h_i, w_i), fine to coarse, and `top` -> the same shapes, each plus all coarser maps."""
        enlarged = upsample_by_products if is_compiled_for_cpu(top) else upsample
        summed = [top]
        for level in reversed(levels):
            summed.insert(0, level + enlarged(summed[0], level.shape[-2:]))
        return summed[:-1]


class FcnHead(nn.Module):
    """A 3x3 convolution and a classifier: the auxiliary head on an intermediate feature map of the backbone.

    Args:
        in_channels: Channels of the feature map.
        hidden_size: Channels between convolution and classifier.
        num_labels: Number of classes.
        dropout: Channel dropout rate before the classifier.
    """

    def __init__(self, in_channels: int, hidden_size: int, num_labels: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.conv = ConvNormAct(in_channels, hidden_size, kernel_size=3)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = LabelClassifier(hidden_size, num_labels, kernel_size=1)

    def forward(self, feature_map: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, num_labels, h, w)."""
        return self.classifier(self.dropout(self.conv(feature_map)))
