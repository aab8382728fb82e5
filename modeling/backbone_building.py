"""Builds the encoders of transformers and timm from their configurations.

Legend: B batch, C channels, H, W image height and width, h, w those of a feature map.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from math import isqrt

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_BACKBONE_MAPPING,
    AutoBackbone,
    DinatConfig,
    PreTrainedConfig,
    SegformerConfig,
    SegformerModel,
    TimmBackbone,
    TimmBackboneConfig,
)
from transformers.modeling_outputs import BackboneOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES
from transformers.utils import is_timm_available
from transformers.utils.output_capturing import maybe_install_capturing_hooks

from ..configuration.checked_config import did_you_mean
from .neighborhood_attention import DinatEncoderBackbone

if is_timm_available():
    import timm

DYNAMIC, LENIENT = {"dynamic_img_size": True}, {"strict_img_size": False}
# Tried in turn, because timm models differ in the options that they accept.
ANY_SIZE_OPTIONS = ({**DYNAMIC, **LENIENT}, DYNAMIC, LENIENT)


class BackboneOfTimm(TimmBackbone):
    """transformers' wrapper of timm models, also for those whose modules have several outputs.

    CrossViT lists each of its blocks once for each of two branches, and transformers needs unique names.
    """

    def _init_timm_backbone(self, backbone: nn.Module) -> None:
        names = [stage["module"] for stage in backbone.feature_info.info]
        for index, stage in enumerate(backbone.feature_info.info):
            stage["module"] += ".further" * names[:index].count(names[index])
        super()._init_timm_backbone(backbone)

    def usable_strides(self) -> dict[int, int]:
        """Strides that timm declares, by index of the stage, without those that are no multiple of the finest.

        CrossViT resizes images for its second branch, whose stride, rounded to 17 beside 12, is not an integer.
        """
        strides = [stage["reduction"] for stage in self._backbone.feature_info.info]
        return {index: stride for index, stride in enumerate(strides) if stride % min(strides) == 0}


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
        ImportError: If the model needs a package that is not installed.
        ValueError: If transformers has no backbone of this type, timm has no model of this name, or the
            settings do not fit together.
    """
    config = adapted_config(config, out_indices)
    with explained_settings(encoder_name(config)):
        if config.model_type in ADAPTED:
            return ADAPTED[config.model_type](config)
        if config.model_type == TimmBackboneConfig.model_type:
            return build_timm(config, pretrained)
        check_is_backbone(config)
        return AutoBackbone.from_config(config, dtype=torch.get_default_dtype())


def encoder_name(config: PreTrainedConfig) -> str:
    """The name of an encoder in messages: that of the timm model, else its type in transformers."""
    return getattr(config, "backbone", None) or config.model_type


def check_is_backbone(config: PreTrainedConfig) -> None:
    """Raises a ValueError unless AutoBackbone has a class for this configuration."""
    if type(config) in MODEL_FOR_BACKBONE_MAPPING or "AutoBackbone" in getattr(config, "auto_map", {}):
        return
    names = sorted({*MODEL_FOR_BACKBONE_MAPPING_NAMES, *ADAPTED} - {TimmBackboneConfig.model_type})
    pattern = f"{config.model_type}_*"
    examples = f"{pattern}')" if is_timm_available() and timm.list_models(pattern) else "*')"
    raise ValueError(
        f"transformers has no backbone of type '{config.model_type}', that is, no class that returns feature maps. Use a "
        f"model of timm (TimmBackboneConfig(backbone=NAME); names: timm.list_models('{examples}), or a type that has one: "
        f"{', '.join(names)}."
    )


@contextmanager
def explained_settings(model_type: str) -> Iterator[None]:
    """Context manager that turns what a model of another library raises for wrong settings into a ValueError."""
    try:
        yield
    except ImportError as error:
        raise ImportError(f"'{model_type}' cannot be built: {' '.join(str(error).split())}") from error
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


def build_timm(config: TimmBackboneConfig, pretrained: bool = False) -> BackboneOfTimm:
    """Builds a timm model with the configuration's `model_kwargs`, for any image size where possible."""
    if is_timm_available() and ":" not in config.backbone and not timm.is_model(config.backbone):
        raise ValueError(
            f"timm has no model '{config.backbone}'{did_you_mean(config.backbone, timm.list_models())}"
        )
    own = getattr(config, "model_kwargs", None) or {}
    for options in ANY_SIZE_OPTIONS:
        with suppress(TypeError):  # raised at once by models that do not have the option
            return BackboneOfTimm(config, pretrained=pretrained, **{**options, **own})
    return BackboneOfTimm(config, pretrained=pretrained, **own)


def as_maps(features: Sequence[Tensor], size: tuple[int, int]) -> tuple[Tensor, ...]:
    """Turns tokens (B, N, C) of an image of this size, one for each square patch, into maps (B, C, h, w).

    Maps stay as they are, and so do tokens of which some are not of a patch.
    """
    return tuple(grid_of_tokens(tokens, *size) if tokens.dim() == 3 else tokens for tokens in features)


def grid_of_tokens(tokens: Tensor, height: int, width: int) -> Tensor:
    """(B, N, C) -> (B, C, h, w) if N tokens are the square patches of an image, else unchanged."""
    patch = isqrt(height * width // tokens.shape[1])
    if height // patch * (width // patch) != tokens.shape[1]:
        return tokens
    return tokens.movedim(1, -1).unflatten(-1, (height // patch, width // patch))


# Encoders that transformers has, but not as a backbone that works everywhere.
ADAPTED: dict[str, Callable[[PreTrainedConfig], nn.Module]] = {
    SegformerConfig.model_type: MitEncoder,
    DinatConfig.model_type: DinatEncoderBackbone,
}

__all__ = [
    "BackboneOfTimm",
    "MitEncoder",
    "as_maps",
    "adapted_config",
    "build_encoder",
    "build_timm",
    "encoder_name",
    "explained_settings",
]
