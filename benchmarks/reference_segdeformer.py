"""A literal implementation of the equations of SegDeformer's decoder, with which ours is compared.

All levels are upsampled and concatenated before their fusion, each projection is one matrix product, and both
attentions store a matrix of positions by positions. The results equal those of
`contextseg.modeling.decoder_segdeformer`, and its state dict loads unchanged.

Legend: B batch, C channels, K classes, h, w axes of the finest feature map, N = h w positions.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contextseg.modeling.blocks import ConvNormAct, Decoded


class Positionwise(nn.Linear):
    """A linear layer at each position of a feature map."""

    def forward(self, feature_map: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', h, w)."""
        return super().forward(feature_map.movedim(1, -1)).movedim(-1, 1)


class ReferenceAttention(nn.Module):
    """Single-head softmax attention from the positions of a feature map to those of another (eq. 5 and 7)."""

    def __init__(self, dim: int, projection: Callable[[int, int], nn.Module], has_output: bool) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (projection(dim, dim) for _ in range(3))
        self.o_proj = projection(dim, dim) if has_output else nn.Identity()

    def forward(self, feature_map: Tensor, source: Tensor) -> Tensor:
        """(B, C, h, w), (B, C, h, w) -> (B, C, h, w)."""
        query = as_tokens(self.q_proj(feature_map))
        key, value = as_tokens(self.k_proj(source)), as_tokens(self.v_proj(source))
        scores = query @ key.transpose(1, 2) * query.shape[-1] ** -0.5
        return self.o_proj(as_map(scores.softmax(dim=-1) @ value, feature_map))


class ReferenceExternalMining(nn.Module):
    """Attention to features that are mixed from the class tokens (eq. 6, 7 and 10)."""

    def __init__(
        self, dim: int, num_labels: int, projection: Callable[[int, int], nn.Module], use_batch_norm: bool
    ) -> None:
        super().__init__()
        self.tokens = nn.ParameterDict(
            {name: torch.randn(num_labels, dim) for name in ("class_tokens", "info_tokens")}
        )
        self.q_proj, self.k_proj = (nn.Linear(dim, dim, bias=use_batch_norm) for _ in range(2))
        self.v_proj = nn.Identity() if use_batch_norm else nn.Linear(dim, dim, bias=False)
        self.attention = ReferenceAttention(dim, projection, has_output=use_batch_norm)

    def forward(self, feature_map: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, h, w) -> Y_exter (B, C, h, w) and Attn_mid (B, K, h, w)."""
        query, key = self.q_proj(as_tokens(feature_map)), self.k_proj(self.tokens["class_tokens"])
        scores = query @ key.transpose(0, 1) * query.shape[-1] ** -0.5
        mixed = scores.softmax(dim=-1) @ self.v_proj(self.tokens["info_tokens"])
        attended = self.attention(feature_map, as_map(mixed, feature_map))
        return attended, as_map(scores, feature_map)


class ReferenceSegDeformer(nn.Module):
    """Decodes feature maps of any number of scales into one feature map at the finest size, and Attn_mid.

    Args:
        in_channels: Channels of the feature maps, fine to coarse.
        hidden_size: Channels C of the decoder.
        num_labels: Number of classes K.
        use_batch_norm: Whether to follow the authors' code, with norms; otherwise the paper's equations, like the
            neck "linear" of our decoder.
    """

    def __init__(
        self, in_channels: Sequence[int], hidden_size: int, num_labels: int, use_batch_norm: bool = True
    ) -> None:
        super().__init__()
        layer = ConvNormAct if use_batch_norm else Positionwise
        projection = ConvNormAct if use_batch_norm else positionwise_without_bias
        self.neck = nn.ModuleDict(
            {
                "projections": nn.ModuleList(layer(channels, hidden_size) for channels in in_channels),
                "fusion": layer(len(in_channels) * hidden_size, hidden_size),
            }
        )
        attention = ReferenceAttention(hidden_size, projection, has_output=use_batch_norm)
        self.internal = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"attention": attention})])})
        self.external = ReferenceExternalMining(hidden_size, num_labels, projection, use_batch_norm)

    def forward(self, feature_maps: Sequence[Tensor]) -> Decoded:
        """Maps (B, C_i, h_i, w_i), fine to coarse -> feature map (B, C, h, w) and scores (B, K, h, w)."""
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
    """(B, N, C) -> (B, C, h, w), with h and w from `like`."""
    return tokens.transpose(1, 2).unflatten(2, like.shape[-2:])
