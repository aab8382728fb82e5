"""The one attention of this package: projections, softmax attention, projection.

Windows, stripes, global tokens and fusion across scales differ in what they attend to; they prepare tokens, context
and bias, and call this module. The kernel comes from transformers' attention interface, so that
`attn_implementation` "sdpa" (default; never holds the matrix) and "eager" (returns it) are chosen as everywhere.

On GPUs "sdpa" is only as good as the kernels for the head's width: the memory-efficient one takes multiples of 8, the
flash one half precision up to 256, and for anything else PyTorch silently holds the whole matrix. So, where there is no
bias, widths are padded with zeros to a multiple of 8, and where still no kernel fits, queries attend in blocks.

Legend: B batch (windows included), N tokens that ask, M tokens that are attended to, C channels.
"""

import logging
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

logger = logging.getLogger(__name__)

MAX_SCORES = 2**24  # that a block of queries may have at once: 64 MiB in float32
KERNEL_WIDTH = 8  # divides the head widths that every fused kernel takes


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


def split_heads(features: Tensor, head_dim: int) -> Tensor:
    """(B, N, C) -> (B, heads, N, d)."""
    return features.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """(B, heads, N, d), (B, heads, M, d) twice -> (B, N, heads, d), and probabilities (B, heads, N, M) or None.

    module: gives the attention implementation (`config`), the scale (`head_dim` to the power -1/2), and `is_causal = False`.
    bias: broadcastable to (B, heads, N, M). Without it any width d works with memory that does not grow with N * M, unless
        the implementation is "eager".
    """
    implementation, width = module.config._attn_implementation, value.shape[-1]
    kernel = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
    if implementation == "sdpa" and bias is None and query.is_cuda:
        query, key, value = (padded_width(part) for part in (query, key, value))
        # A graph that is traced cannot ask; there the padding alone has to do.
        if not torch.compiler.is_compiling() and not has_fused_kernel(query, key, value):
            warn_of_blocks(query.shape[-1], query.dtype)
            kernel = attend_in_blocks
    attended, probabilities = kernel(
        module, query, key, value, attention_mask=bias, scaling=module.head_dim**-0.5, dropout=0.0
    )
    return attended[..., :width], probabilities


def padded_width(tokens: Tensor) -> Tensor:
    """(B, heads, N, d) -> (B, heads, N, d'), d' the next multiple of 8; zeros change neither scores nor other channels."""
    missing = -tokens.shape[-1] % KERNEL_WIDTH
    return F.pad(tokens, (0, missing)) if missing else tokens


def has_fused_kernel(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """(B, heads, N, d), (B, heads, M, d) twice, on CUDA -> whether PyTorch attends without holding the matrix."""
    no_mask, no_dropout, not_causal, not_grouped = None, 0.0, False, False
    call = torch.backends.cuda.SDPAParams(query, key, value, no_mask, no_dropout, not_causal, not_grouped)
    return torch.backends.cuda.can_use_flash_attention(
        call
    ) or torch.backends.cuda.can_use_efficient_attention(call)


@cache
def warn_of_blocks(width: int, dtype: torch.dtype) -> None:
    """Once for each width and type."""
    logger.warning(
        "PyTorch has no fused attention for %s and heads of width %d on this device; attending exactly, but slower, in "
        "blocks of queries. Half precision (bf16) usually has one.",
        dtype,
        width,
    )


def attend_in_blocks(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    max_scores: int = MAX_SCORES,
    **_options: object,
) -> tuple[Tensor, None]:
    """(B, heads, N, d), (B, heads, M, d) twice -> (B, N, heads, d) and None, exactly and without the N x M matrix.

    Rows of the softmax are independent, so queries go block by block, with at most `max_scores` scores at once (or one
    row). The backward pass computes each block's scores again instead of keeping them.
    """
    rows = max(1, max_scores // (query.shape[0] * query.shape[1] * key.shape[2]))
    blocks = [
        checkpoint(attended_block, block, key, value, scaling, use_reentrant=False, preserve_rng_state=False)
        for block in query.split(rows, dim=2)
    ]
    return torch.cat(blocks, dim=1), None


def attended_block(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """(B, heads, n, d), (B, heads, M, d) twice -> (B, n, heads, d)."""
    return ((query @ key.transpose(-1, -2) * scaling).softmax(dim=-1) @ value).transpose(1, 2)


def hiding_bias(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, N) true where a key may be seen -> additive bias (B, 1, 1, N).

    Half of the lowest number keeps a row without any visible key finite: it attends evenly to all.
    """
    hidden = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return hidden.masked_fill(~visible, torch.finfo(dtype).min / 2)[:, None, None]


class Attention(nn.Module):
    """Multi-head attention of tokens over a context (themselves by default), with an additive bias.

    dim: width of the context and of the heads together; that of the tokens too, unless `token_dim` says otherwise.
    """

    def __init__(
        self, config: PreTrainedConfig, dim: int, num_heads: int, token_dim: int | None = None
    ) -> None:
        super().__init__()
        self.config = config  # only for its attention implementation, which may change after construction
        self.head_dim = dim // num_heads
        self.is_causal = False  # without it, transformers' SDPA attends causally
        token_dim = dim if token_dim is None else token_dim
        self.q_proj = nn.Linear(token_dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.o_proj = nn.Linear(dim, token_dim)

    def forward(
        self, tokens: Tensor, context: Tensor | None = None, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, N, C'), (B, M, C), bias broadcastable to (B, heads, N, M) -> (B, N, C'), probabilities or None."""
        context = tokens if context is None else context
        query, key, value = (
            split_heads(features, self.head_dim)
            for features in (self.q_proj(tokens), self.k_proj(context), self.v_proj(context))
        )
        attended, probabilities = attend(self, query, key, value, bias)
        return self.o_proj(attended.flatten(-2)), probabilities
