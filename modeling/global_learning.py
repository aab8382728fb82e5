"""MAFormer's second branch: Global Learning with Down-sampling (GLD), and the fusion of both branches.

Wang et al., "MAFormer: A Transformer Network with Multi-scale Attention Fusion", arXiv 2209.01620. GLD gives a small,
learned set of tokens for the whole image, to which the places of the local branch attend. The paper applies its fully
connected layer to the flattened tokens; that has far more parameters than the paper prints, and no fixed size. Here
the map is first averaged to a reference grid, which is linear as well and takes images of any size.

Legend: B batch, H, W the grid's sides, C channels, R the reference grid's side, M = m * m global tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import Attention
from .blocks import DropPath, Mlp, in_slices
from .swin_stages import StageSizes, SwinBlock, WindowCut
from .windows import plan_windows, shift_mask


def overlap_matrix(size: int, bins: int, like: Tensor) -> Tensor:
    """(bins, size): how much of each of equal bins every cell of an axis fills; rows sum to one.

    For sizes that `bins` divides it is average pooling; others have cells that two bins share.
    """
    edges = torch.arange(bins, device=like.device)[:, None] * size  # in units of 1 / (bins * size)
    cells = torch.arange(size, device=like.device)[None] * bins
    overlap = torch.minimum(edges + size, cells + bins) - torch.maximum(edges, cells)
    return (overlap.clamp(min=0) / size).to(like.dtype)


def average_to(features: Tensor, side: int) -> Tensor:
    """(B, H, W, C) -> (B, R, R, C): averages of equal areas, for grids of any size, deterministic in training too."""
    batch, height, width, _ = features.shape
    rows, columns = overlap_matrix(height, side, features), overlap_matrix(width, side, features)
    # torch.bmm, since a matrix times a batch would copy the whole map where gradients are wanted
    features = torch.bmm(rows.expand(batch, -1, -1), features.flatten(2))
    features = features.unflatten(-1, (width, -1)).flatten(0, 1)
    return torch.bmm(columns.expand(batch * side, -1, -1), features).unflatten(0, (batch, side))


def average_of_visible(features: Tensor, visible: Tensor | None, side: int) -> Tensor:
    """(B, H, W, C), optional (B, H, W) true where there is image -> (B, R, R, C), zero where there is no image."""
    if visible is None:
        return average_to(features, side)
    weights = visible[..., None].to(features.dtype)
    return average_to(features * weights, side) / average_to(weights, side).clamp(min=1e-4)


class GlobalLearning(nn.Module):
    """GLD: the map averaged to R x R, then a resized copy plus a fully connected layer over its places (eq. 2)."""

    def __init__(self, dim: int, grid_size: int, ratio: float) -> None:  # noqa: ARG002 - channels share the layer
        super().__init__()
        self.grid_size = grid_size
        self.side = max(int(grid_size * ratio + 0.5), 1)
        self.fc = nn.Linear(grid_size**2, self.side**2)

    def forward(self, features: Tensor, visible: Tensor | None = None) -> Tensor:
        """(B, H, W, C), optional (B, H, W) true where there is image -> (B, M, C)."""
        reference = average_of_visible(features, visible, self.grid_size).movedim(-1, 1)
        position = F.interpolate(reference, (self.side, self.side), mode="bilinear", align_corners=False)
        return (position.flatten(2) + self.fc(reference.flatten(2))).transpose(1, 2)


class GlobalConvolution(nn.Module):
    """The paper's ablation of GLD: a strided convolution of the averaged map."""

    def __init__(self, dim: int, grid_size: int, ratio: float) -> None:
        super().__init__()
        self.grid_size = grid_size
        stride = max(int(1 / ratio + 0.5), 1)
        self.convolution = nn.Conv2d(dim, dim, kernel_size=stride, stride=stride)

    def forward(self, features: Tensor, visible: Tensor | None = None) -> Tensor:
        """(B, H, W, C), optional (B, H, W) true where there is image -> (B, M, C)."""
        reference = average_of_visible(features, visible, self.grid_size).movedim(-1, 1)
        return self.convolution(reference).flatten(2).transpose(1, 2)


GLOBAL_BRANCHES = {"gld": GlobalLearning, "conv": GlobalConvolution}


class FusionAttention(Attention):
    """Attention whose heads are put side by side, without a projection after them."""

    def __init__(self, config: PreTrainedConfig, dim: int, num_heads: int) -> None:
        super().__init__(config, dim, num_heads)
        self.o_proj = nn.Identity()


class GlobalFusion(GradientCheckpointingLayer):
    """Multi-scale attention fusion (eq. 3-4): local features ask, global tokens answer; then an MLP."""

    def __init__(
        self, config: PreTrainedConfig, sizes: StageSizes, global_branch: nn.Module, drop_path_rate: float
    ) -> None:
        super().__init__()
        dim, eps = sizes.dim, sizes.layer_norm_eps
        self.global_branch = global_branch
        self.local_norm = nn.LayerNorm(dim, eps=eps)
        self.global_norm = nn.LayerNorm(dim, eps=eps)
        self.attention = FusionAttention(config, dim, sizes.num_heads)
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * sizes.mlp_ratio))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, local: Tensor, source: Tensor, visible: Tensor | None = None) -> Tensor:
        """(B, H, W, C), what the global branch reads (B, H, W, C), optional (B, H, W) -> (B, H, W, C)."""
        global_tokens = self.global_norm(self.global_branch(source, visible))
        answers, _ = self.attention(self.local_norm(local).flatten(1, 2), global_tokens)
        features = local + self.drop_path(answers.reshape(local.shape))
        return features + self.drop_path(in_slices(self.feed_forward, features))

    def feed_forward(self, features: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.mlp(self.norm(features))


class MafBlock(nn.Module):
    """Local and global branch side by side (Fig. 2c), or one after the other (`is_serial`, Fig. 2b), and their fusion."""

    def __init__(self, local: nn.Module, fusion: nn.Module | None, is_serial: bool = False) -> None:
        super().__init__()
        self.local, self.fusion, self.is_serial = local, fusion, is_serial

    def forward(self, features: Tensor, visible: Tensor | None = None) -> Tensor:
        """(B, H, W, C), optional (B, H, W) true where there is image -> (B, H, W, C)."""
        local = self.local(features, visible)
        if self.fusion is None:
            return local
        return self.fusion(local, local if self.is_serial else features, visible)


class ShiftedWindowBlock(SwinBlock):
    """Swin's block as local branch, the paper's ablation of the cross-shaped one."""

    def __init__(
        self, config: PreTrainedConfig, sizes: StageSizes, drop_path_rate: float, shifted: bool
    ) -> None:
        super().__init__(config, sizes, drop_path_rate, is_last=True)
        self.window, self.shifted = sizes.window, shifted

    def forward(self, features: Tensor, _visible: Tensor | None = None) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        windows = plan_windows(tuple(features.shape[1:-1]), self.window, self.shifted)
        mask = shift_mask(windows, features.device, features.dtype)
        return super().forward(features, None, WindowCut(windows, mask, None, None))[0]
