"""Bilinear and trilinear upsampling (align_corners=False), and 3x3 convolution of upsampled feature maps at low resolution.

Interpolation and the channel mixing of each tap are linear and act on different axes, so they commute:
conv3x3(up(P)) is the sum over the nine taps of shift(up(W_tap P)). The taps mix channels at low resolution,
where there are few pixels; then two dense products with shifted interpolation matrices, one per axis,
upsample, shift and sum the taps. The result equals the direct computation up to rounding, zero padding at the
border included.

Channels are the fastest axis in memory throughout: no step needs a transposition, and that layout is also the
fastest for the surrounding convolutions on CPUs and tensor cores.

Legend: B batch, C channels, g... and G... axes, h, w and H, W height and width before and after upsampling.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .blocks import WeightOwner, is_compiled_for_cpu
from .winograd import convolution3x3

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def interpolation_matrix(
    source: int, target: int, *, dtype: torch.dtype, device: torch.device, align_corners: bool = False
) -> Tensor:
    """-> (target, source), linear interpolation along one axis; a row holds the weights of one target."""
    options = {"dtype": torch.promote_types(dtype, torch.float32), "device": device}
    targets, cells = torch.arange(target, **options)[:, None], torch.arange(source, **options)
    if align_corners:
        positions = targets * ((source - 1) / max(target - 1, 1))
    else:
        positions = _centers(targets, source, target)
    return _weights_at(positions, source, cells).to(dtype)


def _centers(targets: Tensor, source: int | Tensor, target: int) -> Tensor:
    """Indices of `target` cells -> the positions of their centers among `source` cells."""
    return (targets + 0.5) * (source / target) - 0.5


def _weights_at(positions: Tensor, source: int | Tensor, cells: Tensor) -> Tensor:
    """Positions in units of source cells, indices of these -> the weights of linear interpolation."""
    return (1 - (positions.clamp(min=0).clamp(max=source - 1) - cells).abs()).clamp(min=0)


def upsample(feature_map: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """(B, C, g...) -> (B, C, G...) with size (G...), with a deterministic gradient if PyTorch is told so."""
    if not needs_matrices(feature_map):
        mode = MODES[len(size)]
        return F.interpolate(feature_map, size=tuple(size), mode=mode, align_corners=align_corners)
    options = {"dtype": torch.float32, "device": feature_map.device, "align_corners": align_corners}
    sides = zip(feature_map.shape[2:], size, strict=True)
    return resampled(feature_map, *(interpolation_matrix(*side, **options) for side in sides))


def needs_matrices(feature_map: Tensor) -> bool:
    """Whether PyTorch is told to be deterministic, and on a device where its kernels are not."""
    return torch.are_deterministic_algorithms_enabled() and feature_map.device.type != "cpu"


def resampled(feature_map: Tensor, *matrices: Tensor) -> Tensor:
    """(B, C, g...) and one (G, g) for each axis -> (B, C, G...) by matrix products.

    Their gradients are deterministic; those of PyTorch's interpolation and adaptive pooling add in the order
    in which the threads of a GPU arrive.
    """
    with torch.autocast(feature_map.device.type, enabled=False):
        exact = torch.promote_types(feature_map.dtype, matrices[0].dtype)
        enlarged = feature_map.to(exact)
        for axis, matrix in enumerate(matrices, start=2):
            enlarged = along(enlarged, matrix.to(exact), axis)
        return enlarged.to(feature_map.dtype)


def along(features: Tensor, matrix: Tensor | None, axis: int) -> Tensor:
    """(..., g, ...), (G, g) -> (..., G, ...): a matrix product along one axis; without a matrix, no change."""
    if matrix is None:
        return features
    if axis == features.ndim - 1:
        return features @ matrix.T
    return (matrix @ features.flatten(axis + 1)).unflatten(-1, features.shape[axis + 1 :])


def upsample_by_products(feature_map: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, h, w) -> (B, C, H, W) as `upsample`, by one matrix product for each axis."""
    batch, channels, height, width = feature_map.shape
    options = {"dtype": feature_map.dtype, "device": feature_map.device}
    rows = interpolation_matrix(height, size[0], **options)
    is_square = (height, size[0]) == (width, size[1])
    columns = rows if is_square else interpolation_matrix(width, size[1], **options)
    cells = feature_map.permute(0, 2, 3, 1)  # channels fastest, as in memory
    lines = torch.bmm(columns.expand(batch * height, -1, -1), cells.flatten(0, 1))
    lines = lines.unflatten(0, (batch, height)).flatten(2)  # (B, h, W * C)
    return torch.bmm(rows.expand(batch, -1, -1), lines).unflatten(2, (-1, channels)).permute(0, 3, 1, 2)


class PyramidConv3x3(WeightOwner):
    """3x3 convolution without bias of concatenated feature maps, upsampled to the finest one.

    The concatenation is never materialized, see `pyramid_conv3x3`.

    Args:
        in_channels: Sum of the channels C_i of the feature maps.
        out_channels: Output channels C'.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__((out_channels, in_channels, 3, 3))

    def forward(self, feature_maps: Sequence[Tensor]) -> Tensor:
        """(B, C_i, h_i, w_i) each, of which the first one has the output size -> (B, C', H, W)."""
        return pyramid_conv3x3(feature_maps, self.weight)


def pyramid_conv3x3(feature_maps: Sequence[Tensor], weight: Tensor) -> Tensor:
    """(B, C_i, h_i, w_i) each, the first of output size; weight (C', sum of C_i, 3, 3) -> (B, C', H, W).

    Equals conv2d(cat([first, *upsampled others]), weight, padding=1).
    """
    finest, *coarser = feature_maps
    if not coarser:
        return convolution3x3(finest, weight)
    finest_weight, coarser_weight = weight.split([finest.shape[1], weight.shape[1] - finest.shape[1]], dim=1)
    # Before the direct convolution, because this step needs the most memory.
    upsampled = upsampled_conv3x3(coarser, coarser_weight, finest.shape[-2:])
    return convolution3x3(finest, finest_weight).add_(upsampled)


def upsampled_conv3x3(feature_maps: Sequence[Tensor], weight: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C_i, h_i, w_i) each, weight (C', sum of C_i, 3, 3), size (H, W) -> (B, C', H, W).

    Equals conv2d(cat(upsampled maps), weight, padding=1).
    """
    height, width = size
    heights, widths = zip(*(feature_map.shape[2:] for feature_map in feature_maps), strict=True)
    # (W, sum of w_i, 3) and (H, 3 * sum of h_i)
    columns = _shifted_matrices(widths, width, feature_maps[0]).permute(1, 2, 0).contiguous()
    rows = _shifted_matrices(heights, height, feature_maps[0]).transpose(0, 1).flatten(1)
    channels = [feature_map.shape[1] for feature_map in feature_maps]
    if is_compiled_for_cpu(weight) and len(set(channels)) == 1:
        feature_maps = _in_one_buffer(feature_maps)
        weight = weight.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)  # as the taps read it
    weights, columns = weight.split(channels, dim=1), columns.split(widths, dim=1)
    widened = map(_widened_taps, feature_maps, weights, columns)
    # (B, 3 * sum of h_i, W * C')
    lines = torch.cat([line for row_of_taps in zip(*widened, strict=True) for line in row_of_taps], dim=1)
    upsampled = torch.bmm(rows.expand(lines.shape[0], -1, -1), lines)
    return upsampled.unflatten(2, (width, weight.shape[0])).permute(0, 3, 1, 2)


def _in_one_buffer(feature_maps: Sequence[Tensor]) -> list[Tensor]:
    """(B, C, h_i, w_i) each -> the same, in one buffer, which one kernel of torch.compile computes."""
    cells = torch.cat([feature_map.permute(0, 2, 3, 1).flatten(0, 2) for feature_map in feature_maps])
    maps, first = [], 0
    for feature_map in feature_maps:
        batch, _, height, width = feature_map.shape
        part = cells.narrow(0, first, batch * height * width)
        maps.append(part.unflatten(0, (batch, height, width)).permute(0, 3, 1, 2))
        first += batch * height * width
    return maps


def _widened_taps(feature_map: Tensor, weight: Tensor, columns: Tensor) -> list[Tensor]:
    """(B, C, h, w), (C', C, 3, 3), (W, w, 3) -> for each row of taps (B, h, W * C'), upsampled along w and summed."""
    batch, _, height, width = feature_map.shape
    columns = columns.flatten(1).expand(batch * height, -1, -1)
    cells = feature_map.permute(0, 2, 3, 1).flatten(0, 2)
    mixings = weight.permute(2, 3, 0, 1).flatten(1, 2)  # of each row of taps, to (tap, C')
    widened = []
    for mixing in mixings.unbind():
        taps = F.linear(cells, mixing).reshape(batch * height, width * 3, -1)  # C' last
        lines = torch.bmm(columns, taps)
        widened.append(lines.unflatten(0, (batch, height)).flatten(2))
    return widened


def _shifted_matrices(sources: Sequence[int], target: int, like: Tensor) -> Tensor:
    """-> (3, target, sum of sources), interpolation along an axis as the three taps read it, zero outside."""
    options = {"dtype": torch.promote_types(like.dtype, torch.float32), "device": like.device}
    cells = torch.cat([torch.arange(source, **options) for source in sources])
    sizes = torch.cat([torch.full((source,), source, **options) for source in sources])
    targets = torch.arange(target, **options)[:, None] + torch.arange(-1, 2, **options)[:, None, None]
    weights = _weights_at(_centers(targets, sizes, target), sizes, cells)
    return (weights * ((targets >= 0) & (targets < target))).to(like.dtype)
