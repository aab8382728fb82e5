"""CSWin (Dong et al., "CSWin Transformer", CVPR 2022): attention in cross-shaped windows in the first three
stages and over the whole grid in the last. `contextseg-convert --source cswin-official` converts the authors'
weights.

Legend: B batch, H, W image height and width, C channels.
"""

from functools import partial

from transformers.utils.output_capturing import OutputRecorder

from ..configuration.configuration_cswin import CswinConfig
from .cross_shaped import CrossShapedAttention, StripeAttention
from .modeling_segmentation import SegmentationModel
from .modeling_staged import StagedBackbone, StagedForImageClassification, StagedModel
from .pretrained import ContextsegPreTrainedModel
from .pyramid_encoder import BlockStage, OverlappingEmbed, PreNormBlock, PyramidEncoder


def build_cswin_stage(config: CswinConfig, stage: int) -> BlockStage:
    """Builds the blocks of one stage."""
    dim, heads, width = config.hidden_sizes[stage], config.num_heads[stage], config.stripe_widths[stage]
    return BlockStage(
        PreNormBlock(
            CrossShapedAttention(config, dim, heads, width, config.stripe_padding == "masked"),
            dim,
            config.mlp_ratio,
            rate,
            config.layer_norm_eps,
        )
        for rate in config.drop_path_rates(stage)
    )


def build_cswin_encoder(config: CswinConfig, num_stages: int) -> PyramidEncoder:
    """Builds the first `num_stages` stages of the encoder."""
    widths = [config.num_channels, *config.hidden_sizes]
    steps = [config.patch_size] + [2] * (num_stages - 1)
    embeds = [
        OverlappingEmbed(
            widths[stage],
            widths[stage + 1],
            (step, step),
            config.layer_norm_eps,
            pads_end=bool(stage) or config.stripe_padding == "masked",
        )
        for stage, step in enumerate(steps)
    ]
    return PyramidEncoder(embeds, [build_cswin_stage(config, stage) for stage in range(num_stages)])


class CswinPreTrainedModel(ContextsegPreTrainedModel):
    """Base class of the CSWin models."""

    config: CswinConfig
    _no_split_modules = ["PreNormBlock"]
    _can_record_outputs = {"attentions": OutputRecorder(StripeAttention, index=1)}


class CswinModel(StagedModel, CswinPreTrainedModel):
    """CSWin encoder with a final layer norm and no head.

    Returns `last_hidden_state` (B, N, C) and its mean over the tokens, `pooler_output` (B, C).

    Args:
        config: Configuration of the encoder.
    """

    def __init__(self, config: CswinConfig) -> None:
        super().__init__(config, build_cswin_encoder(config, config.num_layers))


class CswinBackbone(StagedBackbone, CswinPreTrainedModel):
    """CSWin encoder as a backbone.

    Returns one layer-normed feature map (B, C, H/stride, W/stride) for each stage in `config.out_features`.

    Args:
        config: Configuration of the encoder; `out_features` selects the stages.
    """

    def __init__(self, config: CswinConfig) -> None:
        super().__init__(config, build_cswin_encoder(config, config.num_backbone_stages))


class CswinForImageClassification(StagedForImageClassification, CswinPreTrainedModel):
    """CSWin encoder with a linear classifier on the mean of its tokens.

    Args:
        config: Configuration of the encoder; `num_labels` or `id2label` sets the classes.
    """

    def __init__(self, config: CswinConfig) -> None:
        super().__init__(config, CswinModel(config))


class CswinForSemanticSegmentation(SegmentationModel, CswinPreTrainedModel):
    """CSWin encoder with a decoder, UPerNet by default.

    With `decoder="unet"` the decoder mirrors the stages of the encoder, as Swin-Unet does with Swin.

    Args:
        config: Configuration of encoder, decoder and loss; `num_labels` or `id2label` sets the classes.
    """

    def __init__(self, config: CswinConfig) -> None:
        super().__init__(config, CswinBackbone(config), partial(build_cswin_stage, config))


__all__ = [
    "CswinBackbone",
    "CswinForImageClassification",
    "CswinForSemanticSegmentation",
    "CswinModel",
    "CswinPreTrainedModel",
]
