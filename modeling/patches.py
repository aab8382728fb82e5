"""Patch embedding, merging and expansion: from pixels to patches, and from one resolution to the next.

Legend: B batch, C channels, G... grid axes, S... image axes.
"""

from math import prod

import torch.nn.functional as F
from torch import Tensor, nn

from .windows import Windows, crop, merge, pad, plan_windows

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class PatchEmbed(nn.Module):
    """Linear projection of non-overlapping patches, followed by a layer norm unless its epsilon is None."""

    def __init__(
        self, num_channels: int, dim: int, patch: tuple[int, ...], layer_norm_eps: float | None = 1e-5
    ) -> None:
        super().__init__()
        self.patch = patch
        self.projection = CONV[len(patch)](num_channels, dim, kernel_size=patch, stride=patch)
        self.norm = nn.Identity() if layer_norm_eps is None else nn.LayerNorm(dim, eps=layer_norm_eps)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, C, S...) -> (B, G..., C'); images are zero-padded at the end of each axis to whole patches."""
        windows = plan_windows(tuple(pixel_values.shape[2:]), self.patch)
        widths = []
        for size, padded in zip(windows.grid[::-1], windows.padded[::-1], strict=True):
            widths += [0, padded - size]
        return self.norm(self.projection(F.pad(pixel_values, widths)).movedim(1, -1))


class PatchMerge(nn.Module):
    """Reduces the grid: `factor` neighbors, 2 x 2 in images, become one patch with twice the channels.

    Sides that the factor does not divide are zero-padded. Neighbors are concatenated with the first axis fastest, as in
    the Swin checkpoints.
    """

    def __init__(self, dim: int, factor: tuple[int, ...], layer_norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.factor = factor
        self.norm = nn.LayerNorm(prod(factor) * dim, eps=layer_norm_eps)
        self.reduction = nn.Linear(prod(factor) * dim, 2 * dim, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(B, G..., C) -> (B, ceil(G / factor)..., 2 C)."""
        return self.reduction(self.norm(self.neighbors(features)))

    def neighbors(self, features: Tensor) -> Tensor:
        """(B, G..., C) -> (B, ceil(G / factor)..., prod(factor) C), the patches that become one."""
        axes = len(self.factor)
        windows = plan_windows(tuple(features.shape[1:-1]), self.factor)
        folded = [size for pair in zip(windows.counts, self.factor, strict=True) for size in pair]
        outer, inner = range(1, 2 * axes, 2), range(2 * axes, 1, -2)
        features = pad(features, windows).reshape(features.shape[0], *folded, features.shape[-1])
        return features.permute(0, *outer, *inner, -1).flatten(-axes - 1)


class PatchExpand(nn.Module):
    """Inverse of merging or embedding: each patch becomes a block of patches.

    In the projection's output the rows of a block are slowest and the channels fastest.

    Args:
        dim: Input channels.
        out_dim: Output channels.
        factor: Patches along each axis of a block; 2 x 2 inverts `PatchMerge`, the patch size inverts
            `PatchEmbed`.
        layer_norm_eps: Epsilon of the layer norm.
    """

    def __init__(self, dim: int, out_dim: int, factor: tuple[int, ...], layer_norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.factor = factor
        self.expansion = nn.Linear(dim, prod(factor) * out_dim, bias=False)
        self.norm = nn.LayerNorm(out_dim, eps=layer_norm_eps)

    def forward(self, features: Tensor, grid: tuple[int, ...] | None = None) -> Tensor:
        """(B, G..., C) -> (B, factor * G..., C'), cropped to `grid` at the end of each axis if given."""
        counts = tuple(features.shape[1:-1])
        finer = tuple(count * step for count, step in zip(counts, self.factor, strict=True))
        blocks = Windows(finer, self.factor, counts, finer, (0,) * len(counts))
        tokens = self.expansion(features).flatten(1, -2).unflatten(-1, (prod(self.factor), -1))
        expanded = merge(tokens, blocks)
        return self.norm(expanded if grid is None else crop(expanded, grid))


def patches_with_image(pixel_mask: Tensor | None, features: Tensor) -> Tensor | None:
    """Mask (B, S...), 1 for image, and (B, G..., C) -> (B, G...), True for patches that contain image."""
    if pixel_mask is None:
        return None
    grid = tuple(features.shape[1:-1])
    covered = F.adaptive_max_pool2d if len(grid) == 2 else F.adaptive_max_pool3d
    return covered(pixel_mask[:, None].float(), grid)[:, 0].bool()
