"""Builds the configuration of any backbone from a dictionary, as stored in a configuration file."""

from typing import Any, Self

from transformers import PreTrainedConfig, TimmBackboneConfig

from .checked_config import choose, reject_unknown_options
from .configuration_cswin import CswinConfig
from .configuration_glam import GlamConfig
from .configuration_glam_swin import GlamSwinConfig
from .configuration_maformer import MaformerConfig
from .field_rules import run_check
from .foreign_backbones import BackboneChannels, foreign_backbone_config
from .ranges import shown

# Not looked up in transformers' registry, which holds other copies of these classes if code was loaded from
# the Hub.
OWN_BACKBONES = {
    "cswin": CswinConfig,
    "glam": GlamConfig,
    "glam_swin": GlamSwinConfig,
    "maformer": MaformerConfig,
}


def backbone_from_dict(settings: dict[str, Any], is_stored: bool = False) -> PreTrainedConfig:
    """Builds a backbone configuration of one of our types, or of any type in transformers.

    Args:
        settings: The `model_type` and the fields of the configuration.
        is_stored: Whether the dictionary comes from a file, whose unknown keys are kept; otherwise they raise
            an error.

    Raises:
        ValueError: If `model_type` is missing or unknown, or one of our configurations has no such field.
    """
    model_type = settings.get("model_type")
    if model_type not in OWN_BACKBONES:
        return foreign_backbone_config(settings)
    config_class = choose("backbone", model_type, OWN_BACKBONES)
    fields = {name: value for name, value in settings.items() if name != "model_type"}
    return config_class.from_dict(fields) if is_stored else config_class(**fields)


def changed_backbone(config: PreTrainedConfig, changes: dict[str, Any]) -> PreTrainedConfig:
    """Returns a copy of a backbone configuration with other values of some fields.

    Args:
        config: The configuration.
        changes: Fields to change; `model_type`, if given, must be that of the configuration. The
            `model_kwargs` of timm are added to those that are there.

    Raises:
        ValueError: If the configuration is of another type, or has no such field.
    """
    changes = dict(changes)
    model_type = changes.pop("model_type", config.model_type)
    if model_type != config.model_type:
        raise ValueError(
            f"backbone_config is of type {shown(model_type)}, but the encoder is '{config.model_type}'. Leave 'model_type' out, and "
            "give only the fields to change."
        )
    settings = config.to_dict()
    known = {*type(config).__dataclass_fields__, *settings, "out_features", "out_indices"}
    if model_type == TimmBackboneConfig.model_type:
        known.add("model_kwargs")
        if "model_kwargs" in changes:
            changes["model_kwargs"] = {**settings.get("model_kwargs", {}), **changes["model_kwargs"]}
    reject_unknown_options(f"the backbone '{model_type}'", changes, known)
    run_check("encoder", changes)
    return type(config).from_dict({**settings, **changes})


def is_partial(backbone_config: Any) -> bool:
    """Whether this is a dictionary of some fields, for a configuration that is elsewhere."""
    return isinstance(backbone_config, dict) and "model_type" not in backbone_config


def check_takes_images(config: PreTrainedConfig) -> None:
    """Raises ValueError for the configuration of an encoder of volumes."""
    if getattr(config, "num_axes", 2) != 2:
        raise ValueError(
            f"backbone_config is for volumes (patch_size {shown(config.patch_size)}), but this model takes images. Choose an "
            "encoder of images."
        )


class WithBackbone(BackboneChannels):
    """What configurations of models with a `backbone_config` share: presets whose encoder can be changed in part."""

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Self:
        """As in `CheckedConfig`; a `backbone_config` without `model_type` changes fields of the preset's encoder."""
        if is_partial(overrides.get("backbone_config")):
            own = backbone_from_dict(choose("preset", name, cls.presets)["backbone_config"])
            overrides["backbone_config"] = changed_backbone(own, overrides["backbone_config"])
        return super().preset(name, **overrides)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in `CheckedConfig`; a `backbone_config` in `kwargs` without `model_type` changes fields of the file's."""
        if is_partial(kwargs.get("backbone_config")) and isinstance(config_dict.get("backbone_config"), dict):
            own = backbone_from_dict(config_dict["backbone_config"], is_stored=True)
            kwargs["backbone_config"] = changed_backbone(own, kwargs["backbone_config"])
        return super().from_dict(config_dict, **kwargs)
