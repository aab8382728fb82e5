"""MAFormer's global branch, Global Learning with Down-sampling (GLD), and its fusion with the local branch.

Wang et al., "MAFormer: A Transformer Network with Multi-scale Attention Fusion", arXiv 2209.01620. GLD
computes a small set of tokens for the whole image, to which the positions of the local branch attend. The
paper applies its fully connected layer to all flattened positions, which takes far more parameters than the
paper reports and fixes the image size. Here the feature map is first averaged to a reference grid, also a
linear operation, so any image size works.

Legend: B batch, H, W height and width of the grid, C channels, R side of the reference grid, M = m * m global
tokens.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import Attention
from .blocks import DropPath, Mlp, in_slices
from .swin_stages import StageSizes, SwinBlock, WindowCut
from .upsampling import upsample
from .windows import plan_windows, shift_masks


def overlap_matrix(size: int, bins: int, like: Tensor) -> Tensor:
    """-> (bins, size): the share of each cell of an axis in each of equally wide bins; rows sum to one.

    If `bins` divides `size`, this is average pooling; otherwise some cells are shared by two bins.
    """
    edges = torch.arange(bins, device=like.device)[:, None] * size  # in units of 1 / (bins * size)
    cells = torch.arange(size, device=like.device)[None] * bins
    overlap = torch.minimum(edges + size, cells + bins) - torch.maximum(edges, cells)
    return (overlap.clamp(min=0) / size).to(like.dtype)


def average_to(features: Tensor, side: int) -> Tensor:
    """(B, H, W, C) -> (B, R, R, C): averages over equal areas, deterministic in training too."""
    batch, height, width, _ = features.shape
    rows, columns = overlap_matrix(height, side, features), overlap_matrix(width, side, features)
    # torch.bmm on expanded matrices: with gradients, matrix @ batch would copy the whole feature map.
    features = torch.bmm(rows.expand(batch, -1, -1), features.flatten(2))
    features = features.unflatten(-1, (width, -1)).flatten(0, 1)
    return torch.bmm(columns.expand(batch * side, -1, -1), features).unflatten(0, (batch, side))


def average_of_unpadded(features: Tensor, padding_mask: Tensor | None, side: int) -> Tensor:
    """(B, H, W, C), optional padding mask (B, H, W), true for image -> (B, R, R, C), without padding."""
    if padding_mask is None:
        return average_to(features, side)
    weights = padding_mask[..., None].to(features.dtype)
    return average_to(features * weights, side) / average_to(weights, side).clamp(min=1e-4)


class GlobalLearning(nn.Module):
    """GLD (eq. 2): the map averaged to R x R, then resized, plus a fully connected layer over positions.

    Args:
        dim: Channels; unused, because all channels share the layer.
        grid_size: Side R of the reference grid.
        ratio: Side of the grid of global tokens over R, the paper's N.
    """

    def __init__(self, dim: int, grid_size: int, ratio: float) -> None:  # noqa: ARG002 - channels share the layer
        super().__init__()
        self.grid_size = grid_size
        self.side = max(int(grid_size * ratio + 0.5), 1)
        self.fc = nn.Linear(grid_size**2, self.side**2)

    def forward(self, features: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """(B, H, W, C), optional padding mask (B, H, W), true for image -> (B, M, C)."""
        reference = average_of_unpadded(features, padding_mask, self.grid_size).movedim(-1, 1)
        position = upsample(reference, (self.side, self.side))
        return (position.flatten(2) + self.fc(reference.flatten(2))).transpose(1, 2)


class GlobalConvolution(nn.Module):
    """The paper's ablation of GLD: a strided convolution of the averaged feature map."""

    def __init__(self, dim: int, grid_size: int, ratio: float) -> None:
        super().__init__()
        self.grid_size = grid_size
        stride = max(int(1 / ratio + 0.5), 1)
        self.convolution = nn.Conv2d(dim, dim, kernel_size=stride, stride=stride)

    def forward(self, features: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """(B, H, W, C), optional padding mask (B, H, W), true for image -> (B, M, C)."""
        reference = average_of_unpadded(features, padding_mask, self.grid_size).movedim(-1, 1)
        return self.convolution(reference).flatten(2).transpose(1, 2)


GLOBAL_BRANCHES = {"gld": GlobalLearning, "conv": GlobalConvolution}


class FusionAttention(Attention):
    """Attention without an output projection; the heads are concatenated."""

    def __init__(self, config: PreTrainedConfig, dim: int, num_heads: int) -> None:
        super().__init__(config, dim, num_heads)
        self.o_proj = nn.Identity()


class GlobalFusion(GradientCheckpointingLayer):
    """Multi-scale attention fusion (eq. 3, 4): local features attend to global tokens; then an MLP."""

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

    def forward(self, local: Tensor, source: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """(B, H, W, C), input of the global branch (B, H, W, C), optional mask (B, H, W) -> (B, H, W, C)."""
        global_tokens = self.global_norm(self.global_branch(source, padding_mask))
        answers, _ = self.attention(self.local_norm(local).flatten(1, 2), global_tokens)
        features = local + self.drop_path(answers.reshape(local.shape))
        return features + self.drop_path(in_slices(self.feed_forward, features))

    def feed_forward(self, features: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.mlp(self.norm(features))


class MafBlock(nn.Module):
    """Local and global branch with fusion: in parallel (Fig. 2c), or serial (Fig. 2b).

    Args:
        local: The local branch.
        fusion: Global branch and fusion; None leaves both out.
        is_serial: Whether the global branch reads the output of the local branch instead of the block's
            input.
    """

    def __init__(self, local: nn.Module, fusion: nn.Module | None, is_serial: bool = False) -> None:
        super().__init__()
        self.local, self.fusion, self.is_serial = local, fusion, is_serial

    def forward(self, features: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """(B, H, W, C), optional padding mask (B, H, W), true for image -> (B, H, W, C)."""
        local = self.local(features, padding_mask)
        if self.fusion is None:
            return local
        return self.fusion(local, local if self.is_serial else features, padding_mask)


class ShiftedWindowBlock(SwinBlock):
    """A Swin block as local branch, the paper's ablation of cross-shaped attention."""

    def __init__(
        self, config: PreTrainedConfig, sizes: StageSizes, drop_path_rate: float, shifted: bool
    ) -> None:
        super().__init__(config, sizes, drop_path_rate, is_last=True)
        self.window, self.shifted = sizes.window, shifted

    def forward(self, features: Tensor, _padding_mask: Tensor | None = None) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        windows = plan_windows(tuple(features.shape[1:-1]), self.window, self.shifted)
        masks = shift_masks(windows, features.device, features.dtype)
        return super().forward(features, None, WindowCut(windows, masks, None, None))[0]
