"""CASWiT (Carreaud et al., "Context-Aware Semantic Segmentation via Stage-Wise Attention", arXiv 2601.11310): two
Swin encoders, of a sharp crop and of its wide context; after every stage, the crop's features attend to the context's.

Built from the abstract; no reference numbers exist. Without the fusion, or with gates of 0, the model is our Swin
with its decoder. `from_swin` loads both encoders from transformers' Swin checkpoints.

Legend: B batch, H, W height and width of the crop, C channels, K labels.
"""

import os
from collections.abc import Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from ..configuration.checked_config import choose
from ..configuration.configuration_caswit import CaswitConfig
from .attention import Attention
from .blocks import Encoded
from .cross_scale_fusion import CrossScaleEncoder, CrossScaleFusion
from .decoders import CLASSIFIERS, DECODERS
from .label_rows import LabelClassifier
from .modeling_staged import StagedBackbone, StageNorms, channels_first, pyramid, stage_sizes
from .pretrained import ContextsegPreTrainedModel, as_weights, check_images, library_module
from .swin_stages import SwinEncoder, SwinStage
from .two_scale import PairFeatures, PairScores, TwoScaleSegmentationModel, inside_image, shape_of


def build_caswit_stage(config: CaswitConfig, stage: int) -> SwinStage:
    """Builds the blocks of one stage of one encoder."""
    return SwinStage(config, stage_sizes(config, stage))


def build_swin_encoder(config: CaswitConfig, num_stages: int) -> SwinEncoder:
    """Builds the first `num_stages` stages of one encoder."""
    sizes = [stage_sizes(config, stage) for stage in range(num_stages)]
    return SwinEncoder(config, config.num_channels, config.patch, sizes, config.reductions[: num_stages - 1])


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


def build_caswit_encoder(
    config: CaswitConfig, num_stages: int, fused_stages: Sequence[int]
) -> CrossScaleEncoder:
    """Builds the first `num_stages` stages of both encoders and the fusion of the fused ones."""
    return CrossScaleEncoder(
        build_swin_encoder(config, num_stages),
        None if config.tie_encoders else build_swin_encoder(config, num_stages),
        {stage: build_fusion(config, stage) for stage in fused_stages},
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


class CaswitBackbone(StagedBackbone, CaswitPreTrainedModel):
    """Both encoders as a backbone for the local crop.

    Returns one layer-normed feature map (B, C, H/stride, W/stride) for each stage in `config.out_features`.

    Args:
        config: Configuration of the encoders; `out_features` selects the stages.
    """

    def __init__(self, config: CaswitConfig) -> None:
        super().__init__(
            config, build_caswit_encoder(config, config.num_backbone_stages, config.fused_stages)
        )

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: Tensor,
        context: Tensor | tuple[Tensor, ...],
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> PairFeatures:
        """(B, C, H, W), context -> `feature_maps` (B, C_i, H / stride_i, W / stride_i), fine to coarse.

        Args:
            pixel_values: Local crops (B, C, H, W), normalized by the image processor.
            context: Their contexts, images (B, C, H, W), or features of them, the result of `context_features`.
            output_hidden_states: Whether to return the feature maps (B, C, h, w) of the patch embedding and
                of every stage.
            output_attentions: Whether to return attention probabilities; needs `attn_implementation="eager"`.

        Returns:
            The feature maps, and in `context_maps` the `Encoded` context if it was given as images.

        Raises:
            ValueError: If a shape is wrong, or attentions are requested from another attention implementation.
        """
        output_hidden_states, output_attentions = self.asked_outputs(output_hidden_states, output_attentions)
        check_images(self.config, pixel_values, output_attentions=output_attentions)
        encoded_context = None
        if isinstance(context, Tensor):
            encoded_context = self.encode_context(context)
            context = self.encoder.fused_features(encoded_context)
        else:
            context = [feature_map.movedim(1, -1) for feature_map in context]
        encoded = self.encoder(as_weights(self, pixel_values), context)
        return PairFeatures(
            feature_maps=channels_first(self.norms(encoded)),
            hidden_states=channels_first(pyramid(encoded)) if output_hidden_states else None,
            context_maps=encoded_context,
        )

    def encode_context(self, context_values: Tensor) -> Encoded:
        """(B, C, H, W) -> features (B, h, w, C_i) of each stage of the context."""
        check_images(self.config, context_values)
        return self.encoder.encode_context(as_weights(self, context_values))

    def context_features(self, context_values: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) -> feature maps (B, C_i, h, w) of each fused stage, which `forward` takes as context."""
        return channels_first(self.encoder.fused_features(self.encode_context(context_values)))


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
        if config.decoder in CLASSIFIERS:
            self.classifier = CLASSIFIERS[config.decoder](config, backbone, self.decoder)
        else:
            self.classifier = LabelClassifier(config.decoder_hidden_size, config.num_labels, kernel_size=1)

    def forward(self, context: Encoded) -> Tensor:
        """Features (B, h, w, C_i) of each stage -> logits (B, K, h, w)."""
        return self.classifier(self.decoder(channels_first(self.norms(context))).feature_map)


class CaswitForSemanticSegmentation(TwoScaleSegmentationModel, CaswitPreTrainedModel):
    """CASWiT: local crop and context in two Swin encoders, with a decoder, UPerNet by default.

    Built from the abstract; no reference numbers exist.

    Args:
        config: Configuration of encoders, decoder and loss; `num_labels` or `id2label` sets the classes.
    """

    shares_context = True
    uses_context_labels = True

    def __init__(self, config: CaswitConfig) -> None:
        super().__init__(config, CaswitBackbone(config), build_stage=partial(build_caswit_stage, config))
        self.context_head = ContextHead(config, self.backbone) if config.context_loss_weight else None
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        context_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        labels: Tensor | None = None,
        context_labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        context_features: tuple[Tensor, ...] | None = None,
    ) -> SemanticSegmenterOutput:
        """(B, C, H, W) -> logits (B, K, H / stride, W / stride); with labels, also the loss.

        Args:
            pixel_values: As in `TwoScaleSegmentationModel`, and so are the next four.
            context_values: Context of each local crop.
            pixel_mask: 1 for image, 0 for padding.
            labels: Class ids of the local crops or whole images.
            context_labels: Class ids of the contexts. Without them, the context branch has no loss.
            output_hidden_states: Whether to return the feature maps of every stage of the local branch.
            output_attentions: Whether to return attention probabilities; needs `attn_implementation="eager"`.
            context_features: Result of the method `context_features`, instead of `context_values`. For inference:
                crops that share a context need it only once.

        Raises:
            ValueError: If a shape or label is wrong, or attentions are not available; and if `context_features` are
                not those of this model, or come with labels.
        """
        recorded = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        if context_features is None:
            return super().forward(
                pixel_values, context_values, pixel_mask, labels, context_labels, **recorded, return_dict=True
            )
        if context_values is not None or labels is not None or context_labels is not None:
            raise ValueError(
                "context_features come with context_values or labels. They serve inference, in place of context_values; "
                "pass context_values to compute a loss."
            )
        check_images(self.config, pixel_values, pixel_mask)
        check_context_features(self.config, context_features)
        crops = inside_image(as_weights(self, pixel_values), pixel_mask)
        return self.segment_pairs(crops, tuple(context_features), **recorded)

    def context_features(self, context_values: Tensor) -> tuple[Tensor, ...]:
        """(B, C, s, s) -> feature maps (B, C_i, h_i, w_i) of the context, one for each stage that reads it.

        They do not depend on the local crop, so that several crops can share them: pass them to `forward`.

        Args:
            context_values: Contexts, normalized by the image processor, see `forward`.

        Raises:
            ValueError: If the shape is wrong.
        """
        return self.backbone.context_features(context_values)

    def context_logits(self, context_maps: Encoded) -> Tensor | None:
        """Features (B, h, w, C_i) of each stage of the context -> its logits (B, K, h, w), or None without its head."""
        return None if self.context_head is None else self.context_head(context_maps)

    def context_loss(
        self, scores: PairScores, labels: Tensor, context_labels: Tensor | None
    ) -> Tensor | float:
        """Logits of all pairs, (B, s, s), (B, s, s) or None -> scalar, the weighted loss of the context branch.

        Without labels of the context it is 0, and its head has gradients of 0.
        """
        if scores.context is None:
            return 0.0
        if context_labels is None:
            context_labels = torch.full_like(labels, self.config.semantic_loss_ignore_index)
        return self.config.context_loss_weight * self.label_loss(scores.context, context_labels)


def check_context_features(config: CaswitConfig, context_features: Any) -> None:
    """Raises ValueError unless these are feature maps (B, C_i, h_i, w_i) of every stage that reads the context."""
    channels = [config.hidden_sizes[stage] for stage in config.fused_stages]
    is_sequence = isinstance(context_features, tuple | list)
    found = [shape_of(level) for level in context_features] if is_sequence else shape_of(context_features)
    if not is_sequence or [shape[1:2] for shape in found] != [(count,) for count in channels]:
        raise ValueError(
            f"context_features is {found}, but must be a tuple of feature maps with {channels} channels. Pass what the "
            "method context_features of this model returns."
        )


__all__ = ["CaswitBackbone", "CaswitForSemanticSegmentation", "CaswitPreTrainedModel"]
