"""Builds the encoders of transformers and timm from their configurations.

Legend: B batch, C channels, H, W image height and width, h, w those of a feature map.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
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
# Tried in turn, because timm models differ in the options that they accept.
ANY_SIZE_OPTIONS = ({**DYNAMIC, **LENIENT}, DYNAMIC, LENIENT)


class MitEncoder(nn.Module):
    """SegFormer's MiT encoder as a backbone, which transformers does not provide."""

    def __init__(self, config: SegformerConfig) -> None:
        super().__init__()
        config.reshape_last_stage = True
        self.config = config
        self.channels = list(config.hidden_sizes)
        self.model = SegformerModel(config)
        # Installed lazily, at the first call, these hooks would break the graph of torch.compile.
        maybe_install_capturing_hooks(self.model)

    def forward(self, pixel_values: Tensor, output_attentions: bool | None = None) -> BackboneOutput:
        """(B, C, H, W) -> feature maps (B, C_i, h_i, w_i) of all stages, fine to coarse."""
        outputs = self.model(pixel_values, output_hidden_states=True, output_attentions=output_attentions)
        maps = outputs.hidden_states
        return BackboneOutput(feature_maps=maps, hidden_states=maps, attentions=outputs.attentions)


def build_encoder(
    config: PreTrainedConfig, out_indices: Sequence[int] | None = None, pretrained: bool = False
) -> nn.Module:
    """Builds the encoder that a configuration describes.

    Args:
        config: Configuration of a backbone in transformers or timm.
        out_indices: Stages whose feature maps are returned; None keeps those of the configuration.
        pretrained: For timm models, whether to load timm's pretrained weights; all others are randomly
            initialized.

    Returns:
        A module whose output has `feature_maps`.

    Raises:
        ValueError: If timm has no model of this name, or the settings do not fit together.
    """
    config = adapted_config(config, out_indices)
    with explained_settings(config.model_type):
        if config.model_type == SegformerConfig.model_type:
            return MitEncoder(config)
        if config.model_type == TimmBackboneConfig.model_type:
            return build_timm(config, pretrained)
        return AutoBackbone.from_config(config, dtype=torch.get_default_dtype())


@contextmanager
def explained_settings(model_type: str) -> Iterator[None]:
    """Context manager that turns what a model of another library raises for wrong settings into a ValueError."""
    try:
        yield
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"'{model_type}' cannot be built with these settings ({reason:.300}). Compare them with its documentation."
        ) from error


def adapted_config(config: PreTrainedConfig, out_indices: Sequence[int] | None) -> PreTrainedConfig:
    """A copy with these `out_indices`. Tuples become lists, because some encoders concatenate them."""
    if not hasattr(config, "out_indices") and hasattr(config, "vision_config"):
        config = config.vision_config  # of a vision-language model
    config = deepcopy(config)
    for name, value in vars(config).items():
        if isinstance(value, tuple):
            vars(config)[name] = list(value)
    if out_indices is not None:
        config.out_indices = list(out_indices)
    return config


def build_timm(config: TimmBackboneConfig, pretrained: bool = False) -> TimmBackbone:
    """Builds a timm model with the configuration's `model_kwargs`, for any image size where possible."""
    if is_timm_available() and ":" not in config.backbone and not timm.is_model(config.backbone):
        raise ValueError(
            f"timm has no model '{config.backbone}'{did_you_mean(config.backbone, timm.list_models())}"
        )
    own = getattr(config, "model_kwargs", None) or {}
    for options in ANY_SIZE_OPTIONS:
        with suppress(TypeError):  # raised at once by models that do not have the option
            return TimmBackbone(config, pretrained=pretrained, **{**options, **own})
    return TimmBackbone(config, pretrained=pretrained, **own)


__all__ = ["MitEncoder", "adapted_config", "build_encoder", "build_timm", "explained_settings"]
