"""Stages of Swin with GLAM's global tokens in every window; without global tokens they are plain Swin.

Liu et al., "Swin Transformer", ICCV 2021; Themyr et al. (GLAM), WACV 2023, section 3.2 and Fig. 3. One block
is W-MSA over [global tokens ; window], then G-MSA over all global tokens, then the MLP of the visual tokens.
Relative position bias and shift mask apply between visual tokens only.

Legend: B batch, G... grid axes, C channels, W windows, N tokens of a window, T global tokens per window.
"""

from math import prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import Attention, missing_keys
from .blocks import DropPath, Encoded, Mlp, Revise, is_compiled_for_cpu, unchanged
from .global_tokens import AcrossWindows, GlobalTokens, bias_with_tokens, tokens_with_image
from .patches import PatchEmbed, PatchMerge, patches_with_image
from .positions import RelativePositionBias, global_position
from .windows import (
    ShiftMasks,
    Windows,
    padding_keys,
    plan_windows,
    shift_masks,
    window_partition,
    window_reverse,
)


class StageSizes(NamedTuple):
    """Sizes of one stage."""

    dim: int
    depth: int
    num_heads: int
    window: tuple[int, ...]
    mlp_ratio: float
    drop_path_rates: tuple[float, ...]
    layer_norm_eps: float = 1e-5
    num_global_tokens: int = 0
    use_global_attention: bool = True
    global_position_embedding: str = "none"
    global_position_rows: int = 0
    global_block: str = "bare"
    global_clamp: float | None = None
    shifts_windows: bool | tuple[bool, ...] = True  # for all axes, or for each
    shifted_blocks: tuple[bool, ...] | None = None  # None: every other block, from the second on
    masks_shifted_windows: bool = True
    masks_padding: bool = False  # whether no key of a window is padding; Swin's zeros are keys
    position_index: str = "clean"


class WindowCut(NamedTuple):
    """The partition of a grid into windows that the blocks of a stage share, with its masks and positions."""

    windows: Windows
    shift_masks: ShiftMasks | None
    token_padding_mask: Tensor | None
    global_position: Tensor | None
    padding_keys: Tensor | None = None


class SwinBlock(AcrossWindows, GradientCheckpointingLayer):
    """Window attention with global tokens (W-MSA), attention across windows (G-MSA), MLP."""

    def __init__(
        self, config: PreTrainedConfig, sizes: StageSizes, drop_path_rate: float, is_last: bool
    ) -> None:
        super().__init__()
        self.is_last = is_last  # of its stage: its global tokens are not used any more
        self.norm1 = nn.LayerNorm(sizes.dim, eps=sizes.layer_norm_eps)
        self.position_bias = RelativePositionBias(sizes.window, sizes.num_heads, sizes.position_index)
        self.attention = Attention(config, sizes.dim, sizes.num_heads)
        self.norm2 = nn.LayerNorm(sizes.dim, eps=sizes.layer_norm_eps)
        self.mlp = Mlp(sizes.dim, int(sizes.dim * sizes.mlp_ratio))
        self.drop_path = DropPath(drop_path_rate)
        self.global_block, self.global_clamp = sizes.global_block, sizes.global_clamp
        self.global_attention = None
        if sizes.num_global_tokens and sizes.use_global_attention and not is_last:
            self.build_global_attention(
                config, sizes.dim, sizes.num_heads, sizes.mlp_ratio, sizes.layer_norm_eps
            )

    def forward(
        self, features: Tensor, global_tokens: Tensor | None, window_cut: WindowCut
    ) -> tuple[Tensor, Tensor | None]:
        """(B, G..., C), (B, W, T, C) -> the same shapes."""
        windows = window_partition(self.norm1(features), window_cut.windows)
        windows, mixed = self.mix_within_windows(windows, global_tokens, window_cut)
        if not self.is_last and global_tokens is not None:
            global_tokens = self.updated(global_tokens, mixed)
        if self.global_attention is not None:
            global_tokens = self.mix_across_windows(
                global_tokens, window_cut.global_position, window_cut.token_padding_mask
            )
        features = features + self.drop_path(window_reverse(windows, window_cut.windows))
        features = features + self.drop_path(self.mlp(self.norm2(features)))
        return features, global_tokens

    @property
    def window_attention(self) -> Attention:
        """W-MSA, over [T ; window]."""
        return self.attention

    def mix_within_windows(
        self, windows: Tensor, global_tokens: Tensor | None, window_cut: WindowCut
    ) -> tuple[Tensor, Tensor | None]:
        """W-MSA over [T ; window]: (B, W, N, C), (B, W, T, C) -> the same shapes."""
        batch, count, _, dim = windows.shape
        num_tokens = 0 if global_tokens is None else global_tokens.shape[2]
        if global_tokens is not None and self.global_block == "transformer":
            global_tokens = self.norm1(global_tokens)
        context, hidden = self.context_of(windows, global_tokens)
        asking, queries = windows if self.is_last else context, slice(None)
        if self.is_last and is_compiled_for_cpu(windows):  # windows are then computed once, into the context
            asking, queries = context, slice(num_tokens, num_tokens + windows.shape[2])
        bias = self.attention_bias(window_cut, batch, num_tokens, windows.dtype, hidden)
        mixed, _ = self.attention(asking.flatten(0, 1), context.flatten(0, 1), bias, queries)
        mixed = mixed.reshape(batch, count, -1, dim)
        if self.is_last or global_tokens is None:
            return mixed, global_tokens
        return mixed[:, :, num_tokens : num_tokens + windows.shape[2]], mixed[:, :, :num_tokens]

    def context_of(self, windows: Tensor, global_tokens: Tensor | None) -> tuple[Tensor, int]:
        """(B, W, N, C), (B, W, T, C) -> [T ; window ; zeros], and the number of zero tokens, which only save time."""
        if global_tokens is None:
            return windows, 0
        hidden = missing_keys(self.attention, global_tokens.shape[2] + windows.shape[2], windows)
        parts = [global_tokens, windows]
        if hidden:
            parts.append(windows.new_zeros(()).expand(*windows.shape[:2], hidden, windows.shape[3]))
        return torch.cat(parts, dim=2), hidden

    def attention_bias(
        self, window_cut: WindowCut, batch: int, num_tokens: int, dtype: torch.dtype, hidden: int = 0
    ) -> Tensor:
        """-> (1 or B * W, heads, N or T + N, T + N); for global tokens zero, except for keys that are padding."""
        masks, keys = window_cut.shift_masks, window_cut.padding_keys
        asking_tokens = 0 if self.is_last else num_tokens
        bias = bias_with_tokens(self.position_bias(), masks, batch, num_tokens, asking_tokens, hidden)
        if keys is not None:
            keys = F.pad(keys, (num_tokens, hidden)).expand(batch, -1, -1)
            bias = bias + keys.flatten(0, 1)[:, None, None]
        return bias.to(dtype)

    def updated(self, global_tokens: Tensor, mixed: Tensor) -> Tensor:
        """Global tokens and what W-MSA makes of them, (B, W, T, C) twice -> (B, W, T, C)."""
        if self.global_block == "bare":
            return mixed
        tokens = global_tokens.flatten(0, 1)  # stochastic depth drops the tokens of single windows
        tokens = tokens + self.drop_path(mixed.flatten(0, 1))
        tokens = tokens + self.drop_path(self.mlp(self.norm2(tokens)))
        return tokens.reshape(global_tokens.shape)


class SwinStage(nn.Module):
    """The blocks of one resolution, with shifted windows in every other block and shared global tokens.

    Where no key is padding, the features of an image do not depend on how much padding follows it, but for global tokens
    in shifted windows: as in the authors' code, the last of these holds both ends of the padded grid, and the tokens of
    its last regular window, so that a window of padding more makes it another one.
    """

    def __init__(self, config: PreTrainedConfig, sizes: StageSizes) -> None:
        super().__init__()
        self.window = sizes.window
        self.shifts_windows = sizes.shifts_windows
        self.shifted_blocks = sizes.shifted_blocks or tuple(index % 2 == 1 for index in range(sizes.depth))
        self.masks_shifted_windows = sizes.masks_shifted_windows
        self.masks_padding = sizes.masks_padding
        self.num_global_tokens = sizes.num_global_tokens
        self.blocks = nn.ModuleList(
            SwinBlock(config, sizes, rate, is_last=index == sizes.depth - 1)
            for index, rate in enumerate(sizes.drop_path_rates)
        )
        self.global_tokens = (
            GlobalTokens(sizes.num_global_tokens, sizes.dim, sizes.global_block)
            if sizes.num_global_tokens
            else None
        )
        self.global_position = None
        if any(block.global_attention is not None for block in self.blocks):
            self.global_position = global_position(
                sizes.global_position_embedding,
                sizes.global_position_rows,
                sizes.num_global_tokens,
                sizes.dim,
            )

    def forward(self, features: Tensor, pixel_mask: Tensor | None = None) -> Tensor:
        """(B, G..., C), optional mask (B, G...), True for image -> (B, G..., C)."""
        cuts = [self.cut(features, pixel_mask, shifted) for shifted in (False, True)]
        global_tokens = None
        if self.global_tokens is not None:
            global_tokens = self.global_tokens(features.shape[0], prod(cuts[0].windows.counts))
        for index, block in enumerate(self.blocks):
            features, global_tokens = block(features, global_tokens, cuts[self.shifted_blocks[index]])
        return features

    def cut(self, features: Tensor, pixel_mask: Tensor | None, shifted: bool) -> WindowCut:
        """Returns the partition into regular or shifted windows for features of this size."""
        windows = plan_windows(tuple(features.shape[1:-1]), self.window, shifted and self.shifts_windows)
        masks = None
        if self.masks_shifted_windows:
            masks = shift_masks(windows, features.device, features.dtype)
        position = None
        if self.global_position is not None:
            position = self.global_position(windows)
        return WindowCut(
            windows,
            masks,
            tokens_with_image(pixel_mask, windows, self.num_global_tokens)
            if self.num_global_tokens
            else None,
            position,
            padding_keys(windows, pixel_mask, features) if self.masks_padding else None,
        )


class SwinEncoder(nn.Module):
    """Patch embedding, then stages with patch merging between them."""

    def __init__(
        self,
        config: PreTrainedConfig,
        num_channels: int,
        patch: tuple[int, ...],
        stages: list[StageSizes],
        merges: list[tuple[int, ...]],
    ) -> None:
        """Takes the sizes of the stages, and the factor of the merging after each but the last."""
        super().__init__()
        eps = stages[0].layer_norm_eps
        self.patch_embed = PatchEmbed(num_channels, stages[0].dim, patch, eps)
        self.stages = nn.ModuleList(SwinStage(config, sizes) for sizes in stages)
        dims = [sizes.dim for sizes in stages[:-1]]
        self.merges = nn.ModuleList(
            PatchMerge(dim, factor, eps) for dim, factor in zip(dims, merges, strict=True)
        )

    def forward(
        self, pixel_values: Tensor, pixel_mask: Tensor | None = None, revise: Revise = unchanged
    ) -> Encoded:
        """(B, C, S...), optional mask (B, S...), 1 for image -> features (B, G..., C) of each stage."""
        features = revise(0, self.patch_embed(pixel_values))
        inputs, outputs = [], []
        for index, stage in enumerate(self.stages):
            features = self.merges[index - 1](features) if index else features
            inputs.append(features)
            features = revise(index + 1, stage(features, patches_with_image(pixel_mask, features)))
            outputs.append(features)
        return Encoded(inputs, outputs)

    def strides_and_blocks(self) -> list[tuple[tuple[int, ...], list[SwinBlock]]]:
        """Stride along each axis, and blocks, of each stage."""
        factors = [self.patch_embed.patch, *(merge.factor for merge in self.merges)]
        return [
            (tuple(map(prod, zip(*factors[: number + 1], strict=True))), list(stage.blocks))
            for number, stage in enumerate(self.stages)
        ]
