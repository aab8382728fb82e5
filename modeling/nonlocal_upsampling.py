"""Non-local upsampling: fine features ask, coarse ones answer (Themyr et al. (GLAM), WACV 2023, section 3.3 and Fig. 4).

The skip connection gives the queries, the features to upsample keys and values; a plain upsampling of the latter is
the residual, and an MLP follows. The paper lets every query attend to all coarse tokens (`GlobalCrossAttention`); the
authors' code cuts both grids into as many windows and lets a fine window attend to the coarse one below it
(`WindowCrossAttention`), with relative positions. In that code an indexing slip permutes the columns of keys, which
weights trained with it need (`nonlocal_bias` "official").

Legend: B batch, G... grid axes of the fine features, g... of the coarse ones, C channels of the coarse ones,
C' of the fine ones.
"""

from collections.abc import Callable
from math import prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import Attention, hiding_bias
from .blocks import DropPath, Mlp
from .patches import PatchExpand
from .windows import Windows, crop, cut, join, plan_windows


class UpsamplingSizes(NamedTuple):
    """The numbers that make one step of upsampling, from `dim` channels to `out_dim` on twice the grid.

    window: side of a coarse window; that of a fine one is twice as long.
    num_heads: of the attention, which is `dim` wide.
    bias: numbering of relative positions, "clean" or "official".
    shortcut: the residual, "expand" (patch expansion) or "bilinear".
    """

    dim: int
    out_dim: int
    num_heads: int
    window: tuple[int, ...]
    mlp_ratio: float
    drop_path_rate: float = 0.0
    layer_norm_eps: float = 1e-5
    bias: str = "clean"
    shortcut: str = "expand"


def cross_position_index(window: tuple[int, ...], bias: str, device: torch.device) -> Tensor:
    """(N, M) row of the bias table for each place of a fine window and each of the coarse window that it covers.

    A fine place counts as the coarse one that it lies in. "official" takes the place k along the last axis for 2 k
    modulo the window, as the authors' code does.
    """
    fine = torch.meshgrid(*(torch.arange(2 * size, device=device) // 2 for size in window), indexing="ij")
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
    """A learned bias for each head and each offset between a fine place and a coarse one."""

    def __init__(self, window: tuple[int, ...], num_heads: int, bias: str) -> None:
        super().__init__()
        self.window = window
        self.bias = bias
        self.table = nn.Parameter(torch.zeros(prod(2 * size - 1 for size in window), num_heads))

    def forward(self) -> Tensor:
        """-> (heads, N, M), N places of a fine window and M of a coarse one."""
        index = cross_position_index(self.window, self.bias, self.table.device)
        return self.table[index.flatten()].unflatten(0, index.shape).permute(2, 0, 1)

    def reset_own_weights(self, std: float) -> None:
        init.trunc_normal_(self.table, std=std)


class WindowCrossAttention(nn.Module):
    """The authors' code: each fine window attends to the coarse window that it covers. Padding takes part as zeros."""

    def __init__(self, config: PreTrainedConfig, sizes: UpsamplingSizes) -> None:
        super().__init__()
        self.window = sizes.window
        self.attention = Attention(config, sizes.dim, sizes.num_heads, token_dim=sizes.out_dim)
        self.position_bias = CrossPositionBias(sizes.window, sizes.num_heads, sizes.bias)

    def forward(self, skip: Tensor, features: Tensor, mask: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """(B, G..., C'), (B, g..., C) -> (B, G..., C'); a mask of padding is not needed inside windows."""
        coarse = plan_windows(tuple(features.shape[1:-1]), self.window)
        fine = twice(coarse, tuple(skip.shape[1:-1]))
        asking, context = cut(skip, fine), cut(features, coarse)
        bias = self.position_bias()[None].to(context.dtype)
        mixed, _ = self.attention(asking.flatten(0, 1), context.flatten(0, 1), bias)
        return join(mixed.reshape(asking.shape), fine)


def twice(coarse: Windows, grid: tuple[int, ...]) -> Windows:
    """The cut of a grid twice as fine into as many windows, each twice as long."""
    window, padded = tuple(2 * size for size in coarse.window), tuple(2 * size for size in coarse.padded)
    return Windows(grid, window, coarse.counts, padded, coarse.shift)


class GlobalCrossAttention(nn.Module):
    """The paper: each fine token attends to all coarse ones. No relative positions, hence no bias and linear memory."""

    def __init__(self, config: PreTrainedConfig, sizes: UpsamplingSizes) -> None:
        super().__init__()
        self.attention = Attention(config, sizes.dim, sizes.num_heads, token_dim=sizes.out_dim)

    def forward(self, skip: Tensor, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, G..., C'), (B, g..., C), optional (B, g...) true where there is image -> (B, G..., C')."""
        bias = None if mask is None else hiding_bias(mask.flatten(1), features.dtype)
        mixed, _ = self.attention(skip.flatten(1, -2), features.flatten(1, -2), bias)
        return mixed.reshape(skip.shape)


class BilinearExpand(nn.Module):
    """The authors' other residual: the finer width by a linear map, then bilinear upsampling, corners aligned."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.projection = nn.Linear(dim, out_dim)

    def forward(self, features: Tensor, grid: tuple[int, ...]) -> Tensor:
        """(B, h, w, C) -> (B, G..., C'), cropped from twice the size."""
        feature_map = self.projection(features).movedim(-1, 1)
        size = tuple(2 * side for side in feature_map.shape[2:])
        finer = F.interpolate(feature_map, size=size, mode="bilinear", align_corners=True)
        return crop(finer.movedim(1, -1), grid)


SHORTCUTS: dict[str, Callable[[UpsamplingSizes], nn.Module]] = {
    "expand": lambda sizes: PatchExpand(
        sizes.dim, sizes.out_dim, (2,) * len(sizes.window), sizes.layer_norm_eps
    ),
    "bilinear": lambda sizes: BilinearExpand(sizes.dim, sizes.out_dim),
}


class NonLocalUpsample(GradientCheckpointingLayer):
    """Cross-attention from the skip to the coarse features, added to their plain upsampling, and an MLP."""

    def __init__(self, sizes: UpsamplingSizes, attend: nn.Module) -> None:
        super().__init__()
        self.shortcut = SHORTCUTS[sizes.shortcut](sizes)
        self.norm1 = nn.LayerNorm(sizes.dim, eps=sizes.layer_norm_eps)
        self.attend = attend
        self.norm2 = nn.LayerNorm(sizes.out_dim, eps=sizes.layer_norm_eps)
        self.mlp = Mlp(sizes.out_dim, int(sizes.out_dim * sizes.mlp_ratio))
        self.drop_path = DropPath(sizes.drop_path_rate)

    def forward(self, features: Tensor, skip: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, g..., C), (B, G..., C'), optional (B, g...) true where there is image -> (B, G..., C')."""
        upsampled = self.shortcut(features, tuple(skip.shape[1:-1]))
        upsampled = upsampled + self.drop_path(self.attend(skip, self.norm1(features), mask))
        return upsampled + self.drop_path(self.mlp(self.norm2(upsampled)))


class ExpandUpsample(nn.Module):
    """Plain patch expansion, which reads no more of the skip than its size."""

    def __init__(self, sizes: UpsamplingSizes) -> None:
        super().__init__()
        self.expand = SHORTCUTS["expand"](sizes)

    def forward(self, features: Tensor, skip: Tensor, mask: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """(B, g..., C), (B, G..., C') -> (B, G..., C')."""
        return self.expand(features, tuple(skip.shape[1:-1]))


# By name: from features (B, g..., C) and the skip (B, G..., C') to features (B, G..., C').
UPSAMPLINGS: dict[str, Callable[[PreTrainedConfig, UpsamplingSizes], nn.Module]] = {
    "expand": lambda _, sizes: ExpandUpsample(sizes),
    "nonlocal": lambda config, sizes: NonLocalUpsample(sizes, WindowCrossAttention(config, sizes)),
    "nonlocal_global": lambda config, sizes: NonLocalUpsample(sizes, GlobalCrossAttention(config, sizes)),
}
