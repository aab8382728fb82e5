"""How the windowed blocks of other libraries work: what GLAM needs to know to let global tokens join their windows.

A host is described by functions of one of its blocks. They call the block's own modules by name, so that its weights,
and hooks and adapters on them, act as before. A further encoder is one more entry of `HOSTS`.

Legend: B batch, h, w grid, C channels, W windows, N tokens of a window, M tokens, d head dimension.
"""

from collections.abc import Callable
from math import log
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import initialization as init

from .attention import split_heads
from .positions import relative_position_index
from .swinv2_blocks import MOST_BIAS, MOST_SCALE, log_spaced_offsets, unit_length
from .windows import Windows, plan_windows


def nothing_to_reset(_attention: nn.Module) -> None:
    """For an attention whose parameters all lie in modules of their own."""


class WindowedHost(NamedTuple):
    """The blocks of one encoder.

    Attributes:
        enter: Block, its input and further arguments -> features (B, h, w, C) in front of the attention.
        leave: Block and features (B, h, w, C) after the MLP -> output of the block.
        packed: What the block returns for its output, such as a tuple.
        plan: Block and (h, w) -> windows and shift.
        before: Part and tokens (..., C) -> input of the attention, normed or not.
        project: Attention and tokens (B, M, C) -> q, k, v (B, heads, M, d); scores are q k / sqrt(d).
        position_bias: Attention and tokens (B, M, C) -> relative position bias (heads, N, N), or None.
        output: Part and attended tokens (..., C) -> output of the attention after its projection.
        after: Part and that output (..., C) -> what is added to the features.
        feed_forward: Part and tokens (..., C) -> what is added to them as the second residual branch.
        part: Name of the module in the block that has the attention, its norms and the MLP; "" is the block itself.
        attention: Name of the module with the attention's weights in this part.
        drop_paths: Names of the stochastic depth of both residual branches in this part.
        reset: Attention -> None; initializes the parameters that it has besides those of its modules.
        beside: Modules that the encoder calls between blocks, by a replacement in the name of the list of blocks.
    """

    enter: Callable[..., Tensor]
    leave: Callable[[nn.Module, Tensor], Tensor]
    packed: Callable[[Any], Any]
    plan: Callable[[nn.Module, tuple[int, int]], Windows]
    before: Callable[[nn.Module, Tensor], Tensor]
    project: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor, Tensor]]
    position_bias: Callable[[nn.Module, Tensor], Tensor | None]
    output: Callable[[nn.Module, Tensor], Tensor]
    after: Callable[[nn.Module, Tensor], Tensor]
    feed_forward: Callable[[nn.Module, Tensor], Tensor]
    part: str = ""
    attention: str = "attn"
    drop_paths: tuple[str, str] = ("drop_path1", "drop_path2")
    reset: Callable[[nn.Module], None] = nothing_to_reset
    beside: tuple[str, str] | None = None


# -- layouts -----------------------------------------------------------------------------------------------------------


def grid_of_sequence(_block: nn.Module, features: Tensor, size: tuple[int, int], *_: Any) -> Tensor:
    """(B, h * w, C) and (h, w) -> (B, h, w, C)."""
    return features.reshape(features.shape[0], *size, features.shape[-1])


def sequence_of_grid(_block: nn.Module, features: Tensor) -> Tensor:
    """(B, h, w, C) -> (B, h * w, C)."""
    return features.flatten(1, 2)


def itself(output: Any) -> Any:
    return output


def with_weights(output: Any) -> tuple[Any, None]:
    return output, None


def in_tuple(output: Any) -> tuple[Any]:
    return (output,)


def unchanged_by(_part: nn.Module, tokens: Tensor) -> Tensor:
    return tokens


def no_bias(_attention: nn.Module, _tokens: Tensor) -> None:
    return None


# -- Swin and Swin V2 of transformers ----------------------------------------------------------------------------------


def shifted_windows(block: nn.Module, grid: tuple[int, int]) -> Windows:
    windows = plan_windows(grid, (block.window_size,) * 2)
    return windows._replace(shift=(block.shift_size,) * 2)


def swin_before(block: nn.Module, tokens: Tensor) -> Tensor:
    return block.layernorm_before(tokens)


def swin_project(attention: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    projections = attention.q_proj, attention.k_proj, attention.v_proj
    return tuple(split_heads(projection(tokens), attention.head_dim) for projection in projections)


def swin_bias(attention: nn.Module, _tokens: Tensor) -> Tensor:
    return attention.relative_position_bias()[0]


def swin_output(block: nn.Module, attended: Tensor) -> Tensor:
    return block.dropout(block.attention.o_proj(attended))


def swin_feed_forward(block: nn.Module, tokens: Tensor) -> Tensor:
    return block.dropout(block.mlp(block.layernorm_after(tokens)))


SWIN = WindowedHost(
    enter=grid_of_sequence,
    leave=sequence_of_grid,
    packed=with_weights,
    plan=shifted_windows,
    before=swin_before,
    project=swin_project,
    position_bias=swin_bias,
    output=swin_output,
    after=unchanged_by,
    feed_forward=swin_feed_forward,
    attention="attention",
    drop_paths=("drop_path", ""),  # Swin of transformers drops the first branch only
)


def swinv2_project(attention: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cosine similarity: q and k of length one, times a temperature for each head."""
    query, key, value = (
        split_heads(projection(tokens), attention.head_dim)
        for projection in (attention.query, attention.key, attention.value)
    )
    scale = attention.logit_scale.clamp(max=log(MOST_SCALE)).exp() * attention.head_dim**0.5
    return (unit_length(query) * scale).to(value.dtype), unit_length(key).to(value.dtype), value


def swinv2_bias(attention: nn.Module, tokens: Tensor) -> Tensor:
    window, trained = tuple(attention.window_size), tuple(attention.pretrained_window_size)
    offsets = log_spaced_offsets(window, trained if trained[0] > 0 else None, tokens.device)
    table = attention.continuous_position_bias_mlp(offsets.to(tokens.dtype))
    index = relative_position_index(window, tokens.device)
    return MOST_BIAS * table[index.flatten()].unflatten(0, index.shape).permute(2, 0, 1).sigmoid()


def swinv2_output(block: nn.Module, attended: Tensor) -> Tensor:
    return block.attention.output(attended, attended)


def swinv2_after(block: nn.Module, attended: Tensor) -> Tensor:
    return block.layernorm_before(attended)


def swinv2_feed_forward(block: nn.Module, tokens: Tensor) -> Tensor:
    return block.layernorm_after(block.output(block.intermediate(tokens)))


def swinv2_reset(attention: nn.Module) -> None:
    init.constant_(attention.logit_scale, log(10.0))


SWINV2 = SWIN._replace(
    reset=swinv2_reset,
    packed=in_tuple,
    before=unchanged_by,
    project=swinv2_project,
    position_bias=swinv2_bias,
    output=swinv2_output,
    after=swinv2_after,
    feed_forward=swinv2_feed_forward,
    attention="attention.self",
    drop_paths=("drop_path", "drop_path"),
)


# The full name of a block's class -> how it works.
HOSTS = {
    "transformers.models.swin.modeling_swin.SwinLayer": SWIN,
    "transformers.models.swinv2.modeling_swinv2.Swinv2Layer": SWINV2,
}


def host_of(module: nn.Module) -> WindowedHost | None:
    """How a block works, or None if it is not a windowed block that we know."""
    return HOSTS.get(f"{type(module).__module__}.{type(module).__qualname__}")
