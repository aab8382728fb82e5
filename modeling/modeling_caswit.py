"""CASWiT (Carreaud et al., "Context-Aware Semantic Segmentation via Stage-Wise Attention", arXiv 2601.11310): two
Swin encoders, of a sharp crop and of its wide context; after every stage, the crop's features attend to the context's.

Built from the abstract; no reference numbers exist. Without the fusion, or with gates of 0, the model is our Swin
with its decoder. `from_swin` loads both encoders from transformers' Swin checkpoints.

Legend: B batch, H, W height and width of the crop, C channels, K labels.
"""

import os
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from torch import Tensor, nn
from transformers.modeling_outputs import BackboneOutput, SemanticSegmenterOutput
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from ..configuration.checked_config import choose
from ..configuration.configuration_caswit import CaswitConfig
from .attention import Attention
from .blocks import Decoded, Encoded
from .cross_scale_fusion import CrossScaleEncoder, CrossScaleFusion
from .decoders import DECODERS
from .label_rows import LabelClassifier
from .modeling_segmentation import SegmentationModel
from .modeling_staged import StagedBackbone, StageNorms, channels_first, pyramid, stage_sizes
from .pretrained import ContextsegPreTrainedModel, as_weights, check_images, library_module
from .swin_stages import SwinEncoder, SwinStage


def build_caswit_stage(config: CaswitConfig, stage: int) -> SwinStage:
    """Builds the blocks of one stage of one encoder."""
    return SwinStage(config, stage_sizes(config, stage))


def build_swin_encoder(config: CaswitConfig, num_stages: int) -> SwinEncoder:
    """Builds the first `num_stages` stages of one encoder."""
    sizes = [stage_sizes(config, stage) for stage in range(num_stages)]
    return SwinEncoder(config, config.num_channels, (config.patch_size,) * 2, sizes)


def build_fusion(config: CaswitConfig, stage: int) -> CrossScaleFusion:
    """Builds the cross-attention after a stage."""
    return CrossScaleFusion(
        config,
        config.hidden_sizes[stage],
        config.num_heads[stage],
        config.gate,
        config.fusion_mlp_ratio,
        config.kv_pooling[stage],
        config.layer_norm_eps,
    )


def build_caswit_encoder(config: CaswitConfig, num_stages: int) -> CrossScaleEncoder:
    """Builds the first `num_stages` stages of both encoders and the fusion of the fused ones."""
    return CrossScaleEncoder(
        build_swin_encoder(config, num_stages),
        None if config.tie_encoders else build_swin_encoder(config, num_stages),
        {stage: build_fusion(config, stage) for stage in config.fused_stages if stage < num_stages},
        config.fusion_feeds_next_stage,
    )


class CaswitPreTrainedModel(ContextsegPreTrainedModel):
    """Base class of the CASWiT models."""

    config: CaswitConfig
    _no_split_modules = ["SwinBlock", "CrossScaleFusion"]
    _can_record_outputs = {"attentions": OutputRecorder(Attention, index=1)}

    @classmethod
    def from_swin(cls, checkpoint: str | os.PathLike, revision: str = "main", **overrides: Any) -> Self:
        """Loads the weights of a Swin or Swin-UPerNet checkpoint of transformers into both encoders.

        The cross-attention, which Swin does not have, is newly initialized; with the default gate, the model computes
        at first what the checkpoint does.

        Args:
            checkpoint: Local folder, or name on the Hub such as "microsoft/swin-base-patch4-window12-384".
            revision: Branch, tag or commit on the Hub.
            **overrides: Configuration fields to set, such as `id2label` or `context_ratio`. All others are taken
                from the checkpoint where it has them.

        Returns:
            The model in evaluation mode.

        Raises:
            ValueError: If the checkpoint is not a Swin or Swin-UPerNet, or its tensors do not fit the model.
            FileNotFoundError: If the checkpoint has no weights.
            ImportError: If contextseg is not installed, in the code of a Hub repository.
        """
        swin = library_module("modeling.swin_checkpoints")
        return swin.model_from_swin(cls, checkpoint, revision, **overrides)


@dataclass
class CaswitBackboneOutput(BackboneOutput):
    """Feature maps of the local crop, and the features (B, h, w, C) of the context if it was encoded."""

    context: Encoded | None = None


class CaswitBackbone(StagedBackbone, CaswitPreTrainedModel):
    """Both encoders as a backbone for the local crop.

    Returns one layer-normed feature map (B, C, H/stride, W/stride) for each stage in `config.out_features`.

    Args:
        config: Configuration of the encoders; `out_features` selects the stages.
    """

    def __init__(self, config: CaswitConfig) -> None:
        super().__init__(config, build_caswit_encoder(config, config.num_backbone_stages))

    def context_features(self, context_values: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) -> feature maps (B, C_i, h, w) of each fused stage, which `forward` takes."""
        check_images(self.config, context_values)
        context = self.encoder.encode_context(as_weights(self, context_values))
        return channels_first(self.encoder.fused_features(context))

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: Tensor,
        context_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        context_features: tuple[Tensor, ...] | None = None,
    ) -> CaswitBackboneOutput:
        """Twice (B, C, H, W) -> `feature_maps` (B, C_i, H / stride_i, W / stride_i), fine to coarse.

        Args:
            pixel_values: Local crops (B, C, H, W), normalized by the image processor.
            context_values: Their contexts (B, C, H, W), see `CaswitConfig`.
            pixel_mask: (B, H, W), 1 for image, 0 for padding; None without padding.
            output_hidden_states: Whether to return the feature maps (B, C, h, w) of the patch embedding and
                of every stage.
            output_attentions: Whether to return attention probabilities; needs `attn_implementation="eager"`.
            context_features: Result of `context_features`, instead of `context_values`.

        Raises:
            ValueError: If a shape is wrong, or attentions are requested from another attention implementation.
        """
        output_hidden_states, output_attentions = self.asked_outputs(output_hidden_states, output_attentions)
        check_images(self.config, pixel_values, pixel_mask, output_attentions)
        context, fused = None, context_features
        if context_features is None:
            check_images(self.config, context_values)
            context = self.encoder.encode_context(as_weights(self, context_values))
            fused = self.encoder.fused_features(context)
        else:
            fused = [feature_map.movedim(1, -1) for feature_map in context_features]
        encoded = self.encoder(as_weights(self, pixel_values), fused, pixel_mask)
        return CaswitBackboneOutput(
            feature_maps=channels_first(self.norms(encoded)),
            hidden_states=channels_first(pyramid(encoded)) if output_hidden_states else None,
            context=context,
        )


class ContextHead(nn.Module):
    """Decoder and classifier of the context branch, of the same kind as the local ones; for the loss only.

    Args:
        config: Configuration of the segmenter.
        backbone: Its backbone, whose `channels` and `strides` are also those of the context's feature maps.
    """

    def __init__(self, config: CaswitConfig, backbone: CaswitBackbone) -> None:
        super().__init__()
        self.norms = StageNorms(config)
        build = choose("decoder", config.decoder, DECODERS)
        self.decoder = build(config, backbone, partial(build_caswit_stage, config))
        self.classifier = LabelClassifier(
            config.decoder_hidden_size, config.num_labels, 1, bias=config.decoder != "unet"
        )

    def forward(self, context: Encoded) -> tuple[Tensor, Decoded]:
        """Features (B, h, w, C) of each stage -> logits (B, K, h, w), output of the decoder."""
        decoded = self.decoder(channels_first(self.norms(context)), None)
        return self.classifier(decoded.feature_map), decoded
