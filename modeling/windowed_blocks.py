"""GLAM in the blocks of another library: global tokens join the windows of its attention, and attend across windows.

Themyr et al., "Full Contextual Attention for Multi-resolution Transformers in Semantic Segmentation", WACV 2023,
section 3.2. A block of the host is exchanged for one that has the same modules and parameters under the same names;
`windowed_hosts.py` describes what it does with them. Global tokens travel from block to block beside the features.

Legend: B batch, h, w grid, C channels, W windows, N tokens of a window, T global tokens per window, d head dimension.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import attend
from .blocks import DropPath
from .global_tokens import AcrossWindows, GlobalTokens, bias_with_tokens
from .windowed_hosts import WindowedHost
from .windows import Windows, shift_masks, window_partition, window_reverse

TOKEN_MLP_RATIO, TOKEN_NORM_EPS = 4, 1e-5  # of the layers that tokens have for themselves
PROBABILITIES: ContextVar[list[Tensor] | None] = ContextVar("probabilities", default=None)


class WithTokens(NamedTuple):
    """What goes from block to block: features as the host shapes them, and global tokens (B, W, T, C)."""

    features: Tensor
    global_tokens: Tensor


class TakenOver(nn.Module):
    """Takes the place of a module, with its modules, parameters, buffers, hooks and attributes under the same names."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        if "forward" in vars(module):
            raise ValueError(
                f"the forward method of a {type(module).__name__} was exchanged, for example to load its weights when "
                "needed. Add global tokens first, and then dispatch or wrap the model."
            )
        vars(self).update(vars(module))


class PassedBy(TakenOver):
    """A module of the host between two windowed blocks; global tokens do not meet it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.host_class = type(module)

    def forward(self, carried: WithTokens, *arguments: Any) -> WithTokens:
        """Features of the host and (B, W, T, C) -> the same."""
        features = self.host_class.forward(self, carried.features, *arguments)
        return WithTokens(features, carried.global_tokens)


class TokenAttention(TakenOver):
    """The attention of a host's block, over [T ; window]; without the output projection."""

    def __init__(
        self, config: PreTrainedConfig, attention: nn.Module, host: WindowedHost, head_dim: int
    ) -> None:
        super().__init__(attention)
        self._buffers = {}  # indices of relative positions, which are functions here
        self.host, self.head_dim = host, head_dim
        self.config = config  # for the attention implementation, which may change after construction
        self.is_causal = False  # without it, transformers' SDPA attends causally

    def forward(
        self, tokens: Tensor, windows: Windows, num_tokens: int, asking_tokens: int
    ) -> tuple[Tensor, Tensor | None]:
        """(B * W, T + N, C) -> (B * W, asking_tokens + N, C), probabilities or None."""
        query, key, value = self.host.project(self, tokens)
        masks = shift_masks(windows, tokens.device, tokens.dtype)
        batch = tokens.shape[0] // prod(windows.counts)
        bias = self.host.position_bias(self, tokens)
        bias = bias_with_tokens(bias, masks, batch, num_tokens, asking_tokens)
        bias = None if bias is None else bias.to(value.dtype)
        attended, probabilities = attend(self, query[:, :, num_tokens - asking_tokens :], key, value, bias)
        return attended.flatten(-2), recorded(probabilities)

    def query_and_key(self, tokens: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, C), (B, M, C) -> (B, heads, N, d), (B, heads, M, d); scores are q k / sqrt(d)."""
        return self.host.project(self, tokens)[0], self.host.project(self, context)[1]

    def reset_own_weights(self, _std: float) -> None:
        self.host.reset(self)


class GlobalStep(AcrossWindows):
    """G-MSA over the global tokens of all windows, and with "transformer" their own norms and MLP."""

    def __init__(
        self, config: PreTrainedConfig, dim: int, num_heads: int, global_block: str, drop_path_rate: float
    ) -> None:
        super().__init__()
        self.global_block, self.global_clamp = global_block, None
        self.drop_path = DropPath(drop_path_rate)
        self.build_global_attention(config, dim, num_heads, TOKEN_MLP_RATIO, TOKEN_NORM_EPS)
        self.global_attention.register_forward_hook(record_output)

    def forward(self, global_tokens: Tensor) -> Tensor:
        """(B, W, T, C) -> the same shape."""
        return self.mix_across_windows(global_tokens)

    def reset_own_weights(self, std: float) -> None:
        """Initializes all layers, which a host of timm leaves as they are."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init.normal_(module.weight, std=std)
                init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                init.ones_(module.weight)
                init.zeros_(module.bias)


class TokenBlock(TakenOver, GradientCheckpointingLayer):
    """A windowed block of the host with global tokens.

    Args:
        config: Read only for its attention implementation.
        block: The block whose place it takes.
        host: How the block works.
        global_block: The path of the tokens, "bare", "half" or "transformer".
        num_new_tokens: Number of learned tokens that start here; 0 if they come from the block before.
        is_last: Whether no block reads the tokens after this one; they are not updated then.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        block: nn.Module,
        host: WindowedHost,
        global_block: str,
        num_new_tokens: int,
        is_last: bool,
    ) -> None:
        super().__init__(block)
        self.host, self.global_block, self.is_last = host, global_block, is_last
        part = self.get_submodule(host.part)
        path, _, name = host.attention.rpartition(".")
        attention = part.get_submodule(host.attention)
        dim, num_heads = attention_sizes(attention)
        setattr(part.get_submodule(path), name, TokenAttention(config, attention, host, dim // num_heads))
        self.initial_tokens = GlobalTokens(num_new_tokens, dim, global_block) if num_new_tokens else None
        rate = getattr(getattr(part, host.drop_paths[0]), "drop_prob", None) or 0.0
        self.global_step = None if is_last else GlobalStep(config, dim, num_heads, global_block, rate)

    def forward(self, inputs: Tensor | WithTokens, *arguments: Any, **_options: Any) -> Any:
        """Features as the host shapes them, with or without (B, W, T, C) -> the same; the last returns features."""
        features, global_tokens = inputs if isinstance(inputs, WithTokens) else (inputs, None)
        features, windows = self.host.enter(self, features, *arguments)
        if self.initial_tokens is not None:
            global_tokens = self.initial_tokens(features.shape[0], prod(windows.counts))
        mixed, mixed_tokens = self.mix_within_windows(features, global_tokens, windows)
        features = self.host.leave(self, self.with_branches(features, mixed), windows)
        if self.is_last:
            return self.host.packed(features)
        global_tokens = self.global_step(self.updated(global_tokens, mixed_tokens))
        return self.host.packed(WithTokens(features, global_tokens))

    def mix_within_windows(
        self, features: Tensor, global_tokens: Tensor, windows: Windows
    ) -> tuple[Tensor, Tensor]:
        """W-MSA over [T ; window]: (B, h, w, C), (B, W, T, C) -> the same shapes; no tokens in the last block."""
        host, part, num_tokens = self.host, self.part, global_tokens.shape[2]
        cut = window_partition(host.before(part, features), windows)
        tokens = host.before(part, global_tokens) if self.global_block == "transformer" else global_tokens
        context = torch.cat([tokens.to(cut.dtype), cut], dim=2)
        asking = 0 if self.is_last else num_tokens
        mixed, _ = self.window_attention(context.flatten(0, 1), windows, num_tokens, asking)
        mixed = host.output(part, mixed).unflatten(0, context.shape[:2])
        return window_reverse(mixed[:, :, asking:], windows), mixed[:, :, :asking]

    def updated(self, global_tokens: Tensor, mixed: Tensor) -> Tensor:
        """Global tokens and what W-MSA makes of them, (B, W, T, C) twice -> (B, W, T, C)."""
        if self.global_block == "bare":
            return mixed
        tokens = self.with_branches(global_tokens.flatten(0, 1), mixed.flatten(0, 1))
        return tokens.reshape(global_tokens.shape)  # stochastic depth drops the tokens of single windows

    def with_branches(self, tokens: Tensor, mixed: Tensor) -> Tensor:
        """Both residual branches of the host: (B, ..., C), the attention's output (B, ..., C) -> (B, ..., C)."""
        host, part = self.host, self.part
        first, second = (getattr(part, name) if name else kept for name in host.drop_paths)
        tokens = tokens + first(host.after(part, mixed))
        return tokens + second(host.feed_forward(part, tokens))

    @property
    def part(self) -> nn.Module:
        """The module of the host with attention, norms and MLP."""
        return self.get_submodule(self.host.part)

    @property
    def window_attention(self) -> TokenAttention:
        """W-MSA, over [T ; window]."""
        return self.part.get_submodule(self.host.attention)

    @property
    def global_attention(self) -> nn.Module | None:
        """G-MSA; None in the last block."""
        return None if self.global_step is None else self.global_step.global_attention


def kept(branch: Tensor) -> Tensor:
    """A residual branch without stochastic depth."""
    return branch


def attention_sizes(attention: nn.Module) -> tuple[int, int]:
    """Returns channels and heads of a host's attention. Raises ValueError if it drops attention probabilities."""
    num_heads = getattr(attention, "num_attention_heads", None) or attention.num_heads
    dropout = getattr(attention, "attn_drop", None) or getattr(attention, "dropout", None)
    rate = getattr(attention, "attention_dropout", 0.0) or getattr(dropout, "p", 0.0)
    if rate:
        raise ValueError(
            f"the encoder drops attention probabilities (rate {rate:g}), which global tokens do not support. Set this rate "
            "to 0; stochastic depth may stay."
        )
    query = getattr(attention, "q_proj", None) or getattr(attention, "query", None) or attention.qkv
    return query.in_features, num_heads


def recorded(probabilities: Tensor | None) -> Tensor | None:
    """Adds attention probabilities to those of a `recorded_probabilities()` around the call; returns them."""
    if not torch.compiler.is_compiling():
        calls = PROBABILITIES.get()
        if calls is not None and probabilities is not None:
            calls.append(probabilities)
    return probabilities


def record_output(_module: nn.Module, _inputs: Any, output: tuple[Tensor, Tensor | None]) -> None:
    recorded(output[1])


@contextmanager
def recorded_probabilities() -> Iterator[list[Tensor]]:
    """Context manager with the list of attention probabilities of the calls inside, in the order of execution."""
    calls: list[Tensor] = []
    token = PROBABILITIES.set(calls)
    try:
        yield calls
    finally:
        PROBABILITIES.reset(token)
