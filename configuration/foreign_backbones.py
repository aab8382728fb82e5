"""What configurations with a `backbone_config` share: encoders of transformers and timm from a dictionary, and channels."""

from copy import deepcopy
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from .field_rules import run_check
from .ranges import shown


def foreign_backbone_config(settings: dict[str, Any]) -> PreTrainedConfig:
    """Builds the configuration of an encoder that is not ours.

    Args:
        settings: The `model_type` and the fields of the configuration.

    Raises:
        ValueError: If `model_type` is missing or unknown.
    """
    if settings.get("model_type") is None:
        raise ValueError(
            f"backbone_config has no 'model_type', only {shown(sorted(map(str, settings)))}. Add it, such as 'model_type': 'swin', "
            "or pass a configuration object."
        )
    fields = {name: value for name, value in settings.items() if name != "model_type"}
    run_check("encoder", fields)
    return AutoConfig.for_model(settings["model_type"], **fields)


class BackboneChannels:
    """The option `num_channels` of a configuration with a `backbone_config`, which stores it."""

    @classmethod
    def known_options(cls) -> set[str]:
        return super().known_options() | {"num_channels"}

    @property
    def num_channels(self) -> int:
        """Channels of the image."""
        return getattr(self.backbone_config, "num_channels", 3)

    @num_channels.setter
    def num_channels(self, number: int) -> None:
        run_check("range", "num_channels", number)
        if number != self.num_channels:
            self.backbone_config = deepcopy(self.backbone_config)  # the caller's stays as it is
            self.backbone_config.num_channels = number
