"""Attention maps through the global tokens: G_k of eq. 7 of the GLAM paper, shown in its Fig. 1.

Attention is averaged over heads. Attention to the global tokens themselves (the second sum of eq. 7) concerns
a window as a whole and is distributed evenly over its patches, so that every map sums to one.

Legend: B batch, S... axes of the image, W windows, N tokens per window, M context tokens, T global tokens per window, C channels.
"""

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .attention import Attention, split_heads
from .swin_stages import SwinBlock, SwinEncoder
from .windows import Windows, crop, window_reverse


class BlockInputs(NamedTuple):
    """Inputs of both attentions of a block in one forward pass.

    Attributes:
        windows: The partition of the grid.
        within: Context of W-MSA, (B * W, T + N, C).
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
    stage: int = 0,
    block: int | None = None,
) -> Tensor:
    """(B, C, S...) -> (B, S...): attention of the window around a pixel to each pixel of the image or volume.

    Memory grows linearly with the number of windows for every attention implementation.

    Args:
        model: A GLAM-Swin model for any task, with global attention.
        pixel_values: Preprocessed images (B, C, H, W) or volumes (B, C, D, H, W).
        position: (x, y) of the pixel, counted from the top left corner, or (x, y, slice) in a volume.
        token: Index of one of the window's global tokens; None averages over all of them.
        stage: Index of the stage, 0 for the finest.
        block: Index of the block within the stage; by default the last one with global attention.

    Returns:
        Maps (B, S...), each of which sums to one.

    Raises:
        ValueError: If the position is outside the image, or the model, stage or block has no global
            attention.
    """
    encoder = find_encoder(model)
    chosen = find_block(encoder, stage, block)
    size = tuple(pixel_values.shape[2:])
    place = tuple(position)[::-1]
    if len(place) != len(size) or not all(0 <= at < side for at, side in zip(place, size, strict=True)):
        raise ValueError(
            f"position {tuple(position)} is outside the image of {'x'.join(map(str, size[::-1]))}. Give (x, y), in volumes "
            "(x, y, slice), counted from 0."
        )
    inputs = record(model, chosen, pixel_values)
    factors = [encoder.patch_embed.patch, *(merge.factor for merge in encoder.merges[:stage])]
    stride = tuple(map(prod, zip(*factors, strict=True)))
    window = window_of(tuple(at // step for at, step in zip(place, stride, strict=True)), inputs.windows)
    patches = attention_over_patches(chosen, inputs, window, token)
    pixels = window_reverse(patches[..., None], inputs.windows)[..., 0]
    for axis, step in enumerate(stride, start=1):
        pixels = pixels.repeat_interleave(step, dim=axis)
    pixels = crop(pixels[..., None], size)[..., 0]
    return pixels / pixels.flatten(1).sum(dim=1).reshape(-1, *(1,) * len(size))


def find_encoder(model: nn.Module) -> SwinEncoder:
    for module in model.modules():
        if isinstance(module, SwinEncoder):
            return module
    raise ValueError(
        f"{type(model).__name__} has no Swin encoder, which global attention maps need. Pass a GLAM-Swin model."
    )


def find_block(encoder: SwinEncoder, stage: int, block: int | None) -> SwinBlock:
    """The requested block, or by default the last one of the stage with global attention."""
    if not 0 <= stage < len(encoder.stages):
        raise ValueError(f"stage {stage} does not exist. Choose 0 to {len(encoder.stages) - 1}.")
    blocks = encoder.stages[stage].blocks
    having = [index for index, candidate in enumerate(blocks) if candidate.global_attention is not None]
    if not having:
        raise ValueError(
            f"stage {stage} has no global attention. Use a model with num_global_tokens > 0, use_global_attention=True "
            "and at least two blocks in the stage."
        )
    if block is not None and block not in having:
        raise ValueError(f"block {block} of stage {stage} has no global attention. Choose one of {having}.")
    return blocks[having[-1] if block is None else block]


def record(model: nn.Module, block: SwinBlock, pixel_values: Tensor) -> BlockInputs:
    """Runs the model once and records the inputs of the block's attentions."""
    seen = {}
    hooks = [
        block.register_forward_pre_hook(lambda _, args: seen.update(windows=args[2].windows)),
        block.attention.register_forward_pre_hook(lambda _, args: seen.update(within=args[1])),
        block.global_attention.register_forward_pre_hook(
            lambda _, args, kwargs: seen.update(across=args[0], bias=kwargs["bias"]), with_kwargs=True
        ),
    ]
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


def attention_over_patches(block: SwinBlock, inputs: BlockInputs, window: int, token: int | None) -> Tensor:
    """-> (B, W, N): attention of one window's global tokens to the patches of all windows, eq. 7.

    `a` and `b` are the attention matrices of W-MSA and G-MSA, named as in the paper.
    """
    batch = inputs.across.shape[0]
    within = inputs.within.unflatten(0, (batch, -1))  # (B, W, T + N, C)
    num_tokens = inputs.across.shape[1] // within.shape[1]
    a = mean_attention(block.attention, within[:, :, :num_tokens].flatten(0, 1), inputs.within, None)
    a = a.unflatten(0, (batch, -1))  # (B, W, T, T + N)
    asking = inputs.across[:, window * num_tokens : (window + 1) * num_tokens]
    asking = asking if token is None else asking[:, token : token + 1]
    b = mean_attention(block.global_attention, asking, inputs.across, inputs.across_bias)
    b = b.mean(dim=1).unflatten(1, (-1, num_tokens))  # (B, W, T)
    taken = torch.einsum("bwt,bwtn->bwn", b, a)
    patches = taken[..., num_tokens:]
    return patches + taken[..., :num_tokens].sum(dim=-1, keepdim=True) / patches.shape[-1]


def mean_attention(attention: Attention, tokens: Tensor, context: Tensor, bias: Tensor | None) -> Tensor:
    """(B, N, C), context (B, M, C) -> attention probabilities (B, N, M), averaged over heads."""
    query, key = (
        split_heads(attention.q_proj(tokens), attention.head_dim),
        split_heads(attention.k_proj(context), attention.head_dim),
    )
    scores = query @ key.transpose(-1, -2) * attention.head_dim**-0.5
    scores = scores if bias is None else scores + bias
    return scores.softmax(dim=-1, dtype=torch.float32).mean(dim=1)
