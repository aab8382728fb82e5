"""Whether a run is about volumes, which its model decides."""

from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig

from ..modeling.backbone_building import explained_settings
from ..modeling.pretrained_backbones import is_timm_name
from ..processing.volumes.volume_inference import takes_volumes
from .models import SEGMENTER, config_class_of
from .option_texts import parse_overrides
from .starting_points import checkpoint_of, configuration, read_config

if TYPE_CHECKING:
    from .options import TrainArguments


def trains_on_volumes(arguments: "TrainArguments") -> bool:
    """Whether the model of a run takes volumes, not images."""
    config = described_model(arguments) if arguments.task == "segmentation" else None
    return takes_volumes(config)


def described_model(arguments: "TrainArguments") -> PreTrainedConfig | None:
    """Returns the configuration that the options of a segmentation run describe, if it may be one of volumes.

    The classes and their weights, and what is planned from the data, are not in it yet.
    """
    source = arguments.init_from
    if source and is_timm_name(source):
        return None
    if source:
        config = read_config(source, checkpoint_of(source))
        return config if arguments.model in (None, config.model_type) else None
    name = arguments.model or arguments.default_model
    if not hasattr(config_class_of(SEGMENTER, name), "num_axes"):
        return None
    overrides: dict[str, Any] = parse_overrides(arguments.set)
    overrides.pop("class_weights", None)  # one for each class
    with explained_settings(name):
        return configuration(SEGMENTER, name, arguments.preset, overrides)
