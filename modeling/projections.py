"""Projections of channels, each a matrix for every position, which several can share one product for.

Two kinds of layer: `nn.Linear`, and `NormedProjection`, which is 1x1 convolution, batch normalisation and ReLU. Both say
by `kernel` which affine map they apply and what follows it; so callers may compute the maps of several layers that read
the same features at once, apply them before an upsampling, or to the few tokens that features are mixed from.

Legend: B batch, h, w the sides of a map, C channels, K tokens.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from .blocks import ConvNormAct


class Kernel(NamedTuple):
    """An affine map of channels, and what follows it."""

    weight: Tensor  # (C', C)
    bias: Tensor | None = None  # (C',)
    finish: Callable[[Tensor], Tensor] | None = None  # (B, h, w, C') -> (B, h, w, C'); None: nothing


class LinearProjection(nn.Linear):
    """`nn.Linear` that keeps torch's initialisation, and can say what it computes."""

    def kernel(self) -> Kernel:
        return Kernel(self.weight, self.bias)

    def reset_own_weights(self, _std: float) -> None:
        bound = self.in_features**-0.5
        for parameter in self.parameters():
            init.uniform_(parameter, -bound, bound)


class NormedProjection(ConvNormAct):
    """1x1 convolution without bias, batch normalisation and ReLU, with channels last; in evaluation one affine map and ReLU."""

    def forward(self, features: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, h, w, C')."""
        return project_jointly(features, [self.kernel()])[0]

    def kernel(self) -> Kernel:
        weight, norm = self.convolution.weight.flatten(1), self.norm
        if norm.training:
            return Kernel(weight, None, self.normalize)
        exact = torch.promote_types(weight.dtype, torch.float32)
        scale = norm.weight.to(exact) * torch.rsqrt(norm.running_var.to(exact) + norm.eps)
        shift = norm.bias.to(exact) - norm.running_mean.to(exact) * scale
        return Kernel((weight.to(exact) * scale[:, None]).to(weight.dtype), shift.to(weight.dtype), F.relu)

    def normalize(self, features: Tensor) -> Tensor:
        """(B, h, w, C') -> (B, h, w, C'): batch statistics and ReLU."""
        # A slice of a joint product has gaps between its positions, which make batch normalisation far slower.
        return self.activate(features.contiguous().permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def project_jointly(
    features: Tensor, kernels: Sequence[Kernel], tokens: Tensor | None = None
) -> list[Tensor]:
    """Features (B, h, w, C) -> for each kernel (C', C) what it makes of them (B, h, w, C'), from one product.

    With tokens (K, C) the features are instead what these weights (B, h, w, K) mix from them, sum_k weight_k token_k, and
    each kernel sees only the K tokens. Kernels have all a bias, or none.
    """
    weight = torch.cat([kernel.weight for kernel in kernels])
    if tokens is not None:
        weight = weight @ tokens.transpose(0, 1)
    has_bias = kernels[0].bias is not None
    bias = torch.cat([kernel.bias for kernel in kernels]) if has_bias else None
    parts = F.linear(features, weight, bias).split([len(kernel.weight) for kernel in kernels], dim=-1)
    return [
        part if kernel.finish is None else kernel.finish(part)
        for part, kernel in zip(parts, kernels, strict=True)
    ]
