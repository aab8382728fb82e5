"""Between pixels and patches, and from one resolution to the next.

Legend: B batch, C channels, G... grid axes, S... image axes.
"""

from math import prod

import torch.nn.functional as F
from torch import Tensor, nn

from .windows import Windows, crop, merge, pad, plan_windows

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class PatchEmbed(nn.Module):
    """Cuts the image into patches, each a linear map of its pixels, followed by a layer norm."""

    def __init__(
        self, num_channels: int, dim: int, patch: tuple[int, ...], layer_norm_eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.patch = patch
        self.projection = CONV[len(patch)](num_channels, dim, kernel_size=patch, stride=patch)
        self.norm = nn.LayerNorm(dim, eps=layer_norm_eps)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, C, S...) -> (B, G..., C'), the image zero-padded after its end to whole patches."""
        windows = plan_windows(tuple(pixel_values.shape[2:]), self.patch)
        widths = []
        for size, padded in zip(windows.grid[::-1], windows.padded[::-1], strict=True):
            widths += [0, padded - size]
        return self.norm(self.projection(F.pad(pixel_values, widths)).movedim(1, -1))


class PatchMerge(nn.Module):
    """Halves the grid: 2 x 2 (x 2) neighbours become one patch of twice the channels, zero-padded at odd sides.

    Neighbours are concatenated with the first axis fastest, as in the Swin checkpoints.
    """

    def __init__(self, dim: int, axes: int, layer_norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.axes = axes
        self.norm = nn.LayerNorm(2**axes * dim, eps=layer_norm_eps)
        self.reduction = nn.Linear(2**axes * dim, 2 * dim, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(B, G..., C) -> (B, half of G..., 2 C)."""
        windows = plan_windows(tuple(features.shape[1:-1]), (2,) * self.axes)
        folded = [size for count in windows.counts for size in (count, 2)]
        outer, inner = range(1, 2 * self.axes, 2), range(2 * self.axes, 1, -2)
        features = pad(features, windows).reshape(features.shape[0], *folded, features.shape[-1])
        return self.reduction(self.norm(features.permute(0, *outer, *inner, -1).flatten(-self.axes - 1)))


class PatchExpand(nn.Module):
    """The way back: each patch becomes a small block of patches, its sub-rows slowest and its channels fastest.

    factor: how many patches along each axis; 2 x 2 undoes the grid of `PatchMerge`, the patch size that of `PatchEmbed`.
    """

    def __init__(self, dim: int, out_dim: int, factor: tuple[int, ...], layer_norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.factor = factor
        self.expansion = nn.Linear(dim, prod(factor) * out_dim, bias=False)
        self.norm = nn.LayerNorm(out_dim, eps=layer_norm_eps)

    def forward(self, features: Tensor, grid: tuple[int, ...] | None = None) -> Tensor:
        """(B, G..., C) -> (B, factor * G..., C'), or what of it lies in `grid`, from its beginning."""
        counts = tuple(features.shape[1:-1])
        finer = tuple(count * step for count, step in zip(counts, self.factor, strict=True))
        blocks = Windows(finer, self.factor, counts, finer, (0,) * len(counts))
        tokens = self.expansion(features).flatten(1, -2).unflatten(-1, (prod(self.factor), -1))
        expanded = merge(tokens, blocks)
        return self.norm(expanded if grid is None else crop(expanded, grid))


def patches_with_image(pixel_mask: Tensor | None, features: Tensor) -> Tensor | None:
    """(B, S...) one where there is image, (B, G..., C) -> (B, G...) true where a patch covers some of it."""
    if pixel_mask is None:
        return None
    grid = tuple(features.shape[1:-1])
    covered = F.adaptive_max_pool2d if len(grid) == 2 else F.adaptive_max_pool3d
    return covered(pixel_mask[:, None].float(), grid)[:, 0].bool()
