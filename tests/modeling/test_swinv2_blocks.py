"""The Swin V2 block with extra tokens against a literal transcription, window by window, of what the notes say."""

import math

import torch
import torch.nn.functional as F
from cases import each
from torch import Tensor

from contextseg.configuration.configuration_relay import RelayConfig
from contextseg.modeling.swinv2_blocks import SwinV2Block, SwinV2Sizes, cut_windows

DIM, HEADS = 8, 2


def log_spaced(offset: float, furthest: int) -> float:
    scaled = 8 * offset / max(furthest, 1)
    return math.copysign(math.log2(abs(scaled) + 1) / math.log2(8), scaled)


def region(place: int, size: int, side: int, shift: int) -> int:
    """Which of the three parts of an axis a cell of the shifted map is in; the padding is in the first."""
    if not shift or place >= size:
        return 0
    return (place >= size - side) + (place >= size - shift)


def attended(block: SwinV2Block, tokens: Tensor, bias: Tensor) -> Tensor:
    """(N, C), (heads, N, N) -> (N, C), one window."""
    attention, heads = block.attention, []
    projected = [
        layer(tokens).chunk(HEADS, dim=-1) for layer in (attention.q_proj, attention.k_proj, attention.v_proj)
    ]
    for head, (query, key, value) in enumerate(zip(*projected, strict=True)):
        scores = F.cosine_similarity(query[:, None], key[None], dim=-1, eps=1e-12)
        scores = scores * min(attention.log_scale[head].exp().item(), 100.0) + bias[head]
        heads.append(scores.softmax(dim=-1) @ value)
    return attention.o_proj(torch.cat(heads, dim=-1))


def window_bias(block: SwinV2Block, places: list, regions: list, window: tuple, extra: int) -> Tensor:
    """-> (heads, N + E, N + E), 0 for extra tokens."""
    count = len(places)
    bias = torch.zeros(HEADS, count + extra, count + extra)
    for one in range(count):
        for other in range(count):
            offset = [
                log_spaced(places[one][axis] - places[other][axis], window[axis] - 1) for axis in range(2)
            ]
            hidden = block.position_bias.fc1(torch.tensor(offset)).relu()
            bias[:, one, other] = 16 * block.position_bias.fc2(hidden).sigmoid()
            bias[:, one, other] -= 100 * (regions[one] != regions[other])
    return bias


def literal_attention(
    block: SwinV2Block, features: Tensor, extra: Tensor, window: tuple, shift: tuple
) -> tuple:
    """(h, w, C), (E, C) -> the same shapes: roll, zero padding, windows, mean of the extra tokens, and back."""
    (height, width), (rows, columns) = features.shape[:2], window
    mixed, copies = torch.zeros_like(features), []
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            cells = [(top + row, left + column) for row in range(rows) for column in range(columns)]
            inside = [row < height and column < width for row, column in cells]
            sources = [((row + shift[0]) % height, (column + shift[1]) % width) for row, column in cells]
            tokens = [
                features[source] if is_inside else torch.zeros(DIM)
                for source, is_inside in zip(sources, inside, strict=True)
            ]
            regions = [
                (0, 0) if not is_inside else
                (region(row, height, rows, shift[0]), region(column, width, columns, shift[1]))
                for (row, column), is_inside in zip(cells, inside, strict=True)
            ]  # fmt: skip
            bias = window_bias(block, cells, regions, window, len(extra))
            found = attended(block, torch.cat([torch.stack(tokens), extra]), bias)
            for source, is_inside, token in zip(sources, inside, found, strict=False):
                if is_inside:
                    mixed[source] = token
            copies.append(found[len(cells) :])
    return mixed, torch.stack(copies).mean(dim=0)


@torch.no_grad()
@each(
    ("grid", "side", "used_window", "used_shift", "extra"),
    {
        "whole windows": ((4, 8), 4, (4, 4), (0, 2), 1),
        "padding": ((5, 6), 4, (4, 4), (2, 2), 4),
        "odd windows": ((7, 4), 3, (3, 3), (1, 1), 8),
        "many windows": ((13, 17), 3, (3, 3), (1, 1), 1),
        "a short axis": ((3, 7), 5, (3, 5), (0, 2), 2),
        "one window": ((2, 3), 4, (2, 3), (0, 0), 2),
        "windows of one": ((2, 2), 1, (1, 1), (0, 0), 2),
        "no extra tokens": ((5, 4), 3, (3, 3), (1, 1), 0),
    },
)
def test_a_block_with_extra_tokens_does_what_the_authors_do(grid, side, used_window, used_shift, extra):
    torch.manual_seed(0)
    block = SwinV2Block(RelayConfig(), SwinV2Sizes(DIM, HEADS, (side, side))).eval()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    block.attention.log_scale[0] = 9.0  # capped at log(100)
    features, tokens = torch.randn(1, *grid, DIM), torch.randn(1, extra, DIM)
    found = block(features, tokens, cut_windows(features, (side, side), shifted=True))
    mixed, mixed_extra = literal_attention(block, features[0], tokens[0], used_window, used_shift)
    before = torch.cat([features[0].flatten(0, 1), tokens[0]])
    after = before + block.norm1(torch.cat([mixed.flatten(0, 1), mixed_extra]))
    after = after + block.norm2(block.mlp(after))
    torch.testing.assert_close(found[0][0].flatten(0, 1), after[: grid[0] * grid[1]], rtol=0, atol=1e-4)
    torch.testing.assert_close(found[1][0], after[grid[0] * grid[1] :], rtol=0, atol=1e-4)
