"""Small modules shared by several architectures.

Legend: B batch, C channels, G... grid axes, N tokens.
"""

from collections.abc import Callable
from math import prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from .winograd import WinogradConv2d

SLICE = 1024  # positions per slice


class Encoded(NamedTuple):
    """Input and output features (B, G..., C) of each stage, fine to coarse."""

    inputs: list[Tensor]
    outputs: list[Tensor]


# A function of level and features (B, G..., C), with whose result an encoder continues: it is called with level 0 after
# the first patch embedding, and with level i after stage i.
Revise = Callable[[int, Tensor], Tensor]


def unchanged(_level: int, features: Tensor) -> Tensor:
    """Level, (B, G..., C) -> (B, G..., C)."""
    return features


class Decoded(NamedTuple):
    """Output of every decoder: the feature map for the classifier, and additional outputs of some decoders."""

    feature_map: Tensor  # (B, C, h, w)
    mid_logits: Tensor | None = None  # (B, K, h, w), mid-level class scores, with a loss of their own
    # (B, C, h, w), the fused features whose class means the momentum tokens follow.
    internal_map: Tensor | None = None
    attentions: tuple[Tensor, ...] = ()  # probabilities (B, heads, queries, keys), eager attention only
    coarser_maps: tuple[Tensor, ...] = ()  # (B, C_i, g_i...), fine to coarse, with losses of their own


class WeightOwner(nn.Module):
    """Owns a weight and optionally a bias, initialized like a linear layer or convolution.

    The base class of layers that apply their weights differently from `nn.Linear` and `nn.Conv2d`, such as a
    convolution over a pyramid of feature maps. It does not inherit from these classes on purpose: peft and
    torchao replace such layers or their weights and rely on the standard `forward`. This way, these tools
    skip our layers.

    Args:
        shape: Shape (C', C, kernel...) of the weight.
        has_bias: Whether to add a bias (C',).
    """

    def __init__(self, shape: tuple[int, ...], has_bias: bool = False) -> None:
        super().__init__()
        bound = prod(shape[1:]) ** -0.5  # torch's default
        self.weight = nn.Parameter(nn.init.uniform_(torch.empty(shape), -bound, bound))
        self.bias = nn.Parameter(nn.init.uniform_(torch.empty(shape[0]), -bound, bound)) if has_bias else None

    def reset_own_weights(self, std: float) -> None:
        """Initializes as transformers does linear layers and convolutions: normal weights, zero bias."""
        init.normal_(self.weight, std=std)
        if self.bias is not None:
            init.zeros_(self.bias)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, bias={self.bias is not None}"


class Mlp(nn.Module):
    """Two linear layers with an exact GELU in between."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.activation = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, features: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.fc2(self.activation(self.fc1(features)))


class DropPath(nn.Module):
    """Stochastic depth: in training, drops a sample's whole residual branch with probability `rate`."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """(B, ...) -> (B, ...)."""
        if not self.training or self.rate == 0.0:
            return branch
        keep = 1.0 - self.rate
        survives = torch.rand(branch.shape[0], *[1] * (branch.ndim - 1), device=branch.device) < keep
        return branch * survives.to(branch.dtype) / keep

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalization that can also train on a single value per channel.

    UPerNet's global pooling branch has one value per image and channel. With a batch of one there is no
    variance, and torch raises an error. Here such a step is normalized with the running statistics, which are
    not updated.
    """

    def forward(self, feature_map: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if self.training and feature_map.numel() == feature_map.shape[1]:
            return F.batch_norm(
                feature_map, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(feature_map)


class ConvNormAct(nn.Module):
    """Convolution without bias, batch normalization, ReLU; keeps the spatial size."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1) -> None:
        super().__init__()
        self.convolution = WinogradConv2d(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False
        )
        self.norm = BatchNorm2d(out_channels)

    def forward(self, feature_map: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W)."""
        return F.relu(self.norm(self.convolution(feature_map)), inplace=True)

    def reset_own_weights(self, _std: float) -> None:
        reset_before_relu(self.convolution)


def reset_before_relu(convolution: nn.Module) -> None:
    """He initialization with fan-out, which preserves the variance of gradients, as in mmsegmentation."""
    init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")


def is_compiled_for_cpu(features: Tensor) -> bool:
    """Whether torch.compile makes a program for inference on a CPU.

    Each of its kernels takes a second to compile, and each computation between two products of matrices is a kernel.
    """
    is_inference = not torch.is_grad_enabled() and not torch.compiler.is_exporting()
    return torch.compiler.is_compiling() and is_inference and features.device.type == "cpu"


def in_slices(function: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
    """Applies a pointwise function (..., C) -> (..., C); for inference on a CPU, in slices of positions.

    The wide hidden features of an MLP then fit into the cache, which halves the time for 128 x 128 feature
    maps.
    """
    on_cpu = features.device.type == "cpu" and not torch.compiler.is_compiling()
    if not on_cpu or torch.is_grad_enabled() or features.shape[:-1].numel() <= 2 * SLICE:
        return function(features)
    slices = features.flatten(0, -2).split(SLICE)
    return torch.cat([function(part) for part in slices]).reshape(features.shape)
