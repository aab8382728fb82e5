"""Non-local upsampling of GLAM (Themyr et al., WACV 2023, section 3.3 and Fig. 4) by cross-attention.

Queries come from the skip connection, keys and values from the coarse features; upsampled coarse features are
the residual, and an MLP follows. In the paper every query attends to all coarse tokens
(`GlobalCrossAttention`). The authors' code partitions both grids into the same number of windows, and each
fine window attends to the coarse window at the same position (`WindowCrossAttention`), with relative
positions. An indexing bug in that code permutes the columns of the keys; weights trained with it need
`nonlocal_bias="official"`.

Legend: B batch, G... grid axes of the fine features, g... of the coarse ones, C channels of the coarse
features, C' of the fine ones.
"""

from collections.abc import Callable
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import Attention, padding_bias
from .blocks import DropPath, Mlp
from .patches import PatchExpand
from .upsampling import upsample
from .windows import Windows, crop, plan_windows, window_partition, window_reverse


class UpsamplingSizes(NamedTuple):
    """Sizes of one upsampling step, from `dim` to `out_dim` channels and to `factor` times the grid.

    Args:
        window: Sides of a coarse window; a fine window is `factor` times as large.
        factor: Fine positions along each axis for a coarse one, 2 x 2 in images.
        num_heads: Heads of the attention, which has `dim` channels.
        bias: Index of relative positions, "clean" or "official" (with the authors' bug).
        shortcut: The residual, "expand" (patch expansion) or "bilinear".
    """

    dim: int
    out_dim: int
    num_heads: int
    window: tuple[int, ...]
    factor: tuple[int, ...]
    mlp_ratio: float
    drop_path_rate: float = 0.0
    layer_norm_eps: float = 1e-5
    bias: str = "clean"
    shortcut: str = "expand"


def cross_position_index(
    window: tuple[int, ...], factor: tuple[int, ...], bias: str, device: torch.device
) -> Tensor:
    """-> (N, M), row of the bias table for each position in a fine window and each in its coarse window.

    A fine position has the coordinates of the coarse position that contains it. "official" replaces the
    coarse coordinate k along the last axis by 2 k modulo the window size, as the authors' code does.
    """
    fine = [
        torch.arange(step * size, device=device) // step for size, step in zip(window, factor, strict=True)
    ]
    fine = torch.meshgrid(*fine, indexing="ij")
    coarse = [torch.arange(size, device=device) for size in window]
    if bias == "official":
        coarse[-1] = 2 * coarse[-1] % window[-1]
    coarse = torch.meshgrid(*coarse, indexing="ij")
    index = torch.zeros((), dtype=torch.long, device=device)
    for axis, size in enumerate(window):
        offsets = fine[axis].flatten()[:, None] - coarse[axis].flatten()[None, :]
        index = index * (2 * size - 1) + offsets + size - 1
    return index


class CrossPositionBias(nn.Module):
    """A learned bias for each head and each offset between a fine and a coarse position."""

    def __init__(self, sizes: UpsamplingSizes) -> None:
        super().__init__()
        self.window, self.factor, self.bias = sizes.window, sizes.factor, sizes.bias
        rows = prod(2 * size - 1 for size in sizes.window)
        self.table = nn.Parameter(torch.zeros(rows, sizes.num_heads))

    def forward(self) -> Tensor:
        """-> (heads, N, M), N positions of a fine window and M of a coarse one."""
        index = cross_position_index(self.window, self.factor, self.bias, self.table.device)
        return self.table[index.flatten()].unflatten(0, index.shape).permute(2, 0, 1)

    def reset_own_weights(self, std: float) -> None:
        init.trunc_normal_(self.table, std=std)


class WindowCrossAttention(nn.Module):
    """The authors' code: a fine window attends to the coarse window at its position, padding included."""

    def __init__(self, config: PreTrainedConfig, sizes: UpsamplingSizes) -> None:
        super().__init__()
        self.window, self.factor = sizes.window, sizes.factor
        self.attention = Attention(config, sizes.dim, sizes.num_heads, token_dim=sizes.out_dim)
        self.position_bias = CrossPositionBias(sizes)

    def forward(self, skip: Tensor, features: Tensor, mask: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """(B, G..., C'), (B, g..., C) -> (B, G..., C'); windows need no padding mask."""
        coarse = plan_windows(tuple(features.shape[1:-1]), self.window)
        fine = finer_windows(coarse, self.factor, tuple(skip.shape[1:-1]))
        asking, context = window_partition(skip, fine), window_partition(features, coarse)
        bias = self.position_bias()[None].to(context.dtype)
        mixed, _ = self.attention(asking.flatten(0, 1), context.flatten(0, 1), bias)
        return window_reverse(mixed.reshape(asking.shape), fine)


def finer_windows(coarse: Windows, factor: tuple[int, ...], grid: tuple[int, ...]) -> Windows:
    """The partition of a grid of `factor` times the size into the same number of windows, each larger by it."""
    window, padded = (
        tuple(step * size for size, step in zip(sizes, factor, strict=True))
        for sizes in (coarse.window, coarse.padded)
    )
    return Windows(grid, window, coarse.counts, padded, coarse.shift)


class GlobalCrossAttention(nn.Module):
    """The paper: each fine token attends to all coarse tokens; without position bias, memory is linear."""

    def __init__(self, config: PreTrainedConfig, sizes: UpsamplingSizes) -> None:
        super().__init__()
        self.attention = Attention(config, sizes.dim, sizes.num_heads, token_dim=sizes.out_dim)

    def forward(self, skip: Tensor, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, G..., C'), (B, g..., C), optional mask (B, g...), True for image -> (B, G..., C')."""
        bias = None if mask is None else padding_bias(mask.flatten(1), features.dtype)
        mixed, _ = self.attention(skip.flatten(1, -2), features.flatten(1, -2), bias)
        return mixed.reshape(skip.shape)


class BilinearResize(nn.Module):
    """The authors' other residual: linear projection, then (bi- or tri-)linear upsampling with aligned corners."""

    def __init__(self, dim: int, out_dim: int, factor: tuple[int, ...]) -> None:
        super().__init__()
        self.factor = factor
        self.projection = nn.Linear(dim, out_dim)

    def forward(self, features: Tensor, grid: tuple[int, ...]) -> Tensor:
        """(B, g..., C) -> (B, G..., C'), upsampled to `factor` times the size and cropped to `grid`."""
        feature_map = self.projection(features).movedim(-1, 1)
        size = tuple(step * side for step, side in zip(self.factor, feature_map.shape[2:], strict=True))
        finer = upsample(feature_map, size, align_corners=True)
        return crop(finer.movedim(1, -1), grid)


SHORTCUTS: dict[str, Callable[[UpsamplingSizes], nn.Module]] = {
    "expand": lambda sizes: PatchExpand(sizes.dim, sizes.out_dim, sizes.factor, sizes.layer_norm_eps),
    "bilinear": lambda sizes: BilinearResize(sizes.dim, sizes.out_dim, sizes.factor),
}


class NonLocalUpsample(GradientCheckpointingLayer):
    """Cross-attention from skip connection to coarse features, added to their upsampling, then an MLP."""

    def __init__(self, sizes: UpsamplingSizes, attend: nn.Module) -> None:
        super().__init__()
        self.shortcut = SHORTCUTS[sizes.shortcut](sizes)
        self.norm1 = nn.LayerNorm(sizes.dim, eps=sizes.layer_norm_eps)
        self.attend = attend
        self.norm2 = nn.LayerNorm(sizes.out_dim, eps=sizes.layer_norm_eps)
        self.mlp = Mlp(sizes.out_dim, int(sizes.out_dim * sizes.mlp_ratio))
        self.drop_path = DropPath(sizes.drop_path_rate)

    def forward(self, features: Tensor, skip: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, g..., C), (B, G..., C'), optional mask (B, g...), True for image -> (B, G..., C')."""
        upsampled = self.shortcut(features, tuple(skip.shape[1:-1]))
        upsampled = upsampled + self.drop_path(self.attend(skip, self.norm1(features), mask))
        return upsampled + self.drop_path(self.mlp(self.norm2(upsampled)))


class ExpandUpsample(nn.Module):
    """Patch expansion, which uses only the size of the skip connection."""

    def __init__(self, sizes: UpsamplingSizes) -> None:
        super().__init__()
        self.expand = SHORTCUTS["expand"](sizes)

    def forward(self, features: Tensor, skip: Tensor, mask: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """(B, g..., C), (B, G..., C') -> (B, G..., C')."""
        return self.expand(features, tuple(skip.shape[1:-1]))


# Each maps features (B, g..., C) and the skip connection (B, G..., C') to features (B, G..., C').
UPSAMPLINGS: dict[str, Callable[[PreTrainedConfig, UpsamplingSizes], nn.Module]] = {
    "expand": lambda _, sizes: ExpandUpsample(sizes),
    "nonlocal": lambda config, sizes: NonLocalUpsample(sizes, WindowCrossAttention(config, sizes)),
    "nonlocal_global": lambda config, sizes: NonLocalUpsample(sizes, GlobalCrossAttention(config, sizes)),
}
