"""SegDeformer's internal and external context mining (Shi et al., ECCV 2022, sections 3.2 and 3.3).

Internal context is the rest of the image; external context is what other images show of each class, stored as
tokens. No matrix of positions by positions is stored, and between positions and tokens only the K class
scores. The mid-level features X_mid, mixtures of the tokens, are never computed: whatever reads them is
linear and can be applied to the tokens instead.

Legend: B batch, h, w height and width of the feature map, h', w' the same, possibly reduced, C channels, K
classes and external tokens. `padding_mask` is the padding mask (B, h, w), true for image, or None without padding.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig

from .attention import attend, padding_bias
from .blocks import Mlp, WeightOwner
from .projections import (
    AffineMap,
    NormedMap,
    NormedProjection,
    TorchLinear,
    TorchLinearMap,
    project_jointly,
)

MLP_RATIO = 4


class Reduction(WeightOwner):
    """A convolution with an R x R kernel and stride R, zero-padded to a multiple of R."""

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__((dim, dim, ratio, ratio))
        self.stride = ratio

    def forward(self, source: Tensor, tokens: Tensor | None = None) -> Tensor:
        """(B, h, w, C) -> (B, ceil(h / R), ceil(w / R), C).

        If tokens (K, C) are given, `source` holds mixing weights (B, h, w, K) of the features. The tokens are
        then multiplied into the kernel, which reads K channels: the same result without the features.
        """
        weight = self.weight if tokens is None else torch.einsum("ocrs,kc->okrs", self.weight, tokens)
        height, width = source.shape[1:3]
        padded = F.pad(source, (0, 0, 0, -width % self.stride, 0, -height % self.stride))
        return F.conv2d(padded.permute(0, 3, 1, 2), weight, stride=self.stride).permute(0, 2, 3, 1)


class ContextAttention(nn.Module):
    """Attention from every position to every (optionally reduced) position of a source: eq. 5 and 7.

    Args:
        config: Read only for its attention implementation.
        dim: Channels C.
        use_batch_norm: False for the paper's form, three plain matrices. True for the authors' code, whose
            projections have batch normalization and ReLU, and which adds a fourth projection after the
            attention.
        num_heads: Number of heads.
        reduction_ratio: R > 1 merges R x R positions of the source with a convolution before keys and values
            are projected (section 3.4). The paper states neither R nor where the convolution is; its
            parameter counts fit R = 4 and one convolution per attention.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        dim: int,
        use_batch_norm: bool,
        num_heads: int = 1,
        reduction_ratio: int = 1,
    ) -> None:
        super().__init__()
        self.config = config  # for the attention implementation, which may change after construction
        self.num_heads = num_heads
        self.head_dim = dim // num_heads  # for the scale; the low-rank form has a different head dimension
        self.is_causal = False
        projection = NormedMap if use_batch_norm else linear_map_without_bias
        self.q_proj, self.k_proj, self.v_proj = (projection(dim, dim) for _ in range(3))
        self.o_proj = NormedProjection(dim, dim) if use_batch_norm else nn.Identity()
        self.reduction = Reduction(dim, reduction_ratio) if reduction_ratio > 1 else None

    def keys_and_values(self, source: Tensor, tokens: Tensor | None = None) -> list[Tensor]:
        """(B, h, w, C), or mixing weights (B, h, w, K) and tokens (K, C) -> keys, values (B, h', w', C)."""
        if self.reduction is not None:
            source, tokens = self.reduction(source, tokens), None
        return project_jointly(source, [self.k_proj(), self.v_proj()], tokens)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, padding_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, h, w, d), twice (B, h', w', d) -> (B, h, w, d), (B, heads, h w, h' w') or None."""
        heads = (
            part.flatten(1, 2).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in (query, key, value)
        )
        attended, probabilities = attend(self, *heads, self.key_bias(padding_mask, query.dtype))
        return attended.flatten(-2).unflatten(1, query.shape[1:3]), probabilities

    def key_bias(self, padding_mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """Padding mask (B, h, w), true for image -> additive bias (B, 1, 1, h' * w')."""
        if padding_mask is None:
            return None
        if self.reduction is not None:
            padding_mask = F.max_pool2d(padding_mask.float(), self.reduction.stride, ceil_mode=True) > 0
        return padding_bias(padding_mask.flatten(1), dtype)


class InternalAttention(ContextAttention):
    """Attention within the image: eq. 5."""

    def maps(self) -> list[AffineMap]:
        """The projections that read the features: queries and, without reduction, keys and values."""
        projections = [self.q_proj, self.k_proj, self.v_proj] if self.reduction is None else [self.q_proj]
        return [projection() for projection in projections]

    def forward(
        self, features: Tensor, projected: Sequence[Tensor] | None = None, padding_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, h, w, C), optionally projected by `maps` -> Y_inter (B, h, w, C), probabilities or None."""
        query, *rest = project_jointly(features, self.maps()) if projected is None else projected
        key, value = rest or self.keys_and_values(features)
        attended, probabilities = self.attend(query, key, value, padding_mask)
        return self.o_proj(attended), probabilities


class ExternalAttention(ContextAttention):
    """Attention from the image to X_mid, the features mixed from external tokens: eq. 7."""

    def maps(self, info: Tensor) -> list[AffineMap]:  # noqa: ARG002 - the low-rank form needs it
        """The projections that read the features, given information tokens (K, C)."""
        return [self.q_proj()]

    def forward(
        self, query: Tensor, mixing: Tensor, info: Tensor, padding_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, h, w, C), mixing (B, h, w, K), tokens (K, C) -> Y_exter (B, h, w, C), probabilities or None."""
        attended, probabilities = self.attend(query, *self.keys_and_values(mixing, info), padding_mask)
        return self.o_proj(attended), probabilities


class LowRankExternalAttention(ExternalAttention):
    """The same attention for K < C tokens, without normalization and reduction.

    With mixing weights P (h * w x K), keys are P A_k and values P A_v. The scores are therefore (q A_k^T) P^T
    and the result is (softmax(scores) P) A_v: attention of width K, whose queries are one K x C matrix
    applied to the features.
    """

    def maps(self, info: Tensor) -> list[AffineMap]:
        """The projection to queries of width K: the projected tokens (K, C) are multiplied into it."""
        (key,) = project_jointly(info, [self.k_proj()])
        return [AffineMap(key @ self.q_proj().matrix)]

    def forward(
        self, query: Tensor, mixing: Tensor, info: Tensor, padding_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, h, w, K), mixing (B, h, w, K), tokens (K, C) -> Y_exter (B, h, w, C), probabilities or None."""
        mixed, probabilities = self.attend(query, mixing, mixing, padding_mask)
        (value,) = project_jointly(info, [self.v_proj()])
        return F.linear(mixed, value.transpose(0, 1)), probabilities


class InternalLayer(nn.Module):
    """Internal attention with residual; optionally a pre-norm MLP with residual, our reading of Table 4."""

    def __init__(self, attention: InternalAttention, dim: int, use_mlp: bool) -> None:
        super().__init__()
        self.attention = attention
        self.norm = nn.LayerNorm(dim) if use_mlp else None
        self.mlp = Mlp(dim, MLP_RATIO * dim) if use_mlp else None

    def forward(
        self, features: Tensor, projected: Sequence[Tensor] | None = None, padding_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, h, w, C) -> (B, h, w, C), probabilities or None."""
        attended, probabilities = self.attention(features, projected, padding_mask)
        features = features + attended
        if self.mlp is not None:
            features = features + self.mlp(self.norm(features))
        return features, probabilities


class InternalMining(nn.Module):
    """Internal context mining (section 3.2): X_inter -> X_inter + Y_inter, by one or more layers."""

    def __init__(
        self, make_attention: Callable[[], InternalAttention], dim: int, depth: int, use_mlp: bool
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(InternalLayer(make_attention(), dim, use_mlp) for _ in range(depth))

    def maps(self) -> list[AffineMap]:
        """The projections that read X_inter."""
        return self.layers[0].attention.maps()

    def forward(
        self, features: Tensor, projected: Sequence[Tensor], padding_mask: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor | None]]:
        """(B, h, w, C), its projections by `maps` -> the sum (B, h, w, C), probabilities of each layer."""
        all_probabilities = []
        for layer in self.layers:
            features, probabilities = layer(features, projected, padding_mask)
            all_probabilities.append(probabilities)
            projected = None  # only the first layer reads X_inter
        return features, all_probabilities


class ExternalMining(nn.Module):
    """External context mining (section 3.3): X_inter -> Y_exter, from one token per class (eq. 6, 7 and 10).

    Args:
        tokens: Module that returns class tokens and information tokens, both (K, C).
        dim: Channels C.
        use_batch_norm: False for the paper's eq. 6, where information tokens are projected too and no projection
            has a bias. True for the authors' code, where the projections of the token scores have biases and
            information tokens are not projected.
        attention: Attention from X_inter to X_mid; None adds X_mid itself.
    """

    def __init__(
        self, tokens: nn.Module, dim: int, use_batch_norm: bool, attention: ExternalAttention | None
    ) -> None:
        super().__init__()
        self.tokens = tokens
        self.q_proj = TorchLinearMap(dim, dim, has_bias=use_batch_norm)
        self.k_proj = TorchLinear(dim, dim, bias=use_batch_norm)
        self.v_proj = nn.Identity() if use_batch_norm else TorchLinear(dim, dim, bias=False)
        self.attention = attention

    def maps(self) -> list[AffineMap]:
        """The projections that read X_inter, apart from the token scores."""
        if self.attention is None:
            return []
        return self.attention.maps(self.v_proj(self.tokens()[1]))

    def forward(
        self, features: Tensor, projected: Sequence[Tensor], padding_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """(B, h, w, C), its projections by `maps` -> Y_exter, Attn_mid (B, h, w, K), probabilities."""
        class_tokens, info_tokens = self.tokens()
        scores = self.score(features, class_tokens)
        mixing, info = scores.softmax(dim=-1).to(scores.dtype), self.v_proj(info_tokens)
        if self.attention is None:
            return F.linear(mixing, info.transpose(0, 1)), scores, None
        attended, probabilities = self.attention(*projected, mixing, info, padding_mask)
        return attended, scores, probabilities

    def score(self, features: Tensor, class_tokens: Tensor) -> Tensor:
        """(B, h, w, C), (K, C) -> Attn_mid (B, h, w, K). Query projection and keys are one K x C matrix."""
        keys, query = self.k_proj(class_tokens) * class_tokens.shape[-1] ** -0.5, self.q_proj()
        shift = None if query.shift is None else keys @ query.shift
        return F.linear(features, keys @ query.matrix, shift)


def linear_map_without_bias(in_channels: int, out_channels: int) -> TorchLinearMap:
    return TorchLinearMap(in_channels, out_channels, has_bias=False)


def external_attention(
    config: PreTrainedConfig, dim: int, use_batch_norm: bool, reduction_ratio: int, num_tokens: int
) -> ExternalAttention:
    """The cheapest module that computes eq. 7; both have the same parameters."""
    is_low_rank = not use_batch_norm and reduction_ratio == 1 and num_tokens < dim
    form = LowRankExternalAttention if is_low_rank else ExternalAttention
    return form(config, dim, use_batch_norm, reduction_ratio=reduction_ratio)


__all__ = ["ExternalMining", "InternalAttention", "InternalMining", "external_attention"]
