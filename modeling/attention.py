"""The one attention of this package: projections, softmax attention, projection.

Windows, stripes, global tokens and fusion across scales differ in what they attend to; they prepare tokens, context
and bias, and call this module. The kernel comes from transformers' attention interface, so that
`attn_implementation` "sdpa" (default; never holds the matrix) and "eager" (returns it) are chosen as everywhere.

Legend: B batch (windows included), N tokens that ask, M tokens that are attended to, C channels.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def eager_attention_forward(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **_options: object,
) -> tuple[Tensor, Tensor]:
    """(B, heads, N, d), (B, heads, M, d) twice -> (B, N, heads, d) and the probabilities (B, heads, N, M)."""
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return (probabilities @ value).transpose(1, 2), probabilities


class Attention(nn.Module):
    """Multi-head attention of tokens over a context (themselves by default), with an additive bias."""

    def __init__(self, config: PreTrainedConfig, dim: int, num_heads: int) -> None:
        super().__init__()
        self.config = config  # only for its attention implementation, which may change after construction
        self.head_dim = dim // num_heads
        self.is_causal = False  # without it, transformers' SDPA attends causally
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.o_proj = nn.Linear(dim, dim)

    def forward(
        self, tokens: Tensor, context: Tensor | None = None, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, N, C), (B, M, C), bias broadcastable to (B, heads, N, M) -> (B, N, C), probabilities or None."""
        context = tokens if context is None else context
        query, key, value = (
            self.split_heads(features)
            for features in (self.q_proj(tokens), self.k_proj(context), self.v_proj(context))
        )
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attended, probabilities = attend(
            self, query, key, value, attention_mask=bias, scaling=self.head_dim**-0.5, dropout=0.0
        )
        return self.o_proj(attended.flatten(-2)), probabilities

    def split_heads(self, features: Tensor) -> Tensor:
        """(B, N, C) -> (B, heads, N, d)."""
        return features.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
