"""SegDeformer (Shi et al., "A Transformer-Based Decoder for Semantic Segmentation with Multi-level Context
Mining", ECCV 2022).

A neck fuses the backbone's feature maps; then every position attends to the rest of the image (internal
context) and to tokens of the classes (external context). The default follows the authors' code, which differs
from the paper: projections are 1x1 convolutions with batch normalization and ReLU, attention has an output
projection, and information tokens are not projected. With the neck "linear", the paper's equations are
implemented literally.

Legend: B batch, C channels, K classes, h, w height and width of the finest feature map.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedConfig

from ..configuration.checked_config import choose
from .blocks import Decoded
from .context_mining import ExternalMining, InternalAttention, InternalMining, external_attention
from .decoder_semantic_fpn import SemanticFpnDecoder
from .decoder_upernet import UperNetDecoder
from .external_tokens import EXTERNAL_TOKENS
from .patches import patches_with_image
from .projections import project_jointly
from .pyramid_fusion import ConvFusion, LinearFusion, SegformerFusion, as_features, as_map

# Constructors by name, from the channels of the feature maps and of the decoder, and the depth where it varies.
NECKS: dict[str, Callable[[Sequence[int], int, int], nn.Module]] = {
    "conv": ConvFusion,
    "linear": lambda channels, dim, _: LinearFusion(channels, dim),
    "segformer": SegformerFusion,
    "semantic_fpn": lambda channels, dim, _: SemanticFpnDecoder(channels, dim, dropout=0.0),
    "upernet": lambda channels, dim, _: UperNetDecoder(channels, dim, dropout=0.0),
}


class ContextMining(NamedTuple):
    """Structure of the decoder; the defaults are the authors' model."""

    neck: str = "conv"  # a key of NECKS; "linear" also selects the paper's form of attention
    neck_depth: int = 2  # of "conv" and "segformer", Table 8
    reduction_ratio: int = 1  # R: one key and value per R x R positions, section 3.4
    num_heads: int = 1  # of internal attention, Table 4; external attention has one
    internal_depth: int = 1  # Table 4
    internal_mlp: bool = False  # Table 4
    use_internal: bool = True  # Table 6
    use_external: bool = True  # Table 6
    decouple_tokens: bool = True  # eq. 10; momentum tokens are always shared
    use_external_attention: bool = True  # False adds X_mid instead of Y_exter, Table 5
    external_tokens: str = "learned"  # or "momentum", Table 5


class SegDeformerDecoder(nn.Module):
    """The SegDeformer decoder: fuses feature maps of any number of scales at the finest resolution.

    Args:
        config: Read only for its attention implementation.
        in_channels: Channels of the feature maps, fine to coarse.
        hidden_size: Channels C of the decoder.
        num_labels: Number of classes K.
        mining: Structure of the context mining.
        dropout: Channel dropout rate of the output.

    Raises:
        ValueError: If `mining` names an unknown neck or kind of tokens, or its numbers do not fit
            `hidden_size`.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        in_channels: Sequence[int],
        hidden_size: int,
        num_labels: int,
        mining: ContextMining = ContextMining(),  # noqa: B008 - immutable
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_mining(mining, hidden_size)
        self.neck = choose("neck", mining.neck, NECKS)(in_channels, hidden_size, mining.neck_depth)
        self.internal = internal_mining(config, hidden_size, mining) if mining.use_internal else None
        self.external = None
        if mining.use_external:
            self.external = external_mining(config, hidden_size, num_labels, mining)
        self.has_momentum_tokens = mining.use_external and mining.external_tokens == "momentum"
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, feature_maps: Sequence[Tensor], pixel_mask: Tensor | None = None) -> Decoded:
        """Maps (B, C_i, h_i, w_i), fine to coarse -> map (B, C, h, w), mid-level scores (B, K, h, w).

        Args:
            feature_maps: Feature maps of the backbone, fine to coarse.
            pixel_mask: Optional padding mask (B, H, W), 1 for image and 0 for padding.
        """
        fused = self.neck(feature_maps).feature_map  # X_inter
        features = as_features(fused)
        padding_mask = patches_with_image(pixel_mask, features)
        for_internal, for_external = self.project(features)
        summed, internal_probabilities = self.mine_internal(features, for_internal, padding_mask)  # + Y_inter
        summed, mid_logits, external_probabilities = self.mine_external(
            features, summed, for_external, padding_mask
        )  # + Y_exter
        probabilities = (*internal_probabilities, external_probabilities)
        return Decoded(
            self.dropout(as_map(summed)),
            mid_logits=mid_logits,
            internal_map=fused if self.has_momentum_tokens else None,
            attentions=tuple(matrix for matrix in probabilities if matrix is not None),
        )

    def project(self, features: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """X_inter (B, h, w, C) -> its projections (B, h, w, C') for both kinds of mining."""
        internal = [] if self.internal is None else self.internal.maps()
        external = [] if self.external is None else self.external.maps()
        if not internal and not external:
            return [], []
        projected = project_jointly(features, [*internal, *external])
        return projected[: len(internal)], projected[len(internal) :]

    def mine_internal(
        self, features: Tensor, projected: Sequence[Tensor], padding_mask: Tensor | None
    ) -> tuple[Tensor, list[Tensor | None]]:
        """(B, h, w, C) -> X_inter + Y_inter (B, h, w, C), probabilities."""
        return (features, []) if self.internal is None else self.internal(features, projected, padding_mask)

    def mine_external(
        self, features: Tensor, summed: Tensor, projected: Sequence[Tensor], padding_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """X_inter, the sum (B, h, w, C) -> the sum with Y_exter, Attn_mid (B, K, h, w), probabilities."""
        if self.external is None:
            return summed, None, None
        attended, scores, probabilities = self.external(features, projected, padding_mask)
        return summed + attended, as_map(scores), probabilities

    def update_tokens(self, feature_map: Tensor, labels: Tensor, ignore_index: int) -> None:
        """Updates the momentum tokens from `Decoded.internal_map` (B, C, h, w) and labels (B, H, W)."""
        self.external.tokens.update(feature_map, labels, ignore_index)


def check_mining(mining: ContextMining, hidden_size: int) -> None:
    """Raises ValueError for numbers with which the decoder cannot be built."""
    if hidden_size % mining.num_heads:
        raise ValueError(
            f"num_heads={mining.num_heads} does not divide the decoder's width {hidden_size}. Choose a divisor."
        )
    for name in ("reduction_ratio", "internal_depth"):
        if getattr(mining, name) < 1:
            raise ValueError(f"{name}={getattr(mining, name)}; 1 or more is required.")


def internal_mining(config: PreTrainedConfig, dim: int, mining: ContextMining) -> InternalMining:
    """Builds internal context mining with this structure."""

    def make_attention() -> InternalAttention:
        return InternalAttention(
            config, dim, mining.neck != "linear", mining.num_heads, mining.reduction_ratio
        )

    return InternalMining(make_attention, dim, mining.internal_depth, mining.internal_mlp)


def external_mining(
    config: PreTrainedConfig, dim: int, num_labels: int, mining: ContextMining
) -> ExternalMining:
    """Builds external context mining with this structure."""
    use_batch_norm = mining.neck != "linear"
    make_tokens = choose("kind of external tokens", mining.external_tokens, EXTERNAL_TOKENS)
    attention = None
    if mining.use_external_attention:
        attention = external_attention(config, dim, use_batch_norm, mining.reduction_ratio, num_labels)
    tokens = make_tokens(num_labels, dim, mining.decouple_tokens)
    return ExternalMining(tokens, dim, use_batch_norm, attention)
