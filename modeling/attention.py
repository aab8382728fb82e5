"""The single attention module of this package: input projections, softmax attention, output projection.

Windows, stripes, global tokens and cross-scale fusion differ only in what they attend to: they prepare
tokens, context and bias, and call this module. The kernel comes from transformers' attention interface and is
selected as usual with `attn_implementation`: "sdpa" (the default, never stores the attention matrix) or
"eager" (returns it).

On GPUs, "sdpa" needs a fused kernel: memory-efficient for head dimensions that are multiples of 8, flash for
half precision up to 256; otherwise PyTorch silently materializes the whole matrix. Without a bias, heads are
therefore zero-padded to a multiple of 8. If no fused kernel fits even then, queries are processed in blocks.

Legend: B batch (including windows), N query tokens, M context tokens, C channels, d head dimension.
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

MAX_SCORES = 2**24  # attention scores per block of queries: 64 MiB in float32
KERNEL_WIDTH = 8  # fused kernels need head dimensions that are multiples of this
KEYS_AT_ONCE = 16  # in the fused kernel for CPUs, which takes the remaining keys one by one


def eager_attention_forward(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **_options: object,
) -> tuple[Tensor, Tensor]:
    """(B, heads, N, d), twice (B, heads, M, d) -> (B, N, heads, d), probabilities (B, heads, N, M)."""
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
    """(B, heads, N, d), twice (B, heads, M, d) -> (B, N, heads, d), probabilities (B, heads, N, M) or None.

    Args:
        module: Provides the attention implementation (`config`), the scale `head_dim**-0.5` and
            `is_causal = False`.
        query: Queries (B, heads, N, d).
        key: Keys (B, heads, M, d).
        value: Values (B, heads, M, d).
        bias: Additive bias, broadcastable to (B, heads, N, M). Without it, memory does not grow with N * M
            for any d, unless the implementation is "eager".

    Returns:
        The attended values (B, N, heads, d), and the attention probabilities (B, heads, N, M) if the
        implementation returns them ("eager"), else None.
    """
    implementation, width = module.config._attn_implementation, value.shape[-1]
    kernel = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
    if implementation == "sdpa" and bias is None and query.is_cuda:
        query, key, value = (padded_width(part) for part in (query, key, value))
        # A traced graph cannot query the available kernels, so compiled models rely on the padding alone.
        if not torch.compiler.is_compiling() and not has_fused_kernel(query, key, value):
            warn_of_blocks(query.shape[-1], query.dtype)
            kernel = attend_in_blocks
    attended, probabilities = kernel(
        module, query, key, value, attention_mask=bias, scaling=module.head_dim**-0.5, dropout=0.0
    )
    attended = attended[..., :width]
    if torch.compiler.is_exporting():
        # Kernels differ in their layout of memory, and a view in the program would demand that of one of them.
        attended = attended.clone(memory_format=torch.contiguous_format)
    return attended, probabilities


def padded_width(tokens: Tensor) -> Tensor:
    """(B, heads, N, d) -> (B, heads, N, d'), zero-padded to a multiple of 8; scores are unchanged."""
    missing = -tokens.shape[-1] % KERNEL_WIDTH
    return F.pad(tokens, (0, missing)) if missing else tokens


def missing_keys(attention: nn.Module, count: int, like: Tensor) -> int:
    """How many hidden keys make attention over `count` keys faster: 0 to 8, and only for inference on a CPU."""
    uses_kernel = attention.config._attn_implementation == "sdpa" and like.device.type == "cpu"
    if not uses_kernel or torch.is_grad_enabled() or torch.compiler.is_exporting():
        return 0
    missing = -count % KEYS_AT_ONCE
    return missing if missing <= KEYS_AT_ONCE // 2 else 0


def has_fused_kernel(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether PyTorch has a fused kernel for (B, heads, N, d), twice (B, heads, M, d) on CUDA."""
    no_mask, no_dropout, not_causal, not_grouped = None, 0.0, False, False
    call = torch.backends.cuda.SDPAParams(query, key, value, no_mask, no_dropout, not_causal, not_grouped)
    return torch.backends.cuda.can_use_flash_attention(
        call
    ) or torch.backends.cuda.can_use_efficient_attention(call)


@cache
def warn_of_blocks(width: int, dtype: torch.dtype) -> None:
    """Logs the warning once per head dimension and dtype."""
    logger.warning(
        "PyTorch has no fused attention kernel for %s and heads of width %d on this device; falling back to exact "
        "but slower attention in blocks of queries. Half precision (bf16) usually has a fused kernel.",
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
    """(B, heads, N, d), twice (B, heads, M, d) -> (B, N, heads, d), None: exact, without the N x M matrix.

    The rows of the softmax are independent, so queries are processed in blocks of at most `max_scores` scores
    (at least one row). The backward pass recomputes the scores of each block.
    """
    rows = max(1, max_scores // (query.shape[0] * query.shape[1] * key.shape[2]))
    blocks = [
        checkpoint(attended_block, block, key, value, scaling, use_reentrant=False, preserve_rng_state=False)
        for block in query.split(rows, dim=2)
    ]
    return torch.cat(blocks, dim=1), None


def attended_block(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """(B, heads, n, d), twice (B, heads, M, d) -> (B, n, heads, d)."""
    return ((query @ key.transpose(-1, -2) * scaling).softmax(dim=-1) @ value).transpose(1, 2)


def padding_bias(padding_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Mask (B, N), true for visible keys -> additive bias (B, 1, 1, N).

    Hidden keys get half of the lowest finite value, so that a row without any visible key stays finite and
    attends uniformly.
    """
    hidden = torch.zeros(padding_mask.shape, dtype=dtype, device=padding_mask.device)
    return hidden.masked_fill(~padding_mask, torch.finfo(dtype).min / 2)[:, None, None]


class Attention(nn.Module):
    """Multi-head attention of tokens over a context, by default the tokens themselves.

    Args:
        config: Read only for its attention implementation.
        dim: Channels of the context, and of all heads together.
        num_heads: Number of heads; must divide `dim`.
        token_dim: Channels of the tokens and of the output; `dim` by default.
        projects_queries: Whether queries are projected; without it, they are the tokens themselves.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        dim: int,
        num_heads: int,
        token_dim: int | None = None,
        projects_queries: bool = True,
    ) -> None:
        super().__init__()
        self.config = config  # for the attention implementation, which may change after construction
        self.head_dim = dim // num_heads
        self.is_causal = False  # without it, transformers' SDPA attends causally
        token_dim = dim if token_dim is None else token_dim
        self.q_proj = nn.Linear(token_dim, dim) if projects_queries else nn.Identity()
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.o_proj = nn.Linear(dim, token_dim)

    def forward(
        self,
        tokens: Tensor,
        context: Tensor | None = None,
        bias: Tensor | None = None,
        asking: slice = slice(None),
    ) -> tuple[Tensor, Tensor | None]:
        """(B, N, C'), (B, M, C) -> (B, N, C'), probabilities (B, heads, N, M) or None.

        Args:
            tokens: Query tokens (B, N, C').
            context: Context (B, M, C); the tokens themselves by default.
            bias: Additive bias, broadcastable to (B, heads, N, M).
            asking: Which of the tokens ask, all by default: N in the bias and the results is their number.
        """
        context = tokens if context is None else context
        query, key = self.query_and_key(tokens, context)
        value = split_heads(self.v_proj(context), self.head_dim)
        attended, probabilities = attend(self, query[:, :, asking], key, value, bias)
        return self.o_proj(attended.flatten(-2)), probabilities

    def query_and_key(self, tokens: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, C'), (B, M, C) -> (B, heads, N, d), (B, heads, M, d)."""
        return split_heads(self.q_proj(tokens), self.head_dim), split_heads(
            self.k_proj(context), self.head_dim
        )
