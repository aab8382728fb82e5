"""Model, backbone and classifier of families whose configuration is a `StagedConfig`; a family's file builds the encoder.

Legend: B batch, H, W image height and width, C channels, N tokens.
"""

from torch import Tensor, nn
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
)
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from ..configuration.staged import StagedConfig
from .blocks import Encoded
from .pretrained import ContextsegPreTrainedModel, check_images


class StagedModel(ContextsegPreTrainedModel):
    """The encoder with a final layer norm.

    Returns `last_hidden_state` (B, N, C) and its mean `pooler_output` (B, C).
    `output_attentions=True` needs `attn_implementation="eager"` and gives the probabilities of every attention in order of
    execution: (B * stripes or windows, heads, queries, keys), or (B, heads, queries, keys) over the whole grid.
    """

    def __init__(self, config: StagedConfig, encoder: nn.Module) -> None:
        """encoder: all stages, from images (and optional masks) to `Encoded`."""
        super().__init__(config)
        self.encoder = encoder
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


class StagedBackbone(BackboneMixin, ContextsegPreTrainedModel):
    """The encoder as a backbone: one layer-normed feature map (B, C, H/stride, W/stride) for each of `out_features`.

    With `decoder="unet"` the maps are what that decoder joins, of the same sizes: what enters each stage but the last,
    and the layer-normed output of the last.
    """

    def __init__(self, config: StagedConfig, encoder: nn.Module) -> None:
        """encoder: the first `config.num_backbone_stages` stages, from images (and optional masks) to `Encoded`."""
        super().__init__(config)
        self.num_features = [config.hidden_sizes[0], *config.hidden_sizes]
        self.strides = [config.patch_size * 2 ** max(stage - 1, 0) for stage in config.out_stages]
        self.encoder = encoder
        self.norms = nn.ModuleDict(
            {
                name: nn.LayerNorm(channels, eps=config.layer_norm_eps)
                for name, channels in zip(self.out_features, self.channels, strict=True)
                if self.is_normed(name)
            }
        )
        self.post_init()

    def is_normed(self, stage: str) -> bool:
        """Whether a stage of `out_features` has a norm for its feature map."""
        return self.config.decoder != "unet" or stage == self.out_features[-1]

    def feature_maps(self, encoded: Encoded) -> list[Tensor]:
        """What the encoder computed -> the maps (B, H, W, C) of `out_features`."""
        named = dict(zip(self.stage_names, pyramid(encoded), strict=False))
        skips = encoded.inputs[:-1] if self.config.decoder == "unet" else []
        return [*skips, *(norm(named[name]) for name, norm in self.norms.items())]

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
        return BackboneOutput(
            feature_maps=channels_first(self.feature_maps(encoded)),
            hidden_states=channels_first(pyramid(encoded)) if output_hidden_states else None,
        )


class StagedForImageClassification(ContextsegPreTrainedModel):
    """The encoder with a linear classifier on its mean feature; `backbone` is the family's model."""

    def __init__(self, config: StagedConfig, backbone: StagedModel) -> None:
        super().__init__(config)
        self.backbone = backbone
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


def pyramid(encoded: Encoded) -> list[Tensor]:
    """Features (B, H, W, C) of the patch embedding and of each stage."""
    return [encoded.inputs[0], *encoded.outputs]


def channels_first(features: list[Tensor]) -> tuple[Tensor, ...]:
    """Features (B, H, W, C) -> feature maps (B, C, H, W), as views: the decoders' convolutions want this memory order."""
    return tuple(level.movedim(-1, 1) for level in features)
