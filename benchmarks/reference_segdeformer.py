"""SegDeformer's decoder as its equations stand, one operation after the other: what ours is measured beside.

All levels are upsampled and concatenated before their fusion, each projection is a product of its own, and both attentions
hold a matrix of positions by positions. The results are those of `contextseg.modeling.decoder_segdeformer`, whose state
dict fits as it is.

Legend: B batch, C channels, K classes, h, w the sides of the finest map, N = h w positions.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contextseg.modeling.blocks import ConvNormAct, Decoded


class Positionwise(nn.Linear):
    """A linear layer at each position of a map."""

    def forward(self, feature_map: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', h, w)."""
        return super().forward(feature_map.movedim(1, -1)).movedim(-1, 1)


class StraightforwardAttention(nn.Module):
    """Softmax attention of one head from each position of a map to each of another (eq. 5 and 7)."""

    def __init__(self, dim: int, projection: Callable[[int, int], nn.Module], has_output: bool) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (projection(dim, dim) for _ in range(3))
        self.o_proj = projection(dim, dim) if has_output else nn.Identity()

    def forward(self, feature_map: Tensor, source: Tensor) -> Tensor:
        """(B, C, h, w) twice -> (B, C, h, w)."""
        query = as_tokens(self.q_proj(feature_map))
        key, value = as_tokens(self.k_proj(source)), as_tokens(self.v_proj(source))
        scores = query @ key.transpose(1, 2) * query.shape[-1] ** -0.5
        return self.o_proj(as_map(scores.softmax(dim=-1) @ value, feature_map))


class StraightforwardExternalMining(nn.Module):
    """Features mixed from the tokens of the classes, and attention to them (eq. 6, 7 and 10)."""

    def __init__(
        self, dim: int, num_labels: int, projection: Callable[[int, int], nn.Module], is_normed: bool
    ) -> None:
        super().__init__()
        self.tokens = nn.ParameterDict(
            {name: torch.randn(num_labels, dim) for name in ("class_tokens", "info_tokens")}
        )
        self.q_proj, self.k_proj = (nn.Linear(dim, dim, bias=is_normed) for _ in range(2))
        self.v_proj = nn.Identity() if is_normed else nn.Linear(dim, dim, bias=False)
        self.attention = StraightforwardAttention(dim, projection, has_output=is_normed)

    def forward(self, feature_map: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, h, w) -> Y_exter (B, C, h, w) and Attn_mid (B, K, h, w)."""
        query, key = self.q_proj(as_tokens(feature_map)), self.k_proj(self.tokens["class_tokens"])
        scores = query @ key.transpose(0, 1) * query.shape[-1] ** -0.5
        mixed = scores.softmax(dim=-1) @ self.v_proj(self.tokens["info_tokens"])
        attended = self.attention(feature_map, as_map(mixed, feature_map))
        return attended, as_map(scores, feature_map)


class StraightforwardSegDeformer(nn.Module):
    """Feature maps of any number of scales, fine to coarse -> one map at the size of the finest, and Attn_mid.

    is_normed: the authors' code; otherwise the paper's equations, as the neck "linear" of our decoder.
    """

    def __init__(
        self, in_channels: Sequence[int], hidden_size: int, num_labels: int, is_normed: bool = True
    ) -> None:
        super().__init__()
        layer = ConvNormAct if is_normed else Positionwise
        projection = ConvNormAct if is_normed else positionwise_without_bias
        self.neck = nn.ModuleDict(
            {
                "projections": nn.ModuleList(layer(channels, hidden_size) for channels in in_channels),
                "fusion": layer(len(in_channels) * hidden_size, hidden_size),
            }
        )
        attention = StraightforwardAttention(hidden_size, projection, has_output=is_normed)
        self.internal = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"attention": attention})])})
        self.external = StraightforwardExternalMining(hidden_size, num_labels, projection, is_normed)

    def forward(self, feature_maps: Sequence[Tensor]) -> Decoded:
        """Maps (B, C_i, h_i, w_i), fine to coarse -> map (B, C, h, w) and scores (B, K, h, w)."""
        projected = [
            project(level) for project, level in zip(self.neck["projections"], feature_maps, strict=True)
        ]
        size = projected[0].shape[-2:]
        upsampled = [F.interpolate(level, size, mode="bilinear") for level in projected]
        fused = self.neck["fusion"](torch.cat(upsampled, dim=1))
        internal = self.internal["layers"][0]["attention"](fused, fused)
        external, mid_logits = self.external(fused)
        return Decoded(fused + internal + external, mid_logits)


def positionwise_without_bias(in_channels: int, out_channels: int) -> Positionwise:
    return Positionwise(in_channels, out_channels, bias=False)


def as_tokens(feature_map: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, N, C)."""
    return feature_map.flatten(2).transpose(1, 2)


def as_map(tokens: Tensor, like: Tensor) -> Tensor:
    """(B, N, C) -> (B, C, h, w), with the sides of `like`."""
    return tokens.transpose(1, 2).unflatten(2, like.shape[-2:])
