"""GLAM-Swin (Themyr et al., "Full Contextual Attention for Multi-resolution Transformers in Semantic Segmentation",
WACV 2023): a Swin transformer whose windows exchange information through global tokens at every resolution.

With `num_global_tokens=0` it is plain Swin, equal to transformers' `SwinBackbone`. The authors' weights and
transformers' Swin checkpoints are converted by `contextseg-convert` and `from_swin`.

Legend: B batch, H, W image height and width, C channels.
"""

import os
from typing import Any, Self

from torch import Tensor, nn
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
)
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from ..configuration.configuration_glam_swin import GlamSwinConfig
from ..configuration.options import choose
from .attention import Attention
from .blocks import Decoded
from .decoder_unet import UnetDecoder
from .modeling_segmentation import DECODERS, SegmentationModel
from .nonlocal_upsampling import UpsamplingSizes
from .pretrained import ContextsegPreTrainedModel, check_images
from .swin_checkpoints import model_from_swin
from .swin_stages import Encoded, StageSizes, SwinEncoder


def stage_sizes(config: GlamSwinConfig) -> list[StageSizes]:
    """The numbers of each of the encoder's stages."""
    blocks = sum(config.depths)
    rates = [config.drop_path_rate * index / max(blocks - 1, 1) for index in range(blocks)]
    stages = []
    for stage, depth in enumerate(config.depths):
        first = sum(config.depths[:stage])
        stages.append(
            StageSizes(
                dim=config.embed_dim * 2**stage,
                depth=depth,
                num_heads=config.num_heads[stage],
                window=(config.stage_window(stage),) * 2,
                mlp_ratio=config.mlp_ratio,
                drop_path_rates=tuple(rates[first : first + depth]),
                layer_norm_eps=config.layer_norm_eps,
                num_global_tokens=config.num_global_tokens,
                use_global_attention=config.use_global_attention,
                global_position_embedding=config.global_position_embedding,
                global_position_rows=config.position_rows(stage),
                shifts_windows=config.nominal_grid(stage) is None,
            )
        )
    return stages


def build_encoder(config: GlamSwinConfig, num_stages: int) -> SwinEncoder:
    """The first stages of the encoder that a configuration describes."""
    return SwinEncoder(
        config, config.num_channels, (config.patch_size,) * 2, stage_sizes(config)[:num_stages]
    )


def build_unet(config: GlamSwinConfig, channels: tuple[int, ...]) -> UnetDecoder:
    """The encoder's mirror image, from feature maps of these widths; its bottleneck is not repeated."""
    config.validate_unet()  # once more: `from_pretrained` changes fields of a configuration that was checked before
    stages = stage_sizes(config)[-2::-1]
    upsampling_sizes = [
        UpsamplingSizes(
            dim=dim,
            num_heads=stage.num_heads,
            window=stage.window,
            mlp_ratio=stage.mlp_ratio,
            drop_path_rate=stage.drop_path_rates[0],
            layer_norm_eps=stage.layer_norm_eps,
            bias=config.nonlocal_bias,
            shortcut=config.nonlocal_shortcut,
        )
        for dim, stage in zip(channels[:0:-1], stages, strict=True)
    ]
    return UnetDecoder(config, config.upsampling, upsampling_sizes, stages, (config.patch_size,) * 2)


class GlamSwinPreTrainedModel(ContextsegPreTrainedModel):
    """Base of the GLAM-Swin models."""

    config: GlamSwinConfig
    _no_split_modules = ["SwinBlock"]
    _can_record_outputs = {"attentions": OutputRecorder(Attention, index=1)}

    @classmethod
    def from_swin(cls, checkpoint: str | os.PathLike, revision: str = "main", **overrides: Any) -> Self:
        """A model with the weights of transformers' Swin or Swin-UPerNet, and new global tokens.

        checkpoint: folder, or name on the Hub such as "microsoft/swin-tiny-patch4-window7-224".
        revision: branch, tag or commit on the Hub.
        overrides: fields of the configuration, such as `id2label`; sizes are the checkpoint's.
        """
        return model_from_swin(cls, checkpoint, revision, **overrides)


class GlamSwinModel(GlamSwinPreTrainedModel):
    """The encoder with a final layer norm.

    Returns `last_hidden_state` (B, H/32 * W/32, C) and its mean `pooler_output` (B, C) for four stages.
    `output_attentions=True` needs `attn_implementation="eager"` and gives, in order of execution, the probabilities of
    each W-MSA (B * windows, heads, queries, keys; global tokens first) and of each G-MSA (B, heads, tokens, tokens).
    """

    def __init__(self, config: GlamSwinConfig) -> None:
        super().__init__(config)
        self.encoder = build_encoder(config, len(config.depths))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @can_return_tuple
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """(B, C, H, W), optional (B, H, W) one where there is image -> features of the last stage."""
        check_images(self.config, pixel_values, pixel_mask, output_attentions)
        encoded = self.encoder(pixel_values, pixel_mask)
        features = self.norm(encoded.outputs[-1]).flatten(1, 2)
        return BaseModelOutputWithPooling(
            last_hidden_state=features,
            pooler_output=features.mean(dim=1),
            hidden_states=channels_first(pyramid(encoded)) if output_hidden_states else None,
        )


class GlamSwinBackbone(BackboneMixin, GlamSwinPreTrainedModel):
    """The encoder as a backbone: one layer-normed feature map (B, C, H/stride, W/stride) for each of `out_features`.

    With `decoder="unet"` the maps are what that decoder joins, of the same sizes: what enters each stage but the last,
    and the layer-normed output of the last.
    """

    def __init__(self, config: GlamSwinConfig) -> None:
        super().__init__(config)
        widths = [config.embed_dim * 2**stage for stage in range(len(config.depths))]
        self.num_features = [config.embed_dim, *widths]
        self.encoder = build_encoder(config, max(max(self.out_indices), 1))
        normed = slice(-1, None) if config.decoder == "unet" else slice(None)
        self.norms = nn.ModuleDict(
            {
                name: nn.LayerNorm(channels, eps=config.layer_norm_eps)
                for name, channels in zip(self.out_features[normed], self.channels[normed], strict=True)
            }
        )
        self.post_init()

    @can_return_tuple
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BackboneOutput:
        """(B, C, H, W), optional (B, H, W) one where there is image -> feature maps, fine to coarse."""
        check_images(self.config, pixel_values, pixel_mask, output_attentions)
        encoded = self.encoder(pixel_values, pixel_mask)
        named = dict(zip(self.stage_names, pyramid(encoded), strict=False))
        skips = encoded.inputs[:-1] if self.config.decoder == "unet" else []
        normed = [norm(named[name]) for name, norm in self.norms.items()]
        return BackboneOutput(
            feature_maps=channels_first([*skips, *normed]),
            hidden_states=channels_first(pyramid(encoded)) if output_hidden_states else None,
        )


class GlamSwinForImageClassification(GlamSwinPreTrainedModel):
    """The encoder with a linear classifier on its mean feature."""

    def __init__(self, config: GlamSwinConfig) -> None:
        super().__init__(config)
        self.backbone = GlamSwinModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> ImageClassifierOutput:
        """(B, C, H, W), optional labels (B,) -> logits (B, num_labels)."""
        outputs = self.backbone(
            pixel_values, output_hidden_states=output_hidden_states, output_attentions=output_attentions
        )
        logits = self.classifier(outputs.pooler_output)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class GlamSwinForSemanticSegmentation(SegmentationModel, GlamSwinPreTrainedModel):
    """GLAM-Swin with a decoder, by default UPerNet: GLAM-Swin-UPerNet of the paper's Table 1.

    With `decoder="unet"` it is GLAM-Swin-Unet, and Swin-Unet without global tokens. Its logits have a cell for each
    pixel of the image padded to whole patches, and `output_attentions` returns those of the encoder.
    """

    def __init__(self, config: GlamSwinConfig) -> None:
        super().__init__(config)
        self.backbone = GlamSwinBackbone(config)
        self.build_heads(self.backbone.channels)
        if config.decoder == "unet":  # the authors' classifier
            self.classifier = nn.Conv2d(config.embed_dim, config.num_labels, kernel_size=1, bias=False)
        self.post_init()

    def build_decoder(self, channels: tuple[int, ...]) -> nn.Module:
        """The decoder that the configuration names, from feature maps (B, C_i, h_i, w_i) to `Decoded`."""
        return choose("decoder", self.config.decoder, {**DECODERS, "unet": build_unet})(self.config, channels)

    def decode(self, feature_maps: tuple[Tensor, ...], pixel_mask: Tensor | None) -> Decoded:
        """Maps (B, C_i, h_i, w_i), fine to coarse, optional (B, H, W) one where there is image -> `Decoded`."""
        if self.config.decoder == "unet":  # whose global tokens have to know about padding
            return self.decoder(feature_maps, pixel_mask)
        return super().decode(feature_maps, pixel_mask)


def pyramid(encoded: Encoded) -> list[Tensor]:
    """Features (B, H, W, C) of the patch embedding and of each stage."""
    return [encoded.inputs[0], *encoded.outputs]


def channels_first(features: list[Tensor]) -> tuple[Tensor, ...]:
    """Features (B, H, W, C) -> feature maps (B, C, H, W), as views: the decoders' convolutions want this memory order."""
    return tuple(level.movedim(-1, 1) for level in features)


__all__ = [
    "GlamSwinBackbone",
    "GlamSwinForImageClassification",
    "GlamSwinForSemanticSegmentation",
    "GlamSwinModel",
    "GlamSwinPreTrainedModel",
]
