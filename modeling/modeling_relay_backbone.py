"""The backbone of relay tokens: pairs of a local crop and its context -> feature maps of both.

`RelayBackbone(config)` has `channels` and `strides`, and is called as `two_scale.py` describes. Decoders of one map
("one_step", "progressive") get the last: layer-normed for Swin V2, as it is for ViT. Other decoders get a pyramid:
every layer-normed stage of Swin V2, or four depths of ViT, resampled.

Legend: B batch, C channels, S side of a crop.
"""

import torch
from torch import Tensor, nn
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from ..configuration.configuration_relay import RelayConfig
from ..configuration.decoding import SINGLE_MAP_DECODERS
from .attention import Attention
from .plain_vit_pyramid import PlainVitPyramid
from .pretrained import ContextsegPreTrainedModel, as_weights, check_images
from .relay_swinv2 import RelaySwinV2Encoder, RelaySwinV2Sizes
from .relay_vit import RelayVitEncoder, RelayVitSizes
from .swinv2_blocks import SwinV2Sizes
from .two_scale import PairFeatures
from .windows import crop

LEVELS = 4  # of the pyramid of a plain vision transformer


class RelayPreTrainedModel(ContextsegPreTrainedModel):
    """Base class of the models with relay tokens."""

    config: RelayConfig
    _no_split_modules = ["PreNormBlock", "SwinV2Block"]
    _can_record_outputs = {"attentions": OutputRecorder(Attention, index=1)}


class StageNorms(nn.ModuleDict):
    """The layer-normed features of the last stages.

    Args:
        hidden_sizes: Channels of all stages.
        patch: Stride of the first stage.
        count: Number of stages to return.
        layer_norm_eps: Epsilon of the layer norms.
    """

    def __init__(self, hidden_sizes: list[int], patch: int, count: int, layer_norm_eps: float) -> None:
        stages = range(len(hidden_sizes))[-count:]
        super().__init__(
            {f"stage{stage + 1}": nn.LayerNorm(hidden_sizes[stage], eps=layer_norm_eps) for stage in stages}
        )
        self.channels = tuple(hidden_sizes[stage] for stage in stages)
        self.strides = tuple(patch * 2**stage for stage in stages)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """(B, h, w, C) of the patch embedding and of every stage -> (B, h, w, C) of the last stages."""
        return [norm(level) for norm, level in zip(self.values(), features[-len(self) :], strict=True)]


class DepthPyramid(PlainVitPyramid):
    """A pyramid of the features at four depths of a plain vision transformer.

    Args:
        dim: Channels.
        patch: Stride of the features.
        depth: Number of blocks.
    """

    def __init__(self, dim: int, patch: int, depth: int) -> None:
        finest = next(patch // factor for factor in (4, 2, 1) if patch % factor == 0)
        super().__init__((dim,) * LEVELS, patch, [finest * 2**level for level in range(LEVELS)])
        self.depths = [(depth * (level + 1) + LEVELS - 1) // LEVELS for level in range(LEVELS)]

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """(B, h, w, C) of the patch embedding and of every block -> four maps (B, h', w', C), fine to coarse."""
        maps = super().forward([features[depth].movedim(-1, 1) for depth in self.depths])
        return [level.movedim(1, -1) for level in maps]


class LastBlock(nn.Module):
    """The features of the last block, as they are."""

    def __init__(self, dim: int, patch: int) -> None:
        super().__init__()
        self.channels, self.strides = (dim,), (patch,)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """(B, h, w, C) of the patch embedding and of every block -> one (B, h, w, C)."""
        return features[-1:]


def vit_pyramid(config: RelayConfig, is_one_map: bool) -> LastBlock | DepthPyramid:
    """Builds what makes feature maps of the blocks of a plain vision transformer."""
    if is_one_map:
        return LastBlock(config.embed_dim, config.patch_size)
    return DepthPyramid(config.embed_dim, config.patch_size, config.depths[0])


def swinv2_pyramid(config: RelayConfig, is_one_map: bool) -> StageNorms:
    """Builds what makes feature maps of the stages of Swin V2."""
    count = 1 if is_one_map else config.num_layers
    return StageNorms(config.hidden_sizes, config.patch_size, count, config.layer_norm_eps)


def build_vit(config: RelayConfig) -> RelayVitEncoder:
    """Builds the plain encoder."""
    sizes = RelayVitSizes(
        num_channels=config.num_channels,
        patch=config.patch_size,
        crop_size=config.crop_size,
        dim=config.embed_dim,
        num_heads=config.num_heads[0],
        mlp_ratio=config.mlp_ratio,
        drop_path_rates=tuple(config.drop_path_rates(0)),
        layer_norm_eps=config.layer_norm_eps,
        num_relay_tokens=config.num_relay_tokens,
        relay_update=config.relay_update,
        shares_embedding=config.share_patch_embedding,
        shares_blocks=config.share_blocks,
    )
    return RelayVitEncoder(config, sizes)


def build_swinv2(config: RelayConfig) -> RelaySwinV2Encoder:
    """Builds the encoder with stages."""
    pretrained = config.pretrained_window_sizes or (0,) * config.num_layers
    stages = tuple(
        SwinV2Sizes(
            dim=dim,
            num_heads=config.num_heads[stage],
            window=(config.window_size,) * 2,
            mlp_ratio=config.mlp_ratio,
            layer_norm_eps=config.layer_norm_eps,
            pretrained_window=(pretrained[stage],) * 2 if pretrained[stage] else None,
        )
        for stage, dim in enumerate(config.hidden_sizes)
    )
    sizes = RelaySwinV2Sizes(
        num_channels=config.num_channels,
        patch=config.patch_size,
        stages=stages,
        drop_path_rates=tuple(tuple(config.drop_path_rates(stage)) for stage in range(config.num_layers)),
        num_relay_tokens=config.num_relay_tokens,
        relay_update=config.relay_update,
        shares_embedding=config.share_patch_embedding,
    )
    return RelaySwinV2Encoder(config, sizes)


ENCODERS = {"vit": (build_vit, vit_pyramid), "swinv2": (build_swinv2, swinv2_pyramid)}


class RelayBackbone(RelayPreTrainedModel):
    """Encoder of pairs of crops that relay tokens link.

    Args:
        config: Configuration of the encoder; `decoder` decides whether it returns one map or a pyramid.

    Attributes:
        channels: Channels of each feature map, fine to coarse.
        strides: Stride of each feature map in pixels.
    """

    def __init__(self, config: RelayConfig) -> None:
        super().__init__(config)
        build_encoder, build_pyramid = ENCODERS[config.encoder_type]
        self.encoder = build_encoder(config)
        self.pyramid = build_pyramid(config, config.decoder in SINGLE_MAP_DECODERS)
        self.channels, self.strides = self.pyramid.channels, self.pyramid.strides
        self.post_init()

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: Tensor,
        context_values: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> PairFeatures:
        """(B, C, S, S) twice -> `feature_maps` and `context_maps` (B, C_i, S / stride_i, S / stride_i), fine to coarse.

        Args:
            pixel_values: Local crops (B, C, S, S), normalized by the image processor.
            context_values: The area around each, reduced to the same size; 0 outside the image, and everywhere
                by default.
            output_hidden_states: Whether to return the feature maps of the local crops after the patch
                embedding and every stage, or every block of a plain vision transformer.
            output_attentions: Whether to return attention probabilities; needs `attn_implementation="eager"`.

        Raises:
            ValueError: If a shape is wrong, or attentions are requested from another attention
                implementation.
        """
        output_hidden_states, output_attentions = self.asked_outputs(output_hidden_states, output_attentions)
        check_images(self.config, pixel_values, None, output_attentions)
        local_pixels = as_weights(self, pixel_values)
        context_pixels = torch.zeros_like(local_pixels) if context_values is None else context_values
        encoded = self.encoder(local_pixels, as_weights(self, context_pixels))
        states = tuple(features.movedim(-1, 1) for features in encoded.local)
        size = tuple(pixel_values.shape[2:])
        return PairFeatures(
            feature_maps=self.maps_of(encoded.local, size),
            context_maps=self.maps_of(encoded.context, size),
            hidden_states=states if output_hidden_states else None,
        )

    def maps_of(self, features: list[Tensor], size: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Features (B, h, w, C) of one crop of S x S pixels -> its maps, without the part that is only padding."""
        return tuple(
            crop(level, tuple((side + stride - 1) // stride for side in size)).movedim(-1, 1)
            for level, stride in zip(self.pyramid(features), self.strides, strict=True)
        )


__all__ = ["RelayBackbone", "RelayPreTrainedModel"]
