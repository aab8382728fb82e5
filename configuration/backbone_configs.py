"""Builds the configuration of any backbone from a dictionary, as stored in a configuration file."""

from typing import Any

from transformers import PreTrainedConfig

from .checked_config import choose
from .configuration_cswin import CswinConfig
from .configuration_glam import GlamConfig
from .configuration_glam_swin import GlamSwinConfig
from .configuration_maformer import MaformerConfig
from .foreign_backbones import foreign_backbone_config
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


def check_takes_images(config: PreTrainedConfig) -> None:
    """Raises ValueError for the configuration of an encoder of volumes."""
    if getattr(config, "num_axes", 2) != 2:
        raise ValueError(
            f"backbone_config is for volumes (patch_size {shown(config.patch_size)}), but this model takes images. Choose an "
            "encoder of images."
        )
