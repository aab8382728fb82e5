"""Relay tokens (Perron et al., TMLR 2026, section 3): a few learned tokens that pass through the same blocks with
the patches of a sharp local crop and with those of its wide surroundings, and so hand information across.

The paper lets the tokens pass a block with the context first and with the local crop second. The authors' published
ViT and SwinV2 give the same tokens to both, and average the two updates. Both rules have the same weights.

Legend: B batch, R relay tokens, C channels.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import initialization as init


class TwoScales(NamedTuple):
    """Features of the two crops, (B, h, w, C) each, and the relay tokens (B, R, C) between them."""

    local: Tensor
    context: Tensor
    relay_tokens: Tensor


class EncodedScales(NamedTuple):
    """Features (B, h, w, C) of both crops after the patch embedding and after each block or stage."""

    local: list[Tensor]
    context: list[Tensor]
    relay_tokens: Tensor  # (B, R, C), after the last block


def encoded_scales(passed: list[TwoScales]) -> EncodedScales:
    """What the patch embedding and each block or stage returned -> the same by crop."""
    local, context, relay_tokens = zip(*passed, strict=True)
    return EncodedScales(list(local), list(context), relay_tokens[-1])


# One branch of a block: features (B, h, w, C), relay tokens (B, R, C) -> the same shapes.
Branch = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class RelayTokens(nn.Module):
    """The learned initial relay tokens, the same for every image; there may be none.

    Args:
        num_tokens: Number of tokens.
        dim: Channels.
        std: Standard deviation at initialization, which does not depend on `initializer_range`.
    """

    def __init__(self, num_tokens: int, dim: int, std: float) -> None:
        super().__init__()
        self.std = std
        self.initial = nn.Parameter(torch.zeros(num_tokens, dim)) if num_tokens else None

    def forward(self, features: Tensor) -> Tensor:
        """(B, ..., C) -> (B, R, C), without a copy."""
        if self.initial is None:
            return features.new_zeros(features.shape[0], 0, features.shape[-1])
        return self.initial.expand(features.shape[0], -1, -1)

    def reset_own_weights(self, _std: float) -> None:
        if self.initial is not None:
            init.normal_(self.initial, std=self.std)


def update_in_sequence(local_branch: Branch, context_branch: Branch, scales: TwoScales) -> TwoScales:
    """Context first, then the local crop with the tokens that the context has updated."""
    context, relay_tokens = context_branch(scales.context, scales.relay_tokens)
    local, relay_tokens = local_branch(scales.local, relay_tokens)
    return TwoScales(local, context, relay_tokens)


def update_by_mean(local_branch: Branch, context_branch: Branch, scales: TwoScales) -> TwoScales:
    """Both crops with the same tokens, whose two updates are averaged."""
    local, from_local = local_branch(scales.local, scales.relay_tokens)
    context, from_context = context_branch(scales.context, scales.relay_tokens)
    return TwoScales(local, context, (from_local + from_context) / 2)


Update = Callable[[Branch, Branch, TwoScales], TwoScales]
RELAY_UPDATES: dict[str, Update] = {"sequential": update_in_sequence, "mean": update_by_mean}
