"""The plain vision transformer with relay tokens: both crops pass the same pre-norm blocks, each with the relay tokens
in front of its patches (Perron et al., TMLR 2026; Dosovitskiy et al., ICLR 2021).

As in the authors' code there is no class token, layer scale or final norm. Their position tables have rows for the
relay tokens, of which those of the context are added to the tokens and the others never read; here the relay
tokens contain that sum.

Legend: B batch, S image side, h, w grid of patches, C channels, R relay tokens.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init

from .patches import PatchEmbed
from .pyramid_encoder import GridAttention, PreNormBlock
from .relay_tokens import RELAY_UPDATES, EncodedScales, RelayTokens, TwoScales

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


class RelayVit(nn.Module):
    """Two crops through the blocks of a plain vision transformer.

    Args:
        config: Read only for its attention implementation.
        num_channels: Channels of the image.
        patch: Side of a patch in pixels.
        crop_size: Side in pixels of the crops for which the position tables are made.
        dim: Channels.
        num_heads: Attention heads.
        mlp_ratio: Hidden channels of an MLP over its input channels.
        drop_path_rates: Stochastic depth rate of each block.
        layer_norm_eps: Epsilon of all layer norms.
        num_relay_tokens: Number of relay tokens.
        relay_update: A name in `RELAY_UPDATES`.
        shares_embedding: Whether both crops have the same patch embedding and position table.
        shares_blocks: Whether both crops have the same blocks.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        *,
        num_channels: int,
        patch: int,
        crop_size: int,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        drop_path_rates: Sequence[float],
        layer_norm_eps: float,
        num_relay_tokens: int,
        relay_update: str,
        shares_embedding: bool,
        shares_blocks: bool,
    ) -> None:
        super().__init__()
        self.update = RELAY_UPDATES[relay_update]
