"""Convolutions between the resolutions of nnFormer (Zhou et al., 2023): embedding, downsampling and upsampling.

Legend: B batch, C channels, G... grid axes, S... volume axes.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .windows import crop, plan_windows


def padded_end(feature_map: Tensor, multiple: tuple[int, ...]) -> Tensor:
    """(B, C, S...) -> the same, zero-padded at the end of each axis to a multiple."""
    windows = plan_windows(tuple(feature_map.shape[2:]), multiple)
    widths = []
    for size, padded in zip(windows.grid[::-1], windows.padded[::-1], strict=True):
        widths += [0, padded - size]
    return F.pad(feature_map, widths)


def with_slices(feature_map: Tensor, count: int) -> Tensor:
    """(B, C, D, H, W) -> the same, zero-padded at the end to at least this number of slices."""
    return F.pad(feature_map, (0, 0, 0, 0, 0, max(count - feature_map.shape[2], 0)))


class ConvGeluNorm(nn.Module):
    """3x3x3 convolution, GELU, and layer norm over the channels of each voxel."""

    def __init__(self, in_channels: int, out_channels: int, stride: tuple[int, ...], eps: float) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1)
        self.norm = nn.LayerNorm(out_channels, eps=eps)

    def forward(self, feature_map: Tensor) -> Tensor:
        """(B, C, S...) -> (B, C', S / stride...)."""
        return self.norm(F.gelu(self.convolution(feature_map)).movedim(1, -1)).movedim(-1, 1)


class VolumeEmbedding(nn.Module):
    """Four convolutions, of which the first and the third reduce the volume to patches; then a layer norm.

    Args:
        num_channels: Channels of the volume.
        dim: Channels C of the patches; the first two convolutions have half of them.
        patch: Size of a patch, each side 1, 2 or 4.
        layer_norm_eps: Epsilon of the layer norms.
    """

    def __init__(
        self, num_channels: int, dim: int, patch: tuple[int, ...], layer_norm_eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.patch = patch
        first = tuple(min(side, 2) for side in patch)
        second = tuple(side // step for side, step in zip(patch, first, strict=True))
        self.steps = nn.Sequential(
            ConvGeluNorm(num_channels, dim // 2, first, layer_norm_eps),
            ConvGeluNorm(dim // 2, dim // 2, (1, 1, 1), layer_norm_eps),
            ConvGeluNorm(dim // 2, dim, second, layer_norm_eps),
        )
        self.convolution = nn.Conv3d(dim, dim, kernel_size=3, padding=1)
        self.norm = nn.LayerNorm(dim, eps=layer_norm_eps)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, C, S...) -> (B, G..., C'); volumes are zero-padded at the end of each axis to whole patches."""
        feature_map = self.convolution(self.steps(padded_end(pixel_values, self.patch)))
        return self.norm(feature_map.movedim(1, -1))


class VolumeDownsampling(nn.Module):
    """GELU, layer norm, and a strided convolution, overlapping or not. A side of n cells becomes ceil(n / stride).

    Args:
        dim: Input channels C.
        out_dim: Output channels C'.
        stride: Reduction along each axis, 1 or 2.
        overlaps: Whether the kernel is 3 where the stride is 2, as in the current version; else it is the stride.
        pads_slices: Whether the overlapping kernel reads zeros before the first slice and after the last.
        layer_norm_eps: Epsilon of the layer norm.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        stride: tuple[int, ...],
        overlaps: bool = True,
        pads_slices: bool = True,
        layer_norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.pads_slices = pads_slices or not overlaps
        self.multiple = (1,) * len(stride) if overlaps else stride
        self.norm = nn.LayerNorm(dim, eps=layer_norm_eps)
        kernel = tuple(2 * step - 1 for step in stride) if overlaps else stride
        padding = [step // 2 if overlaps else 0 for step in stride]
        padding[0] *= pads_slices
        self.convolution = nn.Conv3d(dim, out_dim, kernel_size=kernel, stride=stride, padding=tuple(padding))

    def forward(self, feature_map: Tensor) -> Tensor:
        """(B, C, G...) -> (B, g..., C')."""
        features = self.norm(F.gelu(feature_map.movedim(1, -1)))
        feature_map = padded_end(features.movedim(-1, 1), self.multiple)
        if not self.pads_slices:
            feature_map = with_slices(feature_map, 3)  # of the kernel
        return self.convolution(feature_map).movedim(1, -1)


class VolumeUpsampling(nn.Module):
    """Layer norm, and a transposed convolution whose kernel is its stride.

    Args:
        dim: Input channels C.
        out_dim: Output channels C'.
        stride: Enlargement along each axis.
        extra_slices: Slices that are added at the end, where the downsampling did not pad.
        layer_norm_eps: Epsilon of the layer norm.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        stride: tuple[int, ...],
        extra_slices: int = 0,
        layer_norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.extra_slices = extra_slices
        self.norm = nn.LayerNorm(dim, eps=layer_norm_eps)
        self.convolution = nn.ConvTranspose3d(
            dim, out_dim, kernel_size=stride, stride=stride, output_padding=(extra_slices, 0, 0)
        )

    def forward(self, features: Tensor, grid: tuple[int, ...]) -> Tensor:
        """(B, g..., C) -> (B, G..., C') with the given grid, of which `g` is the reduction."""
        feature_map = self.convolution(self.norm(features).movedim(-1, 1))
        if self.extra_slices:
            feature_map = with_slices(feature_map, grid[0])
        return crop(feature_map.movedim(1, -1), grid)
