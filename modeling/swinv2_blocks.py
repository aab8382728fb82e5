"""Blocks of Swin V2 whose windows may hold extra tokens (Liu et al., "Swin Transformer V2", CVPR 2022).

Attention is by cosine similarity with a learned temperature for each head, positions enter through a small network
(the continuous position bias), and norms come after attention and MLP. Extra tokens join every window: the same for
all windows (relay tokens; each window updates a copy, and the copies are averaged), or other ones in each. They have
no position bias and no shift mask.

Grids that windows do not divide are shifted first and zero-padded after, as in timm and the code of the relay
tokens' authors; transformers' Swinv2 pads first. Without padding, both are the same.

Legend: B batch, h, w height and width of the grid, C channels, W windows, N tokens of a window, E extra tokens.
"""

from math import log, log2
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import Attention, attend, split_heads
from .blocks import DropPath, Mlp, in_slices
from .patches import PatchMerge
from .positions import by_offset
from .windows import ShiftMasks, Windows, crop, merge, pad, partition, plan_windows, roll

SMALLEST_NORM = 1e-6  # of a query or key; padded keys are exactly 0
MOST_SCALE = 100.0
POSITION_WIDTH = 512  # hidden channels of the continuous position bias
FURTHEST = 8.0  # coordinate of the furthest offset in a window, before the logarithm
MOST_BIAS = 16.0
KINDS = 3  # of shifted windows along an axis: the last, the one before it, and all others


class SwinV2Sizes(NamedTuple):
    """Sizes of the blocks of one stage."""

    dim: int
    num_heads: int
    window: tuple[int, int]
    mlp_ratio: float = 4.0
    layer_norm_eps: float = 1e-5
    pretrained_window: tuple[int, int] | None = None


class ShiftedWindows(NamedTuple):
    """The partition of a grid into windows, and the masks that keep apart what is not adjacent."""

    windows: Windows
    shift_masks: ShiftMasks | None


def cut_windows(features: Tensor, window: tuple[int, ...], shifted: bool) -> ShiftedWindows:
    """(B, h, w, C) -> the partition; along an axis that one window covers, it shrinks to the grid and never shifts."""
    grid = tuple(features.shape[1:-1])
    window = tuple(min(size, side) for size, side in zip(grid, window, strict=True))
    windows = plan_windows(grid, window)
    if shifted:
        shift = tuple(0 if size <= side else side // 2 for size, side in zip(grid, window, strict=True))
        windows = windows._replace(shift=shift)
    return ShiftedWindows(windows, padded_shift_masks(windows, features.device, features.dtype))


def padded_shift_masks(windows: Windows, device: torch.device, dtype: torch.dtype) -> ShiftMasks | None:
    """Returns the masks of shifted windows: -100 between tokens of different regions; None without a shift.

    Regions lie on the grid before padding; the padding is apart from all cells that share its window, as in the authors'
    code. Along each axis only the last two windows can hold a seam, so that all windows before them are of one kind.
    """
    if not any(windows.shift):
        return None
    kinds = torch.zeros((), dtype=torch.long, device=device)
    regions = kinds[None, None]  # (kinds, N)
    for size, side, shift, count in zip(
        windows.grid, windows.window, windows.shift, windows.counts, strict=True
    ):
        # Cells of the last three windows, counted from the end of the grid; from 0 on they are padding.
        place = torch.arange(-KINDS * side, 0, device=device).reshape(KINDS, side) + (count * side - size)
        region = ((place >= -side).long() + (place >= -shift).long()) * (place < 0)
        regions = (KINDS * regions[:, None, :, None] + region[:, None]).flatten(2, 3).flatten(0, 1)
        kind = (torch.arange(count, device=device) + (KINDS - count)).clamp(min=0)
        kinds = KINDS * kinds[..., None] + kind
    apart = regions[:, :, None] != regions[:, None]
    masks = torch.zeros(apart.shape, dtype=dtype, device=device).masked_fill(apart, -100.0)
    return ShiftMasks(masks, kinds.flatten())


def log_spaced_offsets(
    window: tuple[int, ...], pretrained: tuple[int, ...] | None, device: torch.device
) -> Tensor:
    """-> (rows, axes), the offsets of a window in the order of `by_offset`, on a log scale."""
    axes = []
    for side, trained in zip(window, pretrained or window, strict=True):
        offsets = torch.arange(1 - side, side, device=device, dtype=torch.float32)
        axes.append(offsets * (FURTHEST / max(trained - 1, 1)))
    offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)
    return offsets.sign() * torch.log2(offsets.abs() + 1.0) / log2(FURTHEST)


class ContinuousPositionBias(nn.Module):
    """Bias for each head and each offset between two positions, from a network that knows windows of any size."""

    def __init__(self, num_heads: int, axes: int, pretrained_window: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.pretrained_window = pretrained_window
        self.fc1 = nn.Linear(axes, POSITION_WIDTH)
        self.fc2 = nn.Linear(POSITION_WIDTH, num_heads, bias=False)

    def forward(self, window: tuple[int, ...], features: Tensor) -> Tensor:
        """-> (heads, N, N), between 0 and 16, on the device and in the type of `features`."""
        offsets = log_spaced_offsets(window, self.pretrained_window, features.device).to(features.dtype)
        return by_offset(MOST_BIAS * self.fc2(F.relu(self.fc1(offsets))).sigmoid(), window)


def of_length(features: Tensor, length: Tensor | float = 1.0) -> Tensor:
    """(..., d) -> the same shape, with this length; in float32 or wider, where the length cannot underflow."""
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    return features * (length / features.norm(dim=-1, keepdim=True).clamp_min(SMALLEST_NORM))


class CosineAttention(Attention):
    """Attention by cosine similarity, with a learned temperature for each head; keys have no bias.

    Args:
        config: Read only for its attention implementation.
        dim: Channels of all heads together.
        num_heads: Number of heads; must divide `dim`.
    """

    def __init__(self, config: PreTrainedConfig, dim: int, num_heads: int) -> None:
        super().__init__(config, dim, num_heads)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.log_scale = nn.Parameter(torch.full((num_heads,), log(10.0)))

    def forward(self, tokens: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """(B, N, C) -> (B, N, C), probabilities (B, heads, N, N) or None.

        Args:
            tokens: Tokens (B, N, C).
            bias: Additive bias, broadcastable to (B, heads, N, N).
        """
        query, key, value = (
            split_heads(features, self.head_dim)
            for features in (self.q_proj(tokens), self.k_proj(tokens), self.v_proj(tokens))
        )
        scale = self.log_scale.clamp(max=log(MOST_SCALE)).exp()[:, None, None]
        query = of_length(query, scale * self.head_dim**0.5)  # `attend` divides by this root
        attended, probabilities = attend(
            self, query.to(value.dtype), of_length(key).to(value.dtype), value, bias
        )
        return self.o_proj(attended.flatten(-2)), probabilities

    def reset_own_weights(self, _std: float) -> None:
        init.constant_(self.log_scale, log(10.0))


class SwinV2Block(GradientCheckpointingLayer):
    """Attention in windows with extra tokens, then the MLP of all tokens; each with a norm after it."""

    def __init__(self, config: PreTrainedConfig, sizes: SwinV2Sizes, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.position_bias = ContinuousPositionBias(
            sizes.num_heads, len(sizes.window), sizes.pretrained_window
        )
        self.attention = CosineAttention(config, sizes.dim, sizes.num_heads)
        self.norm1 = nn.LayerNorm(sizes.dim, eps=sizes.layer_norm_eps)
        self.mlp = Mlp(sizes.dim, int(sizes.dim * sizes.mlp_ratio))
        self.norm2 = nn.LayerNorm(sizes.dim, eps=sizes.layer_norm_eps)
        self.drop_path = DropPath(drop_path_rate)

    def forward(
        self, features: Tensor, extra_tokens: Tensor, window_cut: ShiftedWindows
    ) -> tuple[Tensor, Tensor]:
        """(B, h, w, C), (B, E, C) for all windows or (B, W, E, C) -> the same shapes; E may be 0."""
        tokens = joined(features, extra_tokens)
        mixed = joined(*self.mix_within_windows(features, extra_tokens, window_cut))
        tokens = tokens + self.drop_path(self.norm1(mixed))
        tokens = tokens + self.drop_path(in_slices(self.feed_forward, tokens))
        count = features.shape[1:-1].numel()
        return tokens[:, :count].reshape(features.shape), tokens[:, count:].reshape(extra_tokens.shape)

    def feed_forward(self, tokens: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.norm2(self.mlp(tokens))

    def mix_within_windows(
        self, features: Tensor, extra_tokens: Tensor, window_cut: ShiftedWindows
    ) -> tuple[Tensor, Tensor]:
        """(B, h, w, C), (B, E, C) or (B, W, E, C) -> the same shapes."""
        windows = window_cut.windows
        cut = partition(pad(roll(features, windows, -1), windows), windows)
        batch, count, length, _ = cut.shape
        is_shared = extra_tokens.ndim == 3
        extra = extra_tokens[:, None].expand(-1, count, -1, -1) if is_shared else extra_tokens
        context = torch.cat([cut, extra.to(cut.dtype)], dim=2).flatten(0, 1)
        bias = self.attention_bias(window_cut, batch, extra.shape[2], context)
        mixed = self.attention(context, bias)[0].unflatten(0, (batch, count))
        features = roll(crop(merge(mixed[:, :, :length], windows), windows.grid), windows, 1)
        extra = mixed[:, :, length:]
        return features, extra.mean(dim=1) if is_shared else extra

    def attention_bias(self, window_cut: ShiftedWindows, batch: int, extra: int, context: Tensor) -> Tensor:
        """-> (1 or B * W, heads, N + E, N + E), zero in rows and columns of extra tokens."""
        bias, masks = self.position_bias(window_cut.windows.window, context)[None], window_cut.shift_masks
        bias = F.pad(bias if masks is None else bias + masks.of_kinds[:, None], (0, extra, 0, extra))
        return (bias if masks is None else bias[masks.kinds.repeat(batch)]).to(context.dtype)


def joined(features: Tensor, extra_tokens: Tensor) -> Tensor:
    """(B, h, w, C), (B, E, C) or (B, W, E, C) -> (B, h * w + all extra tokens, C)."""
    return torch.cat([features.flatten(1, -2), extra_tokens.flatten(1, -2)], dim=1)


class PatchMergePostNorm(PatchMerge):
    """Swin V2's patch merging, with the norm after the linear layer."""

    def __init__(self, dim: int, factor: tuple[int, ...], layer_norm_eps: float = 1e-5) -> None:
        super().__init__(dim, factor, layer_norm_eps)
        self.norm = nn.LayerNorm(2 * dim, eps=layer_norm_eps)

    def forward(self, features: Tensor) -> Tensor:
        """(B, G..., C) -> (B, ceil(G / factor)..., 2 C)."""
        return self.norm(self.reduction(self.neighbors(features)))
