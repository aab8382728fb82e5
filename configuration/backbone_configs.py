"""The configuration of any backbone, from the dictionary that a configuration file holds."""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from .checked_config import choose
from .configuration_cswin import CswinConfig
from .configuration_glam_swin import GlamSwinConfig
from .configuration_maformer import MaformerConfig

# Found without transformers' registry, which knows other copies of these classes where code comes from the Hub.
OWN_BACKBONES = {"cswin": CswinConfig, "glam_swin": GlamSwinConfig, "maformer": MaformerConfig}


def backbone_from_dict(settings: dict[str, Any], is_stored: bool = False) -> PreTrainedConfig:
    """The configuration that the dictionary describes, of our types or of those that transformers knows.

    is_stored: whether it comes from a file, of which unknown keys are kept.
    """
    settings = dict(settings)
    model_type = settings.pop("model_type", None)
    if model_type in OWN_BACKBONES:
        config_class = choose("backbone", model_type, OWN_BACKBONES)
        return config_class.from_dict(settings) if is_stored else config_class(**settings)
    if model_type is None:
        raise ValueError(
            f"backbone_config has no 'model_type', only {sorted(settings)}. Add it, such as 'model_type': 'swin', "
            "or give a configuration object."
        )
    return AutoConfig.for_model(model_type, **settings)
