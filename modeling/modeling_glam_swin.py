"""GLAM-Swin (Themyr et al., "Full Contextual Attention for Multi-resolution Transformers in Semantic
Segmentation", WACV 2023): a Swin transformer whose windows exchange information through global tokens at
every resolution.

With `num_global_tokens=0` it is plain Swin, equal to transformers' `SwinBackbone`. `contextseg-convert`
converts the authors' weights; `from_swin` loads transformers' Swin checkpoints.

With three entries in `patch_size` it takes volumes: all models but the masked one, and of the decoders "unet".

Legend: B batch, H, W image height and width, C channels, K labels, S... axes of an image or volume.
"""

import os
from functools import partial
from typing import Any, Self

from torch import Tensor
from transformers.utils.output_capturing import OutputRecorder

from ..configuration.configuration_glam_swin import GlamSwinConfig
from .attention import Attention
from .blocks import Decoded
from .modeling_segmentation import SegmentationModel
from .modeling_staged import (
    StagedBackbone,
    StagedForImageClassification,
    StagedForMaskedImageModeling,
    StagedModel,
)
from .pretrained import ContextsegPreTrainedModel, library_module
from .swin_stages import StageSizes, SwinEncoder, SwinStage
from .windows import cropped


def all_stage_sizes(config: GlamSwinConfig) -> list[StageSizes]:
    """Returns the sizes of every stage of the encoder."""
    return [
        StageSizes(
            dim=config.hidden_sizes[stage],
            depth=depth,
            num_heads=config.num_heads[stage],
            window=config.stage_window(stage),
            mlp_ratio=config.mlp_ratio,
            drop_path_rates=tuple(config.drop_path_rates(stage)),
            layer_norm_eps=config.layer_norm_eps,
            num_global_tokens=config.num_global_tokens,
            use_global_attention=config.use_global_attention,
            global_position_embedding=config.global_position_embedding,
            global_position_rows=config.position_rows(stage),
            global_block=config.global_block,
            global_clamp=config.global_clamp,
            shifts_windows=config.nominal_grid(stage) is None,
        )
        for stage, depth in enumerate(config.depths)
    ]


def build_glam_swin_stage(config: GlamSwinConfig, stage: int) -> SwinStage:
    """Builds the blocks of one stage, with its own global tokens."""
    return SwinStage(config, all_stage_sizes(config)[stage])


def build_glam_swin_encoder(config: GlamSwinConfig, num_stages: int) -> SwinEncoder:
    """Builds the first `num_stages` stages of the encoder."""
    stages, merges = all_stage_sizes(config)[:num_stages], config.reductions[: num_stages - 1]
    return SwinEncoder(config, config.num_channels, config.patch, stages, merges)


class GlamSwinPreTrainedModel(ContextsegPreTrainedModel):
    """Base class of the GLAM-Swin models."""

    config: GlamSwinConfig
    _no_split_modules = ["SwinBlock"]
    _can_record_outputs = {"attentions": OutputRecorder(Attention, index=1)}

    @classmethod
    def from_swin(cls, checkpoint: str | os.PathLike, revision: str = "main", **overrides: Any) -> Self:
        """Loads the weights of a Swin or Swin-UPerNet checkpoint of transformers.

        Global tokens and their attention, which Swin does not have, are newly initialized.

        Args:
            checkpoint: Local folder, or name on the Hub such as "microsoft/swin-tiny-patch4-window7-224".
            revision: Branch, tag or commit on the Hub.
            **overrides: Configuration fields to set, such as `id2label` or `num_global_tokens`. All others
                are taken from the checkpoint where it has them.

        Returns:
            The model in evaluation mode.

        Raises:
            ValueError: If the checkpoint is not a Swin or Swin-UPerNet, or its tensors do not fit the model.
            FileNotFoundError: If the checkpoint has no weights.
            ImportError: If contextseg is not installed, in the code of a Hub repository.
        """
        swin = library_module("modeling.swin_checkpoints")
        return swin.model_from_swin(cls, checkpoint, revision, **overrides)


class GlamSwinModel(StagedModel, GlamSwinPreTrainedModel):
    """GLAM-Swin encoder with a final layer norm and no head.

    Returns `last_hidden_state` (B, N, C) and its mean over the tokens, `pooler_output` (B, C).

    `output_attentions=True` needs `attn_implementation="eager"` and returns, in order of execution, the
    probabilities of each W-MSA (B * windows, heads, queries, keys; global tokens first) and of each G-MSA (B,
    heads, tokens, tokens).

    Args:
        config: Configuration of the encoder.
        use_mask_vector: Whether it has the learned vector of masked patches, for masked image modeling.
    """

    def __init__(self, config: GlamSwinConfig, use_mask_vector: bool = False) -> None:
        super().__init__(config, build_glam_swin_encoder(config, config.num_layers), use_mask_vector)


class GlamSwinBackbone(StagedBackbone, GlamSwinPreTrainedModel):
    """GLAM-Swin encoder as a backbone.

    Returns one layer-normed feature map (B, C, H/stride, W/stride) for each stage in `config.out_features`.

    Args:
        config: Configuration of the encoder; `out_features` selects the stages.
    """

    def __init__(self, config: GlamSwinConfig) -> None:
        super().__init__(config, build_glam_swin_encoder(config, config.num_backbone_stages))


class GlamSwinForImageClassification(StagedForImageClassification, GlamSwinPreTrainedModel):
    """GLAM-Swin encoder with a linear classifier on the mean of its tokens.

    Args:
        config: Configuration of the encoder; `num_labels` or `id2label` sets the classes.
    """

    def __init__(self, config: GlamSwinConfig) -> None:
        super().__init__(config, GlamSwinModel(config))


class GlamSwinForMaskedImageModeling(StagedForMaskedImageModeling, GlamSwinPreTrainedModel):
    """GLAM-Swin encoder that learns from images alone, by predicting masked pixels (SimMIM).

    Args:
        config: Configuration of the encoder; those of decoder and loss are kept for the segmenter.
    """

    def __init__(self, config: GlamSwinConfig) -> None:
        super().__init__(config, GlamSwinModel(config, use_mask_vector=True))


class GlamSwinForSemanticSegmentation(SegmentationModel, GlamSwinPreTrainedModel):
    """GLAM-Swin encoder with a decoder, UPerNet by default: GLAM-Swin-UPerNet in Table 1 of the paper.

    With `decoder="unet"` it is GLAM-Swin-Unet, or Swin-Unet if there are no global tokens. Volumes (B, C, D, H, W) give
    logits (B, K, D, H, W).

    Args:
        config: Configuration of encoder, decoder and loss; `num_labels` or `id2label` sets the classes.
    """

    def __init__(self, config: GlamSwinConfig) -> None:
        super().__init__(config, GlamSwinBackbone(config), partial(build_glam_swin_stage, config))

    def logits_of(self, decoded: Decoded, pixel_values: Tensor) -> Tensor:
        """Decoded features, (B, C, S...) -> logits, those of volumes without the padding to whole patches."""
        logits = super().logits_of(decoded, pixel_values)
        if self.config.num_axes == 2:
            return logits
        return cropped(logits, tuple(pixel_values.shape[2:]))


__all__ = [
    "GlamSwinBackbone",
    "GlamSwinForImageClassification",
    "GlamSwinForMaskedImageModeling",
    "GlamSwinForSemanticSegmentation",
    "GlamSwinModel",
    "GlamSwinPreTrainedModel",
]
