"""GLAM-Swin (Themyr et al., "Full Contextual Attention for Multi-resolution Transformers in Semantic Segmentation",
WACV 2023): a Swin transformer whose windows exchange information through global tokens at every resolution.

With `num_global_tokens=0` it is plain Swin, equal to transformers' `SwinBackbone`. The authors' weights and
transformers' Swin checkpoints are converted by `contextseg-convert` and `from_swin`.

Legend: B batch, H, W image height and width, C channels.
"""

import os
from functools import partial
from typing import Any, Self

from transformers.utils.output_capturing import OutputRecorder

from ..configuration.configuration_glam_swin import GlamSwinConfig
from .attention import Attention
from .modeling_segmentation import SegmentationModel
from .modeling_staged import StagedBackbone, StagedForImageClassification, StagedModel
from .pretrained import ContextsegPreTrainedModel, library_module
from .swin_stages import StageSizes, SwinEncoder, SwinStage


def all_stage_sizes(config: GlamSwinConfig) -> list[StageSizes]:
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


def build_glam_swin_stage(config: GlamSwinConfig, stage: int) -> SwinStage:
    """The blocks of one stage, with global tokens of their own."""
    return SwinStage(config, all_stage_sizes(config)[stage])


def build_glam_swin_encoder(config: GlamSwinConfig, num_stages: int) -> SwinEncoder:
    """The first stages of the encoder that the configuration describes."""
    patch = (config.patch_size,) * 2
    return SwinEncoder(config, config.num_channels, patch, all_stage_sizes(config)[:num_stages])


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
        swin = library_module("modeling.swin_checkpoints")
        return swin.model_from_swin(cls, checkpoint, revision, **overrides)


class GlamSwinModel(StagedModel, GlamSwinPreTrainedModel):
    """The encoder with a final layer norm: `last_hidden_state` (B, N, C) and its mean `pooler_output` (B, C).

    `output_attentions=True` needs `attn_implementation="eager"` and gives, in order of execution, the probabilities of
    each W-MSA (B * windows, heads, queries, keys; global tokens first) and of each G-MSA (B, heads, tokens, tokens).
    """

    def __init__(self, config: GlamSwinConfig) -> None:
        super().__init__(config, build_glam_swin_encoder(config, config.num_layers))


class GlamSwinBackbone(StagedBackbone, GlamSwinPreTrainedModel):
    """The encoder as a backbone: one layer-normed feature map (B, C, H/stride, W/stride) for each of `out_features`."""

    def __init__(self, config: GlamSwinConfig) -> None:
        super().__init__(config, build_glam_swin_encoder(config, config.num_backbone_stages))


class GlamSwinForImageClassification(StagedForImageClassification, GlamSwinPreTrainedModel):
    """The encoder with a linear classifier on its mean feature."""

    def __init__(self, config: GlamSwinConfig) -> None:
        super().__init__(config, GlamSwinModel(config))


class GlamSwinForSemanticSegmentation(SegmentationModel, GlamSwinPreTrainedModel):
    """GLAM-Swin with a decoder, by default UPerNet: GLAM-Swin-UPerNet of the paper's Table 1.

    With `decoder="unet"` it is GLAM-Swin-Unet, and Swin-Unet without global tokens.
    """

    def __init__(self, config: GlamSwinConfig) -> None:
        super().__init__(config, GlamSwinBackbone(config), partial(build_glam_swin_stage, config))


__all__ = [
    "GlamSwinBackbone",
    "GlamSwinForImageClassification",
    "GlamSwinForSemanticSegmentation",
    "GlamSwinModel",
    "GlamSwinPreTrainedModel",
]
