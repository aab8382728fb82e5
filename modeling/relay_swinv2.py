"""Swin V2 with relay tokens (Perron et al., TMLR 2026): in every block of both crops, a copy of the relay tokens joins
each window, and their mean over all windows goes on. A linear layer widens them where patches are merged.

Legend: B batch, S image side, h, w grid of patches, C channels, R relay tokens.
"""

from functools import partial
from typing import NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedConfig

from .patches import PatchEmbed
from .relay_tokens import RELAY_UPDATES, EncodedScales, RelayTokens, TwoScales, encoded_scales
from .swinv2_blocks import PatchMergePostNorm, ShiftedWindows, SwinV2Block, SwinV2Sizes, cut_windows


class RelaySwinV2Sizes(NamedTuple):
    """Sizes of the encoder."""

    num_channels: int
    patch: int
    stages: tuple[SwinV2Sizes, ...]
    drop_path_rates: tuple[tuple[float, ...], ...]  # of each block of each stage
    num_relay_tokens: int
    relay_update: str
    shares_embedding: bool = False  # whether both crops have the same patch embedding


class RelayMerge(nn.Module):
    """From one stage to the next: patches are merged, relay tokens widened to the same channels."""

    def __init__(self, dim: int, layer_norm_eps: float, has_relay_tokens: bool) -> None:
        super().__init__()
        self.patches = PatchMergePostNorm(dim, (2, 2), layer_norm_eps)
        self.relay_tokens = nn.Linear(dim, 2 * dim) if has_relay_tokens else None

    def forward(self, scales: TwoScales) -> TwoScales:
        """(B, h, w, C) twice, (B, R, C) -> (B, ceil(h / 2), ceil(w / 2), 2 C) twice, (B, R, 2 C)."""
        local, context = self.patches(scales.local), self.patches(scales.context)
        if self.relay_tokens is None:
            return TwoScales(local, context, local.new_zeros(local.shape[0], 0, local.shape[-1]))
        return TwoScales(local, context, self.relay_tokens(scales.relay_tokens))


class RelayStage(nn.Module):
    """The blocks of one resolution, with shifted windows in every other block."""

    def __init__(
        self,
        config: PreTrainedConfig,
        sizes: SwinV2Sizes,
        drop_path_rates: tuple[float, ...],
        relay_update: str,
    ) -> None:
        super().__init__()
        self.window, self.update = sizes.window, RELAY_UPDATES[relay_update]
        self.blocks = nn.ModuleList(SwinV2Block(config, sizes, rate) for rate in drop_path_rates)

    def forward(self, scales: TwoScales) -> TwoScales:
        """(B, h, w, C) twice, (B, R, C) -> the same shapes."""
        local_cuts, context_cuts = (
            [cut_windows(features, self.window, shifted) for shifted in (False, True)]
            for features in (scales.local, scales.context)
        )
        for index, block in enumerate(self.blocks):
            local_branch = partial(with_windows, block, local_cuts[index % 2])
            context_branch = partial(with_windows, block, context_cuts[index % 2])
            scales = self.update(local_branch, context_branch, scales)
        return scales


def with_windows(
    block: nn.Module, window_cut: ShiftedWindows, features: Tensor, relay_tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """A block in these windows: (B, h, w, C), (B, R, C) -> the same shapes."""
    return block(features, relay_tokens, window_cut)


class RelaySwinV2Encoder(nn.Module):
    """Two crops through the stages of Swin V2; `config` is read for its attention only."""

    def __init__(self, config: PreTrainedConfig, sizes: RelaySwinV2Sizes) -> None:
        super().__init__()
        first = sizes.stages[0]
        embed = sizes.num_channels, first.dim, (sizes.patch,) * 2, first.layer_norm_eps
        self.local_embed = PatchEmbed(*embed)
        self.context_embed = None if sizes.shares_embedding else PatchEmbed(*embed)
        self.relay_tokens = RelayTokens(sizes.num_relay_tokens, first.dim, std=1.0)
        self.stages = nn.ModuleList(
            RelayStage(config, stage, rates, sizes.relay_update)
            for stage, rates in zip(sizes.stages, sizes.drop_path_rates, strict=True)
        )
        self.merges = nn.ModuleList(
            RelayMerge(stage.dim, stage.layer_norm_eps, sizes.num_relay_tokens > 0)
            for stage in sizes.stages[:-1]
        )

    def forward(self, local_pixels: Tensor, context_pixels: Tensor) -> EncodedScales:
        """(B, C, S, S) each -> features (B, h, w, C) after the embedding and each stage, relay tokens (B, R, C)."""
        local = self.local_embed(local_pixels)
        context = (self.context_embed or self.local_embed)(context_pixels)
        scales = TwoScales(local, context, self.relay_tokens(local))
        passed = [scales]
        for index, stage in enumerate(self.stages):
            scales = stage(self.merges[index - 1](scales) if index else scales)
            passed.append(scales)
        return encoded_scales(passed)
