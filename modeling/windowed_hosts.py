"""How the windowed blocks of other libraries work: what GLAM needs to know to let global tokens join their windows.

A host is described by functions of one of its blocks. They call the block's own modules by name, so that its weights,
and hooks and adapters on them, act as before. A further encoder is one more entry of `HOSTS`.

Legend: B batch, h, w grid, C channels, W windows, N tokens of a window, M tokens, d head dimension.
"""

from collections.abc import Callable
from math import isqrt, log
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import initialization as init

from .attention import split_heads
from .positions import by_offset
from .swinv2_blocks import MOST_BIAS, MOST_SCALE, log_spaced_offsets, of_length
from .windows import Windows, merge, partition, plan_windows


def nothing_to_reset(_attention: nn.Module) -> None:
    """For an attention whose parameters all lie in modules of their own."""


class WindowedHost(NamedTuple):
    """The blocks of one encoder.

    Attributes:
        enter: Block, its input and further arguments -> features (B, h, w, C) in front of the attention, and their windows.
        leave: Block, features (B, h, w, C) after the MLP, and windows -> output of the block.
        packed: What the block returns for its output, such as a tuple.
        before: Part and tokens (..., C) -> input of the attention, normed or not.
        project: Attention and tokens (B, M, C) -> q, k, v (B, heads, M, d); scores are q k / sqrt(d).
        position_bias: Attention and tokens (B, M, C) -> relative position bias (heads, N, N), or None.
        output: Part and attended tokens (..., C) -> output of the attention after its projection.
        after: Part and that output (..., C) -> what is added to the features.
        feed_forward: Part and tokens (..., C) -> what is added to them as the second residual branch.
        attention_class: Name of the class of this attention; other blocks of the same class have no windows.
        part: Name of the module in the block that has the attention, its norms and the MLP; "" is the block itself.
        attention: Name of the module with the attention's weights in this part.
        drop_paths: Names of the stochastic depth of both residual branches in this part.
        reset: Attention -> None; initializes the parameters that it has besides those of its modules.
        beside: Modules that the encoder calls between blocks, by a replacement in the name of the list of blocks.
    """

    enter: Callable[..., tuple[Tensor, Windows]]
    leave: Callable[[nn.Module, Tensor, Windows], Tensor]
    packed: Callable[[Any], Any]
    before: Callable[[nn.Module, Tensor], Tensor]
    project: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor, Tensor]]
    position_bias: Callable[[nn.Module, Tensor], Tensor | None]
    output: Callable[[nn.Module, Tensor], Tensor]
    after: Callable[[nn.Module, Tensor], Tensor]
    feed_forward: Callable[[nn.Module, Tensor], Tensor]
    attention_class: str
    part: str = ""
    attention: str = "attn"
    drop_paths: tuple[str, str] = ("drop_path1", "drop_path2")
    reset: Callable[[nn.Module], None] = nothing_to_reset
    beside: tuple[str, str] | None = None


# -- layouts -----------------------------------------------------------------------------------------------------------


def grid_of_sequence(features: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, h * w, C) and (h, w) -> (B, h, w, C)."""
    return features.reshape(features.shape[0], *size, features.shape[-1])


def sequence_of_grid(_block: nn.Module, features: Tensor, _windows: Windows) -> Tensor:
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


def swin_enter(
    block: nn.Module, features: Tensor, size: tuple[int, int], *_further: Any
) -> tuple[Tensor, Windows]:
    """(B, h * w, C) and (h, w) -> (B, h, w, C), windows."""
    windows = plan_windows(tuple(size), (block.window_size,) * 2)
    return grid_of_sequence(features, size), windows._replace(shift=(block.shift_size,) * 2)


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
    enter=swin_enter,
    leave=sequence_of_grid,
    packed=with_weights,
    before=swin_before,
    project=swin_project,
    position_bias=swin_bias,
    output=swin_output,
    after=unchanged_by,
    feed_forward=swin_feed_forward,
    attention_class="SwinAttention",
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
    return of_length(query, scale).to(value.dtype), of_length(key).to(value.dtype), value


def swinv2_bias(attention: nn.Module, tokens: Tensor) -> Tensor:
    window, trained = tuple(attention.window_size), tuple(attention.pretrained_window_size)
    offsets = log_spaced_offsets(window, trained if trained[0] > 0 else None, tokens.device)
    table = attention.continuous_position_bias_mlp(offsets.to(tokens.dtype))
    return by_offset(MOST_BIAS * table.sigmoid(), window)


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
    attention_class="Swinv2SelfAttention",
    attention="attention.self",
    drop_paths=("drop_path", "drop_path"),
)


# -- Twins-SVT, NesT and MaxViT of timm --------------------------------------------------------------------------------


def timm_before(part: nn.Module, tokens: Tensor) -> Tensor:
    return part.norm1(tokens)


def timm_project(attention: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(split_heads(part, attention.head_dim) for part in attention.qkv(tokens).chunk(3, dim=-1))


def timm_output(part: nn.Module, attended: Tensor) -> Tensor:
    return part.attn.proj_drop(part.attn.proj(attended))


def timm_feed_forward(part: nn.Module, tokens: Tensor) -> Tensor:
    return part.mlp(part.norm2(tokens))


def twins_enter(block: nn.Module, features: Tensor, size: tuple[int, int]) -> tuple[Tensor, Windows]:
    """(B, h * w, C) and (h, w) -> (B, h, w, C), windows."""
    return grid_of_sequence(features, size), plan_windows(tuple(size), (block.attn.ws,) * 2)


TWINS = WindowedHost(
    enter=twins_enter,
    leave=sequence_of_grid,
    packed=itself,
    before=timm_before,
    project=timm_project,
    position_bias=no_bias,
    output=timm_output,
    after=unchanged_by,
    feed_forward=timm_feed_forward,
    attention_class="LocallyGroupedAttn",
    beside=("blocks", "pos_block"),
)


def nest_enter(_block: nn.Module, features: Tensor) -> tuple[Tensor, Windows]:
    """(B, W, N, C), a square of square windows -> (B, h, w, C), windows."""
    count, side = isqrt(features.shape[1]), isqrt(features.shape[2])
    windows = plan_windows((count * side,) * 2, (side,) * 2)
    return merge(features, windows), windows


def nest_leave(_block: nn.Module, features: Tensor, windows: Windows) -> Tensor:
    """(B, h, w, C) -> (B, W, N, C)."""
    return partition(features, windows)


def nest_output(block: nn.Module, attended: Tensor) -> Tensor:
    """As in timm's code, and so in its checkpoints, the channels of all heads are interleaved."""
    by_head = attended.unflatten(-1, (block.attn.num_heads, -1))
    return timm_output(block, by_head.transpose(-1, -2).flatten(-2))


NEST = TWINS._replace(
    enter=nest_enter, leave=nest_leave, output=nest_output, attention_class="Attention", beside=None
)


def maxvit_enter(block: nn.Module, feature_map: Tensor) -> tuple[Tensor, Windows]:
    """(B, C, h, w) -> (B, h', w', C') after the convolution of the block, windows."""
    features = block.conv(feature_map).permute(0, 2, 3, 1)
    return features, plan_windows(tuple(features.shape[1:3]), tuple(block.attn_block.partition_size))


def maxvit_leave(block: nn.Module, features: Tensor, _windows: Windows) -> Tensor:
    """(B, h, w, C) -> (B, C, h, w) after the grid attention of the block."""
    return block.attn_grid(features).permute(0, 3, 1, 2)


def maxvit_project(attention: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if not attention.head_first:
        return timm_project(attention, tokens)
    joint = split_heads(attention.qkv(tokens), 3 * attention.head_dim)
    return joint.chunk(3, dim=-1)


def maxvit_bias(attention: nn.Module, tokens: Tensor) -> Tensor | None:
    if attention.rel_pos is None:
        return None
    length = attention.rel_pos.window_area
    return attention.rel_pos(tokens.new_zeros(1, 1, length, length))[0]


def maxvit_after(part: nn.Module, attended: Tensor) -> Tensor:
    return part.ls1(attended)


def maxvit_feed_forward(part: nn.Module, tokens: Tensor) -> Tensor:
    return part.ls2(part.mlp(part.norm2(tokens)))


MAXVIT = TWINS._replace(
    enter=maxvit_enter,
    leave=maxvit_leave,
    project=maxvit_project,
    position_bias=maxvit_bias,
    after=maxvit_after,
    feed_forward=maxvit_feed_forward,
    attention_class="AttentionCl",
    part="attn_block",
    beside=None,
)

# The full name of a block's class -> how it works.
HOSTS = {
    "timm.models.maxxvit.MaxxVitBlock": MAXVIT,
    "timm.models.nest.TransformerLayer": NEST,
    "timm.models.twins.Block": TWINS,
    "transformers.models.swin.modeling_swin.SwinLayer": SWIN,
    "transformers.models.swinv2.modeling_swinv2.Swinv2Layer": SWINV2,
}


def host_of(module: nn.Module) -> WindowedHost | None:
    """How a block works, or None if it is not a windowed block that we know."""
    host = HOSTS.get(f"{type(module).__module__}.{type(module).__qualname__}")
    if host is None:
        return None
    attention = module
    for name in (*host.part.split("."), *host.attention.split(".")):
        attention = getattr(attention, name, None) if name else attention
    return host if type(attention).__name__ == host.attention_class else None
