"""CSWin (Dong et al., "CSWin Transformer", CVPR 2022): attention in cross-shaped windows at three resolutions, over the
whole grid at the last. The authors' weights are converted by `contextseg-convert --source cswin-official`.

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
    """The blocks of one stage."""
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
    """The first stages of the encoder that the configuration describes."""
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
    """Base of the CSWin models."""

    config: CswinConfig
    _no_split_modules = ["PreNormBlock"]
    _can_record_outputs = {"attentions": OutputRecorder(StripeAttention, index=1)}


class CswinModel(StagedModel, CswinPreTrainedModel):
    """The encoder with a final layer norm: `last_hidden_state` (B, N, C) and its mean `pooler_output` (B, C)."""

    def __init__(self, config: CswinConfig) -> None:
        super().__init__(config, build_cswin_encoder(config, config.num_layers))


class CswinBackbone(StagedBackbone, CswinPreTrainedModel):
    """The encoder as a backbone: one layer-normed feature map (B, C, H/stride, W/stride) for each of `out_features`."""

    def __init__(self, config: CswinConfig) -> None:
        super().__init__(config, build_cswin_encoder(config, config.num_backbone_stages))


class CswinForImageClassification(StagedForImageClassification, CswinPreTrainedModel):
    """The encoder with a linear classifier on its mean feature."""

    def __init__(self, config: CswinConfig) -> None:
        super().__init__(config, CswinModel(config))


class CswinForSemanticSegmentation(SegmentationModel, CswinPreTrainedModel):
    """CSWin with a decoder, by default UPerNet. `decoder="unet"` mirrors its stages as Swin-Unet does Swin's."""

    def __init__(self, config: CswinConfig) -> None:
        super().__init__(config, CswinBackbone(config), partial(build_cswin_stage, config))


__all__ = [
    "CswinBackbone",
    "CswinForImageClassification",
    "CswinForSemanticSegmentation",
    "CswinModel",
    "CswinPreTrainedModel",
]
