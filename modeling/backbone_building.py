"""The encoders of transformers and timm, built from their configurations.

Legend: B batch, C channels, H, W image height and width, h, w those of a feature map.
"""

from collections.abc import Sequence
from contextlib import suppress
from copy import deepcopy

import torch
from torch import Tensor, nn
from transformers import (
    AutoBackbone,
    PreTrainedConfig,
    SegformerConfig,
    SegformerModel,
    TimmBackbone,
    TimmBackboneConfig,
)
from transformers.modeling_outputs import BackboneOutput
from transformers.utils import is_timm_available
from transformers.utils.output_capturing import maybe_install_capturing_hooks

from ..configuration.checked_config import did_you_mean

if is_timm_available():
    import timm

DYNAMIC, LENIENT = {"dynamic_img_size": True}, {"strict_img_size": False}
ANY_SIZE_OPTIONS = ({**DYNAMIC, **LENIENT}, DYNAMIC, LENIENT)  # timm's, for models that have them


class MitEncoder(nn.Module):
    """SegFormer's encoder as a backbone; transformers has none for it."""

    def __init__(self, config: SegformerConfig) -> None:
        super().__init__()
        config.reshape_last_stage = True
        self.config = config
        self.channels = list(config.hidden_sizes)
        self.model = SegformerModel(config)
        maybe_install_capturing_hooks(
            self.model
        )  # at the first call, they would break the graph of torch.compile

    def forward(self, pixel_values: Tensor, output_attentions: bool | None = None) -> BackboneOutput:
        """(B, C, H, W) -> feature maps (B, C_i, h_i, w_i) of all stages."""
        outputs = self.model(pixel_values, output_hidden_states=True, output_attentions=output_attentions)
        maps = outputs.hidden_states
        return BackboneOutput(feature_maps=maps, hidden_states=maps, attentions=outputs.attentions)


def build_encoder(
    config: PreTrainedConfig, out_indices: Sequence[int] | None = None, pretrained: bool = False
) -> nn.Module:
    """The encoder that a configuration describes, with random weights, and the maps of these stages.

    pretrained: for timm, whether its weights are loaded.
    """
    config = adapted_config(config, out_indices)
    if config.model_type == SegformerConfig.model_type:
        return MitEncoder(config)
    if config.model_type == TimmBackboneConfig.model_type:
        return build_timm(config, pretrained)
    return AutoBackbone.from_config(config, dtype=torch.get_default_dtype())


def adapted_config(config: PreTrainedConfig, out_indices: Sequence[int] | None) -> PreTrainedConfig:
    """A copy with other stages. Tuples become lists, as after loading: some encoders join them with lists."""
    if not hasattr(config, "out_indices") and hasattr(config, "vision_config"):
        config = config.vision_config  # of a model of images and texts
    config = deepcopy(config)
    for name, value in vars(config).items():
        if isinstance(value, tuple):
            vars(config)[name] = list(value)
    if out_indices is not None:
        config.out_indices = list(out_indices)
    return config


def build_timm(config: TimmBackboneConfig, pretrained: bool = False) -> TimmBackbone:
    """timm's model with the arguments `model_kwargs` of the configuration, and those that let it take all image sizes."""
    if is_timm_available() and ":" not in config.backbone and not timm.is_model(config.backbone):
        raise ValueError(
            f"timm has no model '{config.backbone}'{did_you_mean(config.backbone, timm.list_models())}"
        )
    own = getattr(config, "model_kwargs", None) or {}
    for options in ANY_SIZE_OPTIONS:
        with suppress(
            TypeError
        ):  # of models that do not know the option; they raise before anything is built
            return TimmBackbone(config, pretrained=pretrained, **{**options, **own})
    return TimmBackbone(config, pretrained=pretrained, **own)


__all__ = ["MitEncoder", "adapted_config", "build_encoder", "build_timm"]
