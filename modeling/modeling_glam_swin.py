"""GLAM-Swin (Themyr et al., "Full Contextual Attention for Multi-resolution Transformers in Semantic Segmentation",
WACV 2023): a Swin transformer whose windows exchange information through global tokens at every resolution.

With `num_global_tokens=0` it is plain Swin, equal to transformers' `SwinBackbone`. The authors' weights and
transformers' Swin checkpoints are converted by `contextseg-convert` and `from_swin`.

Legend: B batch, H, W image height and width, C channels.
"""

import os
from typing import Any, Self

from torch import Tensor, nn
from transformers.utils.output_capturing import OutputRecorder

from ..configuration.configuration_glam_swin import GlamSwinConfig
from ..configuration.options import choose
from .attention import Attention
from .blocks import Decoded
from .decoder_unet import UnetDecoder
from .modeling_segmentation import DECODERS, SegmentationModel
from .modeling_staged import (
    StagedBackbone,
    StagedForImageClassification,
    StagedModel,
    StagedPreTrainedModel,
)
from .nonlocal_upsampling import UpsamplingSizes
from .swin_checkpoints import model_from_swin
from .swin_stages import Encoded, StageSizes, SwinEncoder


def stage_sizes(config: GlamSwinConfig) -> list[StageSizes]:
    """The numbers of each of the encoder's stages."""
    return [
        StageSizes(
            dim=config.hidden_sizes[stage],
            depth=depth,
            num_heads=config.num_heads[stage],
            window=(config.stage_window(stage),) * 2,
            mlp_ratio=config.mlp_ratio,
            drop_path_rates=tuple(config.drop_path_rates(stage)),
            layer_norm_eps=config.layer_norm_eps,
            num_global_tokens=config.num_global_tokens,
            use_global_attention=config.use_global_attention,
            global_position_embedding=config.global_position_embedding,
            global_position_rows=config.position_rows(stage),
            shifts_windows=config.nominal_grid(stage) is None,
        )
        for stage, depth in enumerate(config.depths)
    ]


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


class GlamSwinPreTrainedModel(StagedPreTrainedModel):
    """Base of the GLAM-Swin models."""

    config: GlamSwinConfig
    _no_split_modules = ["SwinBlock"]
    _can_record_outputs = {"attentions": OutputRecorder(Attention, index=1)}

    def build_encoder(self, num_stages: int) -> SwinEncoder:
        """The first stages of the encoder that the configuration describes."""
        config = self.config
        patch = (config.patch_size,) * 2
        return SwinEncoder(config, config.num_channels, patch, stage_sizes(config)[:num_stages])

    @classmethod
    def from_swin(cls, checkpoint: str | os.PathLike, revision: str = "main", **overrides: Any) -> Self:
        """A model with the weights of transformers' Swin or Swin-UPerNet, and new global tokens.

        checkpoint: folder, or name on the Hub such as "microsoft/swin-tiny-patch4-window7-224".
        revision: branch, tag or commit on the Hub.
        overrides: fields of the configuration, such as `id2label`; sizes are the checkpoint's.
        """
        return model_from_swin(cls, checkpoint, revision, **overrides)


class GlamSwinModel(StagedModel, GlamSwinPreTrainedModel):
    """The encoder with a final layer norm: `last_hidden_state` (B, N, C) and its mean `pooler_output` (B, C).

    `output_attentions=True` needs `attn_implementation="eager"` and gives, in order of execution, the probabilities of
    each W-MSA (B * windows, heads, queries, keys; global tokens first) and of each G-MSA (B, heads, tokens, tokens).
    """


class GlamSwinBackbone(StagedBackbone, GlamSwinPreTrainedModel):
    """The encoder as a backbone: one layer-normed feature map (B, C, H/stride, W/stride) for each of `out_features`.

    With `decoder="unet"` the maps are what that decoder joins, of the same sizes: what enters each stage but the last,
    and the layer-normed output of the last.
    """

    def is_normed(self, stage: str) -> bool:
        """Whether a stage of `out_features` has a norm for its feature map."""
        return self.config.decoder != "unet" or stage == self.out_features[-1]

    def feature_maps(self, encoded: Encoded) -> list[Tensor]:
        """What the encoder computed -> the maps (B, H, W, C) of `out_features`."""
        skips = encoded.inputs[:-1] if self.config.decoder == "unet" else []
        return [*skips, *super().feature_maps(encoded)]


class GlamSwinForImageClassification(StagedForImageClassification, GlamSwinPreTrainedModel):
    """The encoder with a linear classifier on its mean feature."""

    def __init__(self, config: GlamSwinConfig) -> None:
        super().__init__(config)
        self.build_classifier(GlamSwinModel(config))
        self.post_init()


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


__all__ = [
    "GlamSwinBackbone",
    "GlamSwinForImageClassification",
    "GlamSwinForSemanticSegmentation",
    "GlamSwinModel",
    "GlamSwinPreTrainedModel",
]
