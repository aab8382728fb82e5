"""Attention maps through the global tokens: G_k of eq. 7 of the GLAM paper, shown in its Fig. 1.

Attention is averaged over heads. Attention to the global tokens themselves (the second sum of eq. 7) concerns
a window as a whole and is distributed evenly over its patches, so that every map sums to one.

Legend: B batch, S... axes of the image, W windows, N tokens per window, M context tokens, T global tokens per window, C channels.
"""

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .attention import Attention
from .windows import Windows, crop, window_reverse

# A block with both attentions: `SwinBlock`, or `TokenBlock` in an encoder of another library.
Block = nn.Module


class BlockInputs(NamedTuple):
    """Inputs of both attentions of a block in one forward pass.

    Attributes:
        windows: The partition of the grid.
        within: Context of W-MSA, (B * W, T + N, C), and tokens after it that W-MSA hides.
        across: Tokens of G-MSA, (B, W * T, C).
        across_bias: Additive bias of G-MSA, or None.
    """

    windows: Windows
    within: Tensor
    across: Tensor
    across_bias: Tensor | None


@torch.no_grad()
def global_attention_maps(
    model: nn.Module,
    pixel_values: Tensor,
    position: tuple[int, ...],
    token: int | None = None,
    stage: int | None = None,
    block: int | None = None,
) -> Tensor:
    """(B, C, S...) -> (B, S...): attention of the window around a pixel to each pixel of the image or volume.

    Memory grows linearly with the number of windows for every attention implementation.

    Args:
        model: A model for any task with global attention: GLAM-Swin, or an encoder with `add_global_tokens`.
        pixel_values: Preprocessed images (B, C, H, W) or volumes (B, C, D, H, W).
        position: (x, y) of the pixel, counted from the top left corner, or (x, y, slice) in a volume.
        token: Index of one of the window's global tokens; None averages over all of them.
        stage: Index of the stage, 0 for the finest; by default the finest with global attention.
        block: Index of the block within the stage; by default the last one with global attention.

    Returns:
        Maps (B, S...), each of which sums to one.

    Raises:
        ValueError: If the position is outside the image, or the model, stage or block has no global
            attention.
    """
    chosen, stride = find_block(model, stage, block)
    size = tuple(pixel_values.shape[2:])
    place = tuple(position)[::-1]
    if len(place) != len(size) or not all(0 <= at < side for at, side in zip(place, size, strict=True)):
        raise ValueError(
            f"position {tuple(position)} is outside the image of {'x'.join(map(str, size[::-1]))}. Give (x, y), in volumes "
            "(x, y, slice), counted from 0."
        )
    inputs = record(model, chosen, pixel_values)
    window = window_of(tuple(at // step for at, step in zip(place, stride, strict=True)), inputs.windows)
    patches = attention_over_patches(chosen, inputs, window, token)
    pixels = window_reverse(patches[..., None], inputs.windows)[..., 0]
    for axis, step in enumerate(stride, start=1):
        pixels = pixels.repeat_interleave(step, dim=axis)
    pixels = crop(pixels[..., None], size)[..., 0]
    return pixels / pixels.flatten(1).sum(dim=1).reshape(-1, *(1,) * len(size))


def find_stages(model: nn.Module) -> list[tuple[tuple[int, ...], list[Block]]]:
    """Stride along each axis, and blocks, of all stages of the encoder with global tokens, fine to coarse."""
    for module in model.modules():
        if hasattr(module, "strides_and_blocks"):
            return module.strides_and_blocks()
    raise ValueError(
        f"{type(model).__name__} has no encoder with global tokens, which global attention maps need. Pass a GLAM-Swin "
        "model, or use add_global_tokens."
    )


def find_block(model: nn.Module, stage: int | None, block: int | None) -> tuple[Block, tuple[int, ...]]:
    """The requested block, by default the last one with global attention of the finest stage that has any; its stride."""
    stages = find_stages(model)
    if stage is not None and not 0 <= stage < len(stages):
        raise ValueError(f"stage {stage} does not exist. Choose 0 to {len(stages) - 1}.")
    having = [
        [number for number, each in enumerate(blocks) if getattr(each, "global_attention", None) is not None]
        for _, blocks in stages
    ]
    if stage is None:
        stage = next((number for number, found in enumerate(having) if found), 0)
    stride, blocks = stages[stage]
    if not having[stage]:
        raise ValueError(
            f"stage {stage} has no global attention. Use a model with num_global_tokens > 0, use_global_attention=True "
            "and at least two blocks with windows in the stage."
        )
    if block is not None and block not in having[stage]:
        raise ValueError(
            f"block {block} of stage {stage} has no global attention. Choose one of {having[stage]}."
        )
    return blocks[having[stage][-1] if block is None else block], stride


def record(model: nn.Module, block: Block, pixel_values: Tensor) -> BlockInputs:
    """Runs the model once and records the inputs of the block's attentions."""
    seen = {}
    hooks = [
        block.global_attention.register_forward_pre_hook(
            lambda _, args, kwargs: seen.update(across=args[0], bias=kwargs["bias"]), with_kwargs=True
        ),
    ]
    if isinstance(block.window_attention, Attention):  # a `SwinBlock`
        hooks += [
            block.register_forward_pre_hook(lambda _, args: seen.update(windows=args[2].windows)),
            block.attention.register_forward_pre_hook(lambda _, args: seen.update(within=args[1])),
        ]
    else:
        hooks.append(
            block.window_attention.register_forward_pre_hook(
                lambda _, args: seen.update(within=args[0], windows=args[1])
            )
        )
    try:
        model(pixel_values)
    finally:
        for hook in hooks:
            hook.remove()
    return BlockInputs(seen["windows"], seen["within"], seen["across"], seen["bias"])


def window_of(cell: tuple[int, ...], windows: Windows) -> int:
    """Index of the window that contains a cell of the grid, taking the cyclic shift into account."""
    number = 0
    for place, size, step, count, shift in zip(
        cell, windows.padded, windows.window, windows.counts, windows.shift, strict=True
    ):
        number = number * count + (place - shift) % size // step
    return number


def attention_over_patches(block: Block, inputs: BlockInputs, window: int, token: int | None) -> Tensor:
    """-> (B, W, N): attention of one window's global tokens to the patches of all windows, eq. 7.

    `a` and `b` are the attention matrices of W-MSA and G-MSA, named as in the paper.
    """
    batch = inputs.across.shape[0]
    within = inputs.within.unflatten(0, (batch, -1))  # (B, W, T + N, C)
    num_tokens = inputs.across.shape[1] // within.shape[1]
    within = within[:, :, : num_tokens + prod(inputs.windows.window)]
    asking, context = within[:, :, :num_tokens].flatten(0, 1), within.flatten(0, 1)
    a = mean_attention(block.window_attention, asking, context, None)
    a = a.unflatten(0, (batch, -1))  # (B, W, T, T + N)
    asking = inputs.across[:, window * num_tokens : (window + 1) * num_tokens]
    asking = asking if token is None else asking[:, token : token + 1]
    b = mean_attention(block.global_attention, asking, inputs.across, inputs.across_bias)
    b = b.mean(dim=1).unflatten(1, (-1, num_tokens))  # (B, W, T)
    taken = torch.einsum("bwt,bwtn->bwn", b, a)
    patches = taken[..., num_tokens:]
    return patches + taken[..., :num_tokens].sum(dim=-1, keepdim=True) / patches.shape[-1]


def mean_attention(attention: nn.Module, tokens: Tensor, context: Tensor, bias: Tensor | None) -> Tensor:
    """(B, N, C), context (B, M, C) -> attention probabilities (B, N, M), averaged over heads."""
    query, key = attention.query_and_key(tokens, context)
    scores = query @ key.transpose(-1, -2) * attention.head_dim**-0.5
    scores = scores if bias is None else scores + bias
    return scores.softmax(dim=-1, dtype=torch.float32).mean(dim=1)
