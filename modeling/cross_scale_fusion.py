"""Two Swin encoders, of a sharp crop and of its wide context: after every stage, the local features attend to the
context's feature map of the same stage (CASWiT, Carreaud et al., arXiv 2601.11310).

Built from the abstract; no reference numbers exist. The abstract names two Swin encoders, cross-attention from local
to context at every stage, and gated injection. Norms, gates at zero, the MLP and the pooling of keys are ours.
No position relates the two grids. The context never depends on the local crop.

Legend: B batch, C channels, G... grid axes, S... image axes, M context tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from ..configuration.checked_config import choose
from .attention import Attention
from .blocks import Encoded, Mlp, Revise, in_slices, unchanged
from .swin_stages import SwinEncoder

POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


class LearnedGate(nn.Module):
    """Adds an update times learned values, which are 0 at the start."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(count))

    def forward(self, features: Tensor, update: Tensor) -> Tensor:
        """Twice (B, G..., C) -> (B, G..., C)."""
        return features + self.value * update

    def reset_own_weights(self, _std: float) -> None:
        init.zeros_(self.value)


class DynamicGate(nn.Module):
    """Adds an update times a sigmoid of a linear map of features and update."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.projection = nn.Linear(2 * dim, dim)

    def forward(self, features: Tensor, update: Tensor) -> Tensor:
        """Twice (B, G..., C) -> (B, G..., C)."""
        return features + self.projection(torch.cat([features, update], dim=-1)).sigmoid() * update


class OpenGate(nn.Module):
    """Adds an update."""

    def forward(self, features: Tensor, update: Tensor) -> Tensor:
        """Twice (B, G..., C) -> (B, G..., C)."""
        return features + update


GATES: dict[str, Callable[[int], nn.Module]] = {
    "channel": lambda dim: LearnedGate(dim),
    "scalar": lambda _: LearnedGate(1),
    "dynamic": lambda dim: DynamicGate(dim),
    "none": lambda _: OpenGate(),
}


class CrossScaleFusion(GradientCheckpointingLayer):
    """Cross-attention from local features to a context, then an MLP; a gate multiplies what each of them adds.

    Args:
        config: Read only for its attention implementation.
        dim: Channels of both scales.
        num_heads: Number of heads.
        gate: Name of the gate, see `GATES`.
        mlp_ratio: Hidden channels of the MLP over `dim`; 0 for no MLP.
        pooling: Side of the blocks of context positions that are averaged into one key and value.
        layer_norm_eps: Epsilon of the layer norms.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        dim: int,
        num_heads: int,
        gate: str = "channel",
        mlp_ratio: float = 4.0,
        pooling: int = 1,
        layer_norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        build_gate = choose("gate", gate, GATES)
        self.pooling = pooling
        self.local_norm = nn.LayerNorm(dim, eps=layer_norm_eps)
        self.context_norm = nn.LayerNorm(dim, eps=layer_norm_eps)
        self.attention = Attention(config, dim, num_heads)
        self.gate = build_gate(dim)
        self.norm = self.mlp = self.mlp_gate = None
        if hidden_dim := int(dim * mlp_ratio):
            self.norm = nn.LayerNorm(dim, eps=layer_norm_eps)
            self.mlp = Mlp(dim, hidden_dim)
            self.mlp_gate = build_gate(dim)

    def forward(self, features: Tensor, context: Tensor) -> Tensor:
        """(B, G..., C), context (B, G..., C) of any grid -> (B, G..., C)."""
        attended, _ = self.attention(self.local_norm(features).flatten(1, -2), self.keys(context))
        features = self.gate(features, attended.reshape(features.shape))
        return features if self.mlp is None else in_slices(self.feed_forward, features)

    def keys(self, context: Tensor) -> Tensor:
        """(B, G..., C) -> (B, M, C), normalized, then averaged in blocks; those at the end may be smaller."""
        context = self.context_norm(context)
        if self.pooling > 1:
            pool = POOL[context.ndim - 2]
            context = pool(context.movedim(-1, 1), self.pooling, ceil_mode=True).movedim(1, -1)
        return context.flatten(1, -2)

    def feed_forward(self, features: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.mlp_gate(features, self.mlp(self.norm(features)))


class CrossScaleEncoder(nn.Module):
    """A local encoder whose features attend, after the fused stages, to those of a context encoder.

    Args:
        local: Encoder of the sharp crop.
        context: Encoder of its context, with the same stages; None uses `local` for both.
        fusions: The fusion of each fused stage, by the index of the stage, from 0.
        feeds_next_stage: Whether the next stage continues from the fused features.
    """

    def __init__(
        self,
        local: SwinEncoder,
        context: SwinEncoder | None,
        fusions: Mapping[int, CrossScaleFusion],
        feeds_next_stage: bool = True,
    ) -> None:
        super().__init__()
        self.local, self.context = local, context
        self.fusions = nn.ModuleDict({f"stage{stage + 1}": fusion for stage, fusion in fusions.items()})
        self.feeds_next_stage = feeds_next_stage

    def encode_context(self, context_values: Tensor, revise: Revise = unchanged) -> Encoded:
        """(B, C, S...) -> features (B, G..., C) of each stage; see `blocks.Revise`."""
        encoder = self.local if self.context is None else self.context
        return encoder(context_values, revise=revise)

    def fused_features(self, context: Encoded) -> list[Tensor]:
        """Output of `encode_context` -> what `forward` takes: features (B, G..., C) of each fused stage."""
        return [
            features for level, features in enumerate(context.outputs, 1) if f"stage{level}" in self.fusions
        ]

    def forward(
        self,
        pixel_values: Tensor,
        context_features: Sequence[Tensor],
        revise: Revise = unchanged,
    ) -> Encoded:
        """(B, C, S...), context (B, G..., C) of each fused stage -> features (B, G..., C) of each stage.

        Args:
            pixel_values: The sharp crop (B, C, S...).
            context_features: Features of the context, see `fused_features`.
            revise: See `blocks.Revise`; the features that it is given are not fused yet.
        """
        context = dict(zip(self.fusions, context_features, strict=True))
        fuse = partial(self.fuse, context)
        if self.feeds_next_stage:
            return self.local(
                pixel_values, revise=lambda level, features: fuse(level, revise(level, features))
            )
        encoded = self.local(pixel_values, revise=revise)
        return Encoded(
            encoded.inputs, [fuse(level, features) for level, features in enumerate(encoded.outputs, 1)]
        )

    def fuse(self, context: Mapping[str, Tensor], level: int, features: Tensor) -> Tensor:
        """Context (B, G..., C) by stage, level, features (B, G..., C) of the level -> (B, G..., C)."""
        stage = f"stage{level}"
        return self.fusions[stage](features, context[stage]) if stage in context else features
