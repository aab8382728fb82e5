"""GLAM in any windowed encoder (Themyr et al., "Full Contextual Attention for Multi-resolution Transformers in Semantic
Segmentation", WACV 2023): the paper calls it "a generic module that can be integrated into most existing transformer
backbones".

The encoder is that of transformers or timm, with its weights under its own names. Without global tokens it is unchanged.
Where global tokens and patches share layers (projections of the window attention, its norm, with "half" and
"transformer" the MLP), those of the encoder are used.

Legend: B batch, C channels, H, W image height and width.
"""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput

from ..configuration.configuration_glam import GlamConfig
from .any_backbone import AnyBackbone, adapted, foreign_backbone
from .backbone_info import measure
from .model_parts import backbone_name
from .pretrained import ContextsegPreTrainedModel, check_images
from .window_search import exchange_blocks, stage_strides, windowed_stages
from .windowed_blocks import recorded_probabilities


class GlamBackbone(BackboneMixin, ContextsegPreTrainedModel):
    """A windowed encoder with global tokens, as a backbone.

    Returns one feature map (B, C, H/stride, W/stride) for each used stage of the encoder. Images may have any size: they
    are padded to one that the encoder accepts. Unlike those of GLAM-Swin, windows that hold only padding take part in
    global attention, so there is no `pixel_mask`.

    Args:
        config: Configuration of encoder and global tokens.
        encoder: A loaded encoder, which is modified in place; by default the configured one, with random weights.
    """

    config: GlamConfig
    base_model_prefix = "encoder"
    _no_split_modules = ["TokenBlock"]

    def __init__(self, config: GlamConfig, encoder: AnyBackbone | None = None) -> None:
        super().__init__(config)
        self.encoder = encoder or foreign_backbone(config.backbone_config, "keep")
        if config.num_global_tokens:
            exchange_blocks(
                self.encoder.encoder, config, config.num_global_tokens, config.global_block, config.stages
            )
        self.strides = list(self.encoder.strides)
        self.post_init()

    def _init_transformers_backbone(self) -> None:
        """Stages are known when the encoder has been built."""

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,  # noqa: ARG002 - as transformers' backbones; the result is always an object
    ) -> BackboneOutput:
        """(B, C, H, W) -> `feature_maps` (B, C_i, H / stride_i, W / stride_i), fine to coarse.

        Args:
            pixel_values: (B, C, H, W), normalized by the image processor.
            output_hidden_states: Whether to return the encoder's hidden states.
            output_attentions: Whether to return the attention probabilities of each W-MSA (B * windows, heads, queries,
                keys; global tokens first) and of each G-MSA (B, heads, tokens, tokens), in order of execution; needs
                `attn_implementation="eager"`.

        Raises:
            ValueError: If a shape is wrong, or attentions are requested from another attention implementation.
        """
        output_hidden_states, output_attentions = self.asked_outputs(output_hidden_states, output_attentions)
        check_images(self.config, pixel_values, None, output_attentions)
        if not output_attentions:
            return self.encoder(pixel_values, output_hidden_states=output_hidden_states)
        with recorded_probabilities() as probabilities:
            outputs = self.encoder(pixel_values, output_hidden_states=output_hidden_states)
        outputs.attentions = tuple(probabilities)
        return outputs

    def strides_and_blocks(self) -> list[tuple[tuple[int, int], list[nn.Module]]]:
        """Stride along each axis, and windowed blocks, of each stage of the encoder."""
        encoder = self.encoder.encoder
        stages = [list(map(encoder.get_submodule, names)) for names in windowed_stages(encoder)]
        strides = stage_strides(encoder, len(stages))
        return [((stride, stride), blocks) for stride, blocks in zip(strides, stages, strict=True)]

    @property
    def channels(self) -> list[int]:
        """Channels of each feature map."""
        return list(self.encoder.channels)

    @property
    def out_indices(self) -> list[int]:
        """Indices of the encoder's stages whose feature maps are returned."""
        return list(self.encoder.facts.out_indices)

    @property
    def out_features(self) -> list[str]:
        """Names of these stages."""
        return [self.encoder.config.stage_names[index] for index in self.out_indices]


def add_global_tokens(
    model: PreTrainedModel,
    num_tokens: int = 10,
    global_block: str = "bare",
    stages: str | list[int] | tuple[int, ...] = "all",
) -> PreTrainedModel:
    """Adds GLAM's global tokens to the windows of a loaded encoder, which keeps its weights.

    The tokens and their attention are new and need training: outputs change at once.

    Args:
        model: A segmenter of this package or of transformers on a windowed encoder, which is modified in place; or such an
            encoder itself, loaded with AutoBackbone.
        num_tokens: Global tokens per window.
        global_block: "bare", "half" or "transformer", see `GlamConfig`.
        stages: Stages with global tokens: "all", or a list of indices, 0 for the finest.

    Returns:
        The segmenter; for an encoder, a `GlamBackbone` with it. Both are saved and loaded as usual.

    Raises:
        ValueError: If the model has no backbone, or the encoder has no windows that tokens could join.
    """
    if isinstance(model, BackboneMixin):
        return with_tokens(model, num_tokens, global_block, stages)
    name = backbone_name(model)
    backbone = getattr(model, name)
    if isinstance(backbone, AnyBackbone):
        glam = with_tokens(backbone, num_tokens, global_block, stages)
        setattr(model, name, adapted(glam, "keep"))
    elif isinstance(backbone, BackboneMixin):
        glam = with_tokens(backbone, num_tokens, global_block, stages)
        setattr(model, name, glam)
    else:
        raise ValueError(
            f"the encoder of {type(model).__name__} is a {type(backbone).__name__}, which gives no feature maps. Pass "
            "AutoBackbone.from_pretrained(...) of the same checkpoint, or a segmenter."
        )
    model.config.backbone_config = glam.config
    return model


def with_tokens(encoder: nn.Module, num_tokens: int, global_block: str, stages: Any) -> GlamBackbone:
    """A `GlamBackbone` that contains a loaded encoder, on its device and in its type."""
    if not isinstance(encoder, AnyBackbone):
        encoder = uniform(encoder)
    config = GlamConfig(
        backbone_config=encoder.config, num_global_tokens=num_tokens, global_block=global_block, stages=stages
    )
    for module in encoder.modules():
        module._is_hf_initialized = True  # so that only what is new is initialized
    weight = next(encoder.parameters())
    glam = GlamBackbone(config, encoder).to(weight.device, weight.dtype)
    return glam.train(encoder.training)


def uniform(encoder: nn.Module) -> AnyBackbone:
    """A loaded encoder in the adapter. Raises ValueError if it does not return the stages that decoders need."""
    facts = measure(encoder.config)
    if facts.out_indices is not None and list(facts.out_indices) != list(encoder.out_indices):
        raise ValueError(
            f"the encoder returns the feature maps of stages {list(encoder.out_indices)} only. Load it with "
            f"out_indices={list(facts.out_indices)}."
        )
    return adapted(encoder, "keep", facts)


__all__ = ["GlamBackbone", "add_global_tokens"]
