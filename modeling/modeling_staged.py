"""Model, backbone, classifier and masked image model of the families with a `StagedConfig`; the family's file builds the encoder.

Legend: B batch, H, W image height and width, C channels, N tokens.
"""

import torch
from torch import Tensor, nn
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    MaskedImageModelingOutput,
)
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from ..configuration.staged import StagedConfig
from .blocks import Encoded, Revise, unchanged
from .masked_images import (
    MASK_UNIT,
    MaskVector,
    PixelHead,
    enlarged,
    masked_l1,
    patch_mask,
    random_mask,
)
from .pretrained import ContextsegPreTrainedModel, as_weights, check_images
from .swin_stages import StageSizes
from .windows import crop


def stage_sizes(config: StagedConfig, stage: int) -> StageSizes:
    """Returns the sizes of one stage without global tokens."""
    return StageSizes(
        dim=config.hidden_sizes[stage],
        depth=config.depths[stage],
        num_heads=config.num_heads[stage],
        window=config.stage_window(stage),
        mlp_ratio=config.mlp_ratio,
        drop_path_rates=tuple(config.drop_path_rates(stage)),
        layer_norm_eps=config.layer_norm_eps,
    )


class StagedModel(ContextsegPreTrainedModel):
    """An encoder with a final layer norm.

    Returns `last_hidden_state` (B, N, C) and its mean over the tokens, `pooler_output` (B, C).

    `output_attentions=True` needs `attn_implementation="eager"` and returns the probabilities of every
    attention in order of execution: (B * stripes or windows, heads, queries, keys), or
    (B, heads, queries, keys) for attention over the whole grid.
    """

    def __init__(self, config: StagedConfig, encoder: nn.Module, use_mask_vector: bool = False) -> None:
        """Takes an encoder of all stages: images and optional padding masks -> `Encoded`."""
        super().__init__(config)
        self.encoder = encoder
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mask_vector = MaskVector(config.hidden_sizes[0]) if use_mask_vector else None
        self.post_init()

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        bool_masked_pos: Tensor | None = None,
    ) -> BaseModelOutputWithPooling:
        """(B, C, S...) -> `last_hidden_state` (B, N, C) and `pooler_output` (B, C).

        Args:
            pixel_values: (B, C, S...), normalized by the image processor.
            pixel_mask: (B, S...), 1 for image, 0 for padding; None without padding.
            output_hidden_states: Whether to return the feature maps (B, C, h, w) of the patch embedding and
                of every stage.
            output_attentions: Whether to return attention probabilities; needs `attn_implementation="eager"`.
            bool_masked_pos: (B, h, w) of the patch embedding, true for patches to mask; only in a model for masked
                image modeling.

        Raises:
            ValueError: If a shape is wrong, or attentions are requested from another attention
                implementation.
        """
        output_hidden_states, output_attentions = self.asked_outputs(output_hidden_states, output_attentions)
        check_images(self.config, pixel_values, pixel_mask, output_attentions)
        encoded = self.encoder(as_weights(self, pixel_values), pixel_mask, self.masking(bool_masked_pos))
        features = self.norm(encoded.outputs[-1]).flatten(1, -2)
        return BaseModelOutputWithPooling(
            last_hidden_state=features,
            pooler_output=features.mean(dim=1),
            hidden_states=channels_first(pyramid(encoded)) if output_hidden_states else None,
        )

    def masking(self, bool_masked_pos: Tensor | None) -> Revise:
        """(B, h, w) or None -> function for the encoder that masks these patches."""
        if bool_masked_pos is None:
            return unchanged
        if self.mask_vector is None:
            raise ValueError(
                f"got bool_masked_pos, but this {type(self).__name__} has no vector for masked patches. Use "
                "AutoModelForMaskedImageModeling."
            )
        return self.mask_vector.on_patches(bool_masked_pos)


class StageNorms(nn.ModuleDict):
    """The layer norms of the feature maps in `config.out_features`, by stage.

    Decoder "unet" takes the inputs of the stages, without norms, and the normed output of the last stage.
    """

    def __init__(self, config: StagedConfig) -> None:
        widths = [config.hidden_sizes[0], *config.hidden_sizes]
        names = config.out_features[-1:] if config.decoder == "unet" else config.out_features
        levels = {name: config.stage_names.index(name) for name in names}
        super().__init__(
            {name: nn.LayerNorm(widths[level], eps=config.layer_norm_eps) for name, level in levels.items()}
        )
        self.levels, self.takes_inputs = levels, config.decoder == "unet"

    def forward(self, encoded: Encoded) -> list[Tensor]:
        """Output of the encoder -> features (B, H, W, C), one per stage in `out_features`."""
        features = pyramid(encoded)
        skips = encoded.inputs[:-1] if self.takes_inputs else []
        return [*skips, *(norm(features[self.levels[name]]) for name, norm in self.items())]


class StagedBackbone(BackboneMixin, ContextsegPreTrainedModel):
    """An encoder as a backbone.

    Returns one layer-normed feature map (B, C, H/stride, W/stride) for each stage in `out_features`. With
    `decoder="unet"` it returns the skip connections of that decoder, which have the same sizes: the input of
    each stage but the last, and the layer-normed output of the last.
    """

    def __init__(self, config: StagedConfig, encoder: nn.Module) -> None:
        """Takes an encoder of `config.num_backbone_stages` stages: images, optional masks -> `Encoded`."""
        super().__init__(config)
        self.num_features = [config.hidden_sizes[0], *config.hidden_sizes]
        self.strides = [config.strides[max(stage - 1, 0)] for stage in config.out_stages]
        self.encoder = encoder
        self.norms = StageNorms(config)
        self.post_init()

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BackboneOutput:
        """(B, C, S...) -> `feature_maps` (B, C_i, H / stride_i, W / stride_i), fine to coarse.

        Args:
            pixel_values: (B, C, S...), normalized by the image processor.
            pixel_mask: (B, S...), 1 for image, 0 for padding; None without padding.
            output_hidden_states: Whether to return the feature maps (B, C, h, w) of the patch embedding and
                of every stage.
            output_attentions: Whether to return attention probabilities; needs `attn_implementation="eager"`.

        Raises:
            ValueError: If a shape is wrong, or attentions are requested from another attention
                implementation.
        """
        output_hidden_states, output_attentions = self.asked_outputs(output_hidden_states, output_attentions)
        check_images(self.config, pixel_values, pixel_mask, output_attentions)
        encoded = self.encoder(as_weights(self, pixel_values), pixel_mask)
        return BackboneOutput(
            feature_maps=channels_first(self.norms(encoded)),
            hidden_states=channels_first(pyramid(encoded)) if output_hidden_states else None,
        )


class StagedForImageClassification(ContextsegPreTrainedModel):
    """A linear classifier on the mean of the tokens of `backbone`, the `StagedModel` of the family."""

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
        """(B, C, S...) -> logits (B, num_labels); with labels, also the loss.

        Args:
            pixel_values: (B, C, S...), normalized by the image processor.
            labels: (B,), class ids.
            output_hidden_states: Whether to return the feature maps of the patch embedding and of every
                stage.
            output_attentions: Whether to return attention probabilities; needs `attn_implementation="eager"`.

        Raises:
            ValueError: If a shape is wrong, or attentions are requested from another attention
                implementation.
        """
        hidden_states, attentions = self.asked_outputs(output_hidden_states, output_attentions)
        outputs = self.backbone(
            pixel_values, output_hidden_states=hidden_states, output_attentions=attentions, return_dict=True
        )
        logits = self.classifier(outputs.pooler_output)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class StagedForMaskedImageModeling(ContextsegPreTrainedModel):
    """Masked image modeling (SimMIM): predicts the pixels of masked patches from the last features of `backbone`.

    The segmenter of the same configuration loads its encoder with `from_pretrained`.
    """

    def __init__(self, config: StagedConfig, backbone: StagedModel) -> None:
        """Takes the model of the family, with a mask vector."""
        super().__init__(config)
        self.backbone = backbone
        if not config.has_square_strides:
            raise ValueError(
                f"patch_size is {config.patch_size}, but masked image modeling is for images with square patches. "
                "Pass one number."
            )
        self.patch, self.stride = config.strides[0], config.strides[-1]
        self.pixel_head = PixelHead(config.hidden_size, config.num_channels, self.stride)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
        generator: torch.Generator | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> MaskedImageModelingOutput:
        """(B, C, S...) -> reconstruction (B, C, H, W), and the loss: mean absolute error of masked pixels.

        Args:
            pixel_values: (B, C, S...), normalized by the image processor.
            pixel_mask: (B, S...), 1 for image, 0 for padding; None without padding.
            bool_masked_pos: (B, N) or (B, h, w) patches of the first stage, true for patches to mask. None draws 75 %
                of the units of 32 x 32 pixels of each image.
            generator: Source of that draw; PyTorch's own by default.
            output_hidden_states: Whether to return the feature maps of the patch embedding and of every stage.
            output_attentions: Whether to return attention probabilities; needs `attn_implementation="eager"`.

        Raises:
            ValueError: If a shape is wrong, or attentions are requested from another attention implementation.
        """
        check_images(self.config, pixel_values, pixel_mask)
        masked = self.masked_patches(pixel_values, bool_masked_pos, generator)
        outputs = self.backbone(
            pixel_values,
            pixel_mask,
            output_hidden_states,
            output_attentions,
            bool_masked_pos=masked,
            return_dict=True,
        )
        reconstruction = self.reconstructed(outputs.last_hidden_state, pixel_values)
        return MaskedImageModelingOutput(
            loss=masked_l1(
                reconstruction, pixel_values, self.masked_pixels(masked, pixel_values, pixel_mask)
            ),
            reconstruction=reconstruction,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def masked_patches(
        self, pixel_values: Tensor, bool_masked_pos: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """(B, C, H, W), given mask or None -> (B, h, w), true for masked patches."""
        batch, patch = pixel_values.shape[0], self.patch
        grid = self.grid_of(pixel_values, patch)
        if bool_masked_pos is not None:
            return patch_mask(bool_masked_pos, grid, batch).to(pixel_values.device)
        unit = max(MASK_UNIT // patch, 1)
        return random_mask(batch, grid, unit, generator=generator, device=pixel_values.device)

    def reconstructed(self, last_hidden_state: Tensor, pixel_values: Tensor) -> Tensor:
        """(B, N, C) of the last stage, (B, C, H, W) -> (B, C, H, W)."""
        features = last_hidden_state.unflatten(1, self.grid_of(pixel_values, self.stride))
        return self.pixel_head(features, tuple(pixel_values.shape[2:]))

    def masked_pixels(self, masked: Tensor, pixel_values: Tensor, pixel_mask: Tensor | None) -> Tensor:
        """(B, h, w), (B, C, H, W), mask or None -> (B, H, W), true for masked pixels of the image."""
        pixels = crop(enlarged(masked, self.patch), tuple(pixel_values.shape[2:]))
        return pixels if pixel_mask is None else pixels & (pixel_mask != 0)

    def grid_of(self, pixel_values: Tensor, stride: int) -> tuple[int, ...]:
        """(B, C, S...) -> the number of positions along each axis at a stride."""
        return tuple((side + stride - 1) // stride for side in pixel_values.shape[2:])


def pyramid(encoded: Encoded) -> list[Tensor]:
    """Returns the features (B, H, W, C) of the patch embedding and of each stage."""
    return [encoded.inputs[0], *encoded.outputs]


def channels_first(features: list[Tensor]) -> tuple[Tensor, ...]:
    """(B, H, W, C) -> (B, C, H, W), views: channels last in memory is fastest for decoder convolutions."""
    return tuple(level.movedim(-1, 1) for level in features)
