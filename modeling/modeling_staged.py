"""Model, backbone, classifier and segmenter of families whose configuration is a `StagedConfig`.

A family's base class says how its encoder and a stage of it are built; everything else is here.

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

from ..configuration.options import choose
from ..configuration.staged import StagedConfig
from .decoder_unet import UnetDecoder, UnetStep
from .decoders import DECODERS
from .modeling_segmentation import SegmentationModel
from .nonlocal_upsampling import UPSAMPLINGS, UpsamplingSizes
from .pretrained import ContextsegPreTrainedModel, check_images
from .swin_stages import Encoded


class StagedPreTrainedModel(ContextsegPreTrainedModel):
    """Base of these families; a family names its own configuration class."""

    def build_encoder(self, num_stages: int) -> nn.Module:
        """The first stages of the encoder that the configuration describes, from images to `Encoded`."""
        raise NotImplementedError

    def build_stage(self, stage: int) -> nn.Module:
        """The blocks of one stage, from features (B, H, W, C) and an optional mask (B, H, W) to features (B, H, W, C)."""
        raise NotImplementedError


class StagedModel(StagedPreTrainedModel):
    """The encoder with a final layer norm.

    Returns `last_hidden_state` (B, N, C) and its mean `pooler_output` (B, C).
    `output_attentions=True` needs `attn_implementation="eager"` and gives the probabilities of every attention in order of
    execution: (B * stripes or windows, heads, queries, keys), or (B, heads, queries, keys) over the whole grid.
    """

    def __init__(self, config: StagedConfig) -> None:
        super().__init__(config)
        self.encoder = self.build_encoder(len(config.depths))
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


class StagedBackbone(BackboneMixin, StagedPreTrainedModel):
    """The encoder as a backbone: one layer-normed feature map (B, C, H/stride, W/stride) for each of `out_features`.

    With `decoder="unet"` the maps are what that decoder joins, of the same sizes: what enters each stage but the last,
    and the layer-normed output of the last.
    """

    def __init__(self, config: StagedConfig) -> None:
        super().__init__(config)
        self.num_features = [config.hidden_sizes[0], *config.hidden_sizes]
        self.encoder = self.build_encoder(max(max(self.out_indices), 1))
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


class StagedForImageClassification(StagedPreTrainedModel):
    """The encoder with a linear classifier on its mean feature; `backbone` is the family's model."""

    backbone: StagedModel

    def build_classifier(self, backbone: StagedModel) -> None:
        """Takes the encoder, and adds the classifier."""
        self.backbone = backbone
        self.classifier = nn.Linear(self.config.hidden_size, self.config.num_labels)

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


class StagedForSemanticSegmentation(SegmentationModel, StagedPreTrainedModel):
    """A segmenter that besides all other decoders knows "unet", the encoder's mirror image.

    The logits of "unet" have a cell for each pixel of the image padded to whole patches, and `output_attentions` returns
    those of the encoder.
    """

    def build_segmenter(self, backbone: StagedBackbone) -> None:
        """Takes the encoder, and adds decoder and heads."""
        config = self.config
        self.backbone = backbone
        self.build_heads(backbone.channels)
        if config.decoder == "unet":  # Swin-Unet's classifier has no bias
            self.classifier = nn.Conv2d(
                config.decoder_hidden_size, config.num_labels, kernel_size=1, bias=False
            )

    def build_decoder(self, channels: tuple[int, ...]) -> nn.Module:
        """The decoder that the configuration names, from feature maps (B, C_i, h_i, w_i) to `Decoded`."""
        decoders = {**DECODERS, "unet": lambda *_: self.build_unet()}
        return choose("decoder", self.config.decoder, decoders)(self.config, channels)

    def build_unet(self) -> UnetDecoder:
        """The encoder's mirror image; its bottleneck is not repeated."""
        config = self.config
        config.validate_unet()  # once more: `from_pretrained` changes fields of a configuration that was checked before
        upsample = choose("upsampling", config.upsampling, UPSAMPLINGS)
        steps = [
            UnetStep(
                upsample(config, self.upsampling_sizes(stage)),
                config.hidden_sizes[stage],
                self.build_stage(stage),
            )
            for stage in reversed(range(config.num_layers - 1))
        ]
        return UnetDecoder(steps, config.hidden_sizes[0], (config.patch_size,) * 2, config.layer_norm_eps)

    def upsampling_sizes(self, stage: int) -> UpsamplingSizes:
        """The numbers of the step up to a stage; it has the heads of the coarser stage, and drops paths like the finer."""
        config = self.config
        return UpsamplingSizes(
            dim=config.hidden_sizes[stage + 1],
            out_dim=config.hidden_sizes[stage],
            num_heads=config.num_heads[stage + 1],
            window=(config.window_size,) * 2,
            mlp_ratio=config.mlp_ratio,
            drop_path_rate=config.drop_path_rates(stage)[0],
            layer_norm_eps=config.layer_norm_eps,
            bias=config.nonlocal_bias,
            shortcut=config.nonlocal_shortcut,
        )


def pyramid(encoded: Encoded) -> list[Tensor]:
    """Features (B, H, W, C) of the patch embedding and of each stage."""
    return [encoded.inputs[0], *encoded.outputs]


def channels_first(features: list[Tensor]) -> tuple[Tensor, ...]:
    """Features (B, H, W, C) -> feature maps (B, C, H, W), as views: the decoders' convolutions want this memory order."""
    return tuple(level.movedim(-1, 1) for level in features)
