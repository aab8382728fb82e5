"""Position embeddings: relative positions in a window, and window positions in the grid for global tokens.

Positions are pure functions of their arguments, not buffers, which would hold random memory after
`from_pretrained`.

Legend: N tokens of a window, W windows, T global tokens per window, C channels.
"""

from math import log, prod

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .windows import Windows


def by_offset(table: Tensor, window: tuple[int, ...]) -> Tensor:
    """A table of offsets (rows, heads) -> (heads, N, N), its row for each pair of positions in a window.

    Along each axis, the offset of query i and key j is i - j + size - 1, and rows are in the order of Swin. Slices of the table
    give them without indices, whose arithmetic takes torch.compile seconds for each layer.
    """
    axes = len(window)
    rows = table.unflatten(0, [2 * size - 1 for size in window])
    for axis, size in enumerate(window):
        rows = rows.unfold(axis, size, 1)  # (queries..., heads, keys...), keys from the last to the first
    rows = rows.flip(list(range(axes + 1, 2 * axes + 1)))
    return rows.movedim(axes, 0).reshape(-1, prod(window), prod(window))


def official_position_index(window: tuple[int, int, int], device: torch.device) -> Tensor:
    """-> (N, N), row of nnFormer's authors in the bias table for each pair of positions in a window.

    The offset along the first axis counts 3 w - 1 rows instead of (2 w - 1)^2, so that different offsets share rows of
    the table.
    """
    axes = torch.meshgrid(*(torch.arange(size, device=device) for size in window), indexing="ij")
    places = [axis.flatten() for axis in axes]
    first, second, third = (
        place[:, None] - place[None, :] + size - 1 for place, size in zip(places, window, strict=True)
    )
    return first * (3 * window[1] - 1) + second * (2 * window[1] - 1) + third


class RelativePositionBias(nn.Module):
    """Swin's learned bias for each head and each offset between two positions in a window."""

    def __init__(self, window: tuple[int, ...], num_heads: int, index: str = "clean") -> None:
        super().__init__()
        self.window, self.index = window, index
        self.table = nn.Parameter(torch.zeros(prod(2 * size - 1 for size in window), num_heads))

    def forward(self) -> Tensor:
        """-> (heads, N, N)."""
        if self.index == "official":
            index = official_position_index(self.window, self.table.device)
            return self.table[index.flatten()].unflatten(0, index.shape).permute(2, 0, 1)
        return by_offset(self.table, self.window)

    def reset_own_weights(self, std: float) -> None:
        init.trunc_normal_(self.table, std=std)


class GlobalPositionTable(nn.Module):
    """The authors' position embedding of G-MSA: a learned table, one row per token, centered on the grid."""

    def __init__(self, rows: int, num_tokens: int, dim: int) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.table = nn.Parameter(torch.zeros(rows, dim))

    def forward(self, windows: Windows) -> Tensor:
        """-> (W * T, C). Raises ValueError if the grid has more tokens than the table has rows."""
        rows, needed = self.table.shape[0], prod(windows.counts) * self.num_tokens
        if needed > rows:
            raise ValueError(
                f"a grid of {'x'.join(map(str, windows.grid))} needs {needed} global positions, "
                f"and the table has {rows} rows. Use a smaller image or tiles, "
                "or train with global_position_embedding='none' or 'sincos', which have no limit."
            )
        return self.table.narrow(0, rows // 2 - needed // 2, needed)

    def reset_own_weights(self, std: float) -> None:
        init.trunc_normal_(self.table, std=std)


class GlobalPositionSinCos(nn.Module):
    """Sine-cosine embedding of the window's position plus a learned embedding of each token in a window.

    Positions are counted in windows, so that the distance of neighbors does not depend on the image size.
    """

    def __init__(self, num_tokens: int, dim: int) -> None:
        super().__init__()
        self.token_code = nn.Parameter(torch.zeros(num_tokens, dim))

    def forward(self, windows: Windows) -> Tensor:
        """-> (W * T, C)."""
        places = sincos_places(windows.counts, self.token_code.shape[1], self.token_code.device)
        return (places.to(self.token_code.dtype)[:, None] + self.token_code).flatten(0, 1)

    def reset_own_weights(self, std: float) -> None:
        init.trunc_normal_(self.token_code, std=std)


def sincos_places(counts: tuple[int, ...], dim: int, device: torch.device, longest: float = 1000.0) -> Tensor:
    """-> (W, C), sine-cosine embedding of each window's position, with equal channels for each axis.

    Half of the channels of an axis are sines, half cosines. Wavelengths form a geometric series from 2 pi to
    2 pi * `longest`, in windows; channels that cannot be divided among the axes are zero.
    """
    waves = dim // (2 * len(counts))
    steps = torch.arange(waves, device=device, dtype=torch.float32)
    frequencies = torch.exp(-log(longest) / max(waves - 1, 1) * steps)
    codes = []
    for axis, count in enumerate(counts):
        angles = torch.arange(count, device=device, dtype=torch.float32)[:, None] * frequencies
        code = torch.cat([angles.sin(), angles.cos()], dim=-1)
        shape = [count if other == axis else 1 for other in range(len(counts))]
        codes.append(code.reshape(*shape, 2 * waves).expand(*counts, 2 * waves))
    codes.append(torch.zeros(*counts, dim - 2 * waves * len(counts), device=device))
    return torch.cat(codes, dim=-1).reshape(prod(counts), dim)


def global_position(kind: str, rows: int, num_tokens: int, dim: int) -> nn.Module | None:
    """Builds the position embedding of G-MSA by name; None for "none"."""
    build = {
        "none": lambda: None,
        "table": lambda: GlobalPositionTable(rows, num_tokens, dim),
        "sincos": lambda: GlobalPositionSinCos(num_tokens, dim),
    }
    return build[kind]()
