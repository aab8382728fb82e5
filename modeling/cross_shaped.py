"""Cross-shaped window attention (Dong et al., "CSWin Transformer", CVPR 2022).

Half of the channels attend within vertical stripes of the grid, the other half within horizontal stripes,
with a convolution of the values as position encoding (LePE). If a side is not a multiple of the stripe width,
we append zeros and mask them in the softmax. The authors' code pads both ends and does not mask the padding;
`masks_padding=False` reproduces that for their checkpoints.

Legend: B batch, H, W height and width of the grid, C channels, S stripes, N tokens per stripe.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init

from .attention import attend, padding_bias, split_heads
from .windows import Windows, merge, partition

COLUMNS, ROWS = 1, 0  # the axis that is cut: columns for vertical stripes, rows for horizontal ones


class Stripes(NamedTuple):
    """How a grid is cut into stripes.

    Attributes:
        windows: The stripes as windows of the padded grid.
        axis: The axis that is cut, `COLUMNS` or `ROWS`.
        before: Number of padding cells before the grid along that axis.
        is_padded: Whether there is any padding.
    """

    windows: Windows
    axis: int
    before: int
    is_padded: bool


def plan_stripes(grid: tuple[int, int], axis: int, width: int, pads_both_ends: bool = False) -> Stripes:
    """Plans stripes that divide `axis` and span the grid along the other axis.

    Args:
        grid: Height and width of the grid.
        axis: The axis to cut, `COLUMNS` or `ROWS`.
        width: Width of a stripe; 0 is a single window over the whole grid.
        pads_both_ends: Whether to split the padding between both ends instead of appending it.
    """
    size = grid[axis]
    count = (size + width - 1) // width if width else 1
    padded_size = count * width if width else size
    window, counts, padded = list(grid), [1, 1], list(grid)
    window[axis], counts[axis], padded[axis] = width or size, count, padded_size
    # An exported program runs at any size: whether it pads must not depend on the size it was traced with.
    is_padded = width > 1 and (torch.compiler.is_exporting() or padded_size != size)
    before = (padded_size - size) // 2 if pads_both_ends and is_padded else 0
    return Stripes(
        Windows(grid, tuple(window), tuple(counts), tuple(padded), (0, 0)), axis, before, is_padded
    )


def cut_stripes(features: Tensor, stripes: Stripes) -> Tensor:
    """(B, H, W, C) -> (B * S, N, C), a view if the memory layout allows it."""
    if stripes.is_padded:
        missing = stripes.windows.padded[stripes.axis] - stripes.windows.grid[stripes.axis]
        widths = [stripes.before, missing - stripes.before]
        features = F.pad(features, [0, 0, *widths] if stripes.axis == COLUMNS else [0, 0, 0, 0, *widths])
    return partition(features, stripes.windows).flatten(0, 1)


def join_stripes(tokens: Tensor, stripes: Stripes) -> Tensor:
    """(B * S, N, C) -> (B, H, W, C): the inverse of `cut_stripes`."""
    windows, axis = stripes.windows, stripes.axis + 1
    features = merge(tokens.unflatten(0, (-1, windows.counts[stripes.axis])), windows)
    if not stripes.is_padded:
        return features
    size = windows.grid[stripes.axis]
    if torch.compiler.is_exporting():  # a view would specialize the program on whether the size needs padding
        return features.index_select(axis, torch.arange(size, device=features.device) + stripes.before)
    return features.narrow(axis, stripes.before, size)


def stripe_bias(padding_mask: Tensor | None, features: Tensor, stripes: Stripes) -> Tensor | None:
    """Padding mask (B, H, W), true for image -> additive bias (B * S, 1, 1, N) that hides all padding."""
    if padding_mask is None and not stripes.is_padded:
        return None
    if padding_mask is None:
        padding_mask = features.new_ones(features.shape[:-1])
    return padding_bias(cut_stripes(padding_mask[..., None].float(), stripes)[..., 0] > 0, features.dtype)


class LocallyEnhancedPosition(nn.Conv2d):
    """LePE: a depthwise 3x3 convolution of the values within each stripe."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, kernel_size=3, padding=1, groups=dim)

    def reset_own_weights(self, _std: float) -> None:
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # torch's default, which the authors keep


class StripeAttention(nn.Module):
    """Attention with LePE within the stripes of one direction."""

    def __init__(
        self, config: PreTrainedConfig, dim: int, head_dim: int, axis: int, width: int, masks_padding: bool
    ) -> None:
        super().__init__()
        self.config = config  # for the attention implementation, which may change after construction
        self.head_dim, self.axis, self.width, self.masks_padding = head_dim, axis, width, masks_padding
        self.is_causal = False  # without it, transformers' SDPA attends causally
        self.position = LocallyEnhancedPosition(dim)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, padding_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Three (B, H, W, C) -> (B, H, W, C), probabilities (B * S, heads, N, N) or None.

        `padding_mask` is an optional padding mask (B, H, W), true for image.
        """
        stripes = plan_stripes(tuple(value.shape[1:-1]), self.axis, self.width, not self.masks_padding)
        bias = stripe_bias(padding_mask, value, stripes) if self.masks_padding else None
        query, key, value = (cut_stripes(features, stripes) for features in (query, key, value))
        heads = (split_heads(tokens, self.head_dim) for tokens in (query, key, value))
        attended, probabilities = attend(self, *heads, bias)
        maps = value.unflatten(1, stripes.windows.window).movedim(-1, 1)
        attended = attended.flatten(-2) + self.position(maps).movedim(1, -1).flatten(1, 2)
        return join_stripes(attended, stripes), probabilities


class CrossShapedAttention(nn.Module):
    """Self-attention of a grid in vertical and horizontal stripes, each with half of the channels and heads.

    Args:
        config: Read only for its attention implementation.
        dim: Channels C.
        num_heads: Heads of both directions together.
        width: Width of the stripes; 0 is one window over the whole grid for all channels, as in CSWin's last
            stage.
        masks_padding: Whether stripe padding is masked in the softmax; False follows the authors' code.
    """

    def __init__(
        self, config: PreTrainedConfig, dim: int, num_heads: int, width: int, masks_padding: bool = True
    ) -> None:
        super().__init__()
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        axes = (COLUMNS, ROWS) if width else (COLUMNS,)
        self.branches = nn.ModuleList(
            StripeAttention(config, dim // len(axes), dim // num_heads, axis, width, masks_padding)
            for axis in axes
        )
        self.o_proj = nn.Linear(dim, dim)

    def forward(
        self, features: Tensor, padding_mask: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """(B, H, W, C) -> (B, H, W, C), probabilities (B * S, heads, N, N) or None of each branch.

        Args:
            features: Features (B, H, W, C).
            padding_mask: Optional padding mask (B, H, W), true for image.
        """
        count = len(self.branches)
        projected = (project(features) for project in (self.q_proj, self.k_proj, self.v_proj))
        query, key, value = (part.chunk(count, dim=-1) for part in projected)
        mixed = [
            branch(query[index], key[index], value[index], padding_mask)
            for index, branch in enumerate(self.branches)
        ]
        return self.o_proj(torch.cat([branch for branch, _ in mixed], dim=-1)), tuple(p for _, p in mixed)
