"""Channel projections whose `forward` returns the affine map that they compute, so that maps can be combined.

Combined affine maps are cheaper than one layer after the other, with the same result: several maps of the
same features share one matrix product; a map commutes with bilinear upsampling, so it can run at low
resolution; if features are a linear combination of a few tokens, it can be applied to the tokens instead.
Each module here owns its parameters and returns an `AffineMap` from `forward`. Code that combines maps calls
the modules and reads no parameters of theirs, so that hooks that load parameters for the duration of a call
(offloading) work.

Legend: B batch, h, w height and width of a feature map, C input channels, D output channels, K tokens.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from .blocks import BatchNorm2d, WeightOwner, reset_before_relu


class AffineMap(NamedTuple):
    """An affine map of channels, and the function applied after it."""

    matrix: Tensor  # (D, C)
    shift: Tensor | None = None  # (D,)
    finish: Callable[[Tensor], Tensor] | None = None  # (B, h, w, D) -> (B, h, w, D); None: nothing


class LinearMap(WeightOwner):
    """The affine map of a linear layer."""

    def __init__(self, in_channels: int, out_channels: int, has_bias: bool = True) -> None:
        super().__init__((out_channels, in_channels), has_bias)

    def forward(self) -> AffineMap:
        """-> matrix (D, C), shift (D,) or None."""
        return AffineMap(self.weight, self.bias)


class TorchLinearMap(LinearMap):
    """`LinearMap` with torch's initialization, as in the SegDeformer authors' code."""

    def reset_own_weights(self, std: float) -> None:
        super().reset_own_weights(std)  # draws as many random numbers as `TorchLinear`, for equal seeds
        reset_like_torch(self)


class TorchLinear(nn.Linear):
    """`nn.Linear` that keeps torch's initialization."""

    def reset_own_weights(self, _std: float) -> None:
        reset_like_torch(self)


class PointwiseKernel(WeightOwner):
    """The matrix of a 1x1 convolution without bias."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__((out_channels, in_channels, 1, 1))

    def forward(self) -> Tensor:
        """-> (D, C)."""
        return self.weight.flatten(1)


class FoldableNorm(BatchNorm2d):
    """Batch normalization that, called without input, returns the affine map of its running stats."""

    def forward(self, feature_map: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """(B, C, h, w) -> the same shape; without input -> scale and shift, (C,) each, in float32 or wider."""
        if feature_map is not None:
            return super().forward(feature_map)
        exact = torch.promote_types(self.weight.dtype, torch.float32)
        scale = self.weight.to(exact) * torch.rsqrt(self.running_var.to(exact) + self.eps)
        return scale, self.bias.to(exact) - self.running_mean.to(exact) * scale


class NormedMap(nn.Module):
    """1x1 convolution without bias, batch normalization, ReLU; in evaluation mode an affine map and ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.convolution = PointwiseKernel(in_channels, out_channels)
        self.norm = FoldableNorm(out_channels)

    def forward(self) -> AffineMap:
        """-> matrix (D, C), shift (D,) or None, and the function applied after it."""
        matrix = self.convolution()
        # On several GPUs `nn.SyncBatchNorm` replaces the norm; it is not folded.
        if self.norm.training or not isinstance(self.norm, FoldableNorm):
            return AffineMap(matrix, None, self.normalize)
        scale, shift = self.norm()
        return AffineMap((matrix.to(scale) * scale[:, None]).to(matrix), shift.to(matrix), F.relu)

    def normalize(self, features: Tensor) -> Tensor:
        """(B, h, w, D) -> (B, h, w, D): batch normalization and ReLU."""
        # A slice of a joint product is not contiguous, which makes batch normalization much slower.
        return F.relu(self.norm(features.contiguous().permute(0, 3, 1, 2))).permute(0, 2, 3, 1)

    def reset_own_weights(self, _std: float) -> None:
        reset_before_relu(self.convolution)


class NormedProjection(NormedMap):
    """`NormedMap` applied to features."""

    def forward(self, features: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, h, w, D)."""
        return project_jointly(features, [super().forward()])[0]


def reset_like_torch(layer: nn.Module) -> None:
    """Initializes weight (D, C) and bias as the constructor of `nn.Linear` does."""
    bound = layer.weight.shape[1] ** -0.5
    for parameter in layer.parameters():
        init.uniform_(parameter, -bound, bound)


def project_jointly(
    features: Tensor, maps: Sequence[AffineMap], tokens: Tensor | None = None
) -> list[Tensor]:
    """(B, h, w, C) -> the output (B, h, w, D) of each map, all computed by one matrix product.

    With `tokens` (K, C), `features` (B, h, w, K) are weights of the tokens instead, and each map is applied
    to sum_k weight_k token_k by mapping only the K tokens. Either all maps have a shift or none.
    """
    matrix = torch.cat([each.matrix for each in maps])
    if tokens is not None:
        matrix = matrix @ tokens.transpose(0, 1)
    shift = None if maps[0].shift is None else torch.cat([each.shift for each in maps])
    parts = F.linear(features, matrix, shift).split([len(each.matrix) for each in maps], dim=-1)
    return [
        part if each.finish is None else each.finish(part) for part, each in zip(parts, maps, strict=True)
    ]
