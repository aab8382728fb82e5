"""The plain vision transformer with relay tokens: both crops pass the same pre-norm blocks, each with the relay tokens
in front of its patches (Perron et al., TMLR 2026; Dosovitskiy et al., ICLR 2021).

As in the authors' code there is no class token, layer scale or final norm. Their position tables have rows for the
relay tokens, of which those of the context are added to the tokens and the others never read; here the relay
tokens contain that sum.

Legend: B batch, S image side, h, w grid of patches, C channels, R relay tokens.
"""

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init

from .patches import PatchEmbed
from .pyramid_encoder import GridAttention, PreNormBlock
from .relay_tokens import RELAY_UPDATES, EncodedScales, RelayTokens, TwoScales, encoded_scales

TABLE_STD = 0.02  # of positions at initialization, as in the authors' code


class PositionTable(nn.Module):
    """A learned embedding for each position of a square grid, resampled for grids of other sizes."""

    def __init__(self, side: int, dim: int) -> None:
        super().__init__()
        self.side = side
        self.table = nn.Parameter(torch.zeros(side**2, dim))

    def forward(self, features: Tensor) -> Tensor:
        """(B, h, w, C) -> the same shape, with the position added."""
        square, grid = (self.side, self.side), tuple(features.shape[1:-1])
        positions = self.table.unflatten(0, square)
        if grid != square:
            positions = F.interpolate(positions.movedim(-1, 0)[None], grid, mode="bicubic")[0].movedim(0, -1)
        return features + positions

    def reset_own_weights(self, _std: float) -> None:
        init.normal_(self.table, std=TABLE_STD)


def attend_with_relay(block: nn.Module, features: Tensor, relay_tokens: Tensor) -> tuple[Tensor, Tensor]:
    """A block over [R ; patches]: (B, h, w, C), (B, R, C) -> the same shapes."""
    count = relay_tokens.shape[1]
    tokens = block(torch.cat([relay_tokens, features.flatten(1, 2)], dim=1))
    return tokens[:, count:].reshape(features.shape), tokens[:, :count]


class RelayVitSizes(NamedTuple):
    """Sizes of the encoder."""

    num_channels: int
    patch: int
    crop_size: int  # side in pixels of the crops for which position tables are made
    dim: int
    num_heads: int
    mlp_ratio: float
    drop_path_rates: tuple[float, ...]  # of each block
    layer_norm_eps: float
    num_relay_tokens: int
    relay_update: str
    shares_embedding: bool = False  # whether both crops have the same patch embedding and position table
    shares_blocks: bool = True


class PositionedPatches(nn.Module):
    """Patch embedding and positions of one crop."""

    def __init__(self, sizes: RelayVitSizes) -> None:
        super().__init__()
        patch = (sizes.patch,) * 2
        self.patch_embed = PatchEmbed(sizes.num_channels, sizes.dim, patch, layer_norm_eps=None)
        self.position = PositionTable((sizes.crop_size + sizes.patch - 1) // sizes.patch, sizes.dim)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, h, w, C')."""
        return self.position(self.patch_embed(pixel_values))


class RelayVitEncoder(nn.Module):
    """Two crops through the blocks of a plain vision transformer; `config` is read for its attention only."""

    def __init__(self, config: PreTrainedConfig, sizes: RelayVitSizes) -> None:
        super().__init__()
        self.update = RELAY_UPDATES[sizes.relay_update]
        self.local_embed = PositionedPatches(sizes)
        self.context_embed = None if sizes.shares_embedding else PositionedPatches(sizes)
        self.relay_tokens = RelayTokens(sizes.num_relay_tokens, sizes.dim, std=TABLE_STD)
        self.blocks = vit_blocks(config, sizes)
        self.context_blocks = None if sizes.shares_blocks else vit_blocks(config, sizes)

    def forward(self, local_pixels: Tensor, context_pixels: Tensor) -> EncodedScales:
        """(B, C, S, S) each -> features (B, h, w, C) after the embedding and each block, relay tokens (B, R, C)."""
        local = self.local_embed(local_pixels)
        context = (self.context_embed or self.local_embed)(context_pixels)
        scales = TwoScales(local, context, self.relay_tokens(local))
        passed = [scales]
        for local_block, context_block in zip(self.blocks, self.context_blocks or self.blocks, strict=True):
            branches = partial(attend_with_relay, local_block), partial(attend_with_relay, context_block)
            scales = self.update(*branches, scales)
            passed.append(scales)
        return encoded_scales(passed)

    def reset_own_weights(self, _std: float) -> None:
        """Both crops start with the same positions, as in the authors' code."""
        if self.context_embed is not None:
            init.copy_(self.context_embed.position.table, self.local_embed.position.table)


def vit_blocks(config: PreTrainedConfig, sizes: RelayVitSizes) -> nn.ModuleList:
    """Builds the blocks of one crop, or of both."""
    return nn.ModuleList(
        PreNormBlock(
            GridAttention(config, sizes.dim, sizes.num_heads),
            sizes.dim,
            sizes.mlp_ratio,
            rate,
            sizes.layer_norm_eps,
        )
        for rate in sizes.drop_path_rates
    )
