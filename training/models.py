"""Building and loading of the model that a run starts from."""

import ast
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils.logging import disable_progress_bar

from .. import modeling  # noqa: F401 - registers our models in transformers' tables, which are read below
from ..configuration.checked_config import CheckedConfig
from ..configuration.field_rules import check_encoder_sizes
from ..modeling.backbone_building import explained_settings
from .checkpoints import model_folder
from .model_files import check_finite, explained_damage, load_model, load_processor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelKind:
    """A kind of model: its purpose in words, its model class by configuration class, and its Auto class."""

    purpose: str
    classes: Mapping[type[PreTrainedConfig], type[PreTrainedModel]]
    auto_class: type


SEGMENTER = ModelKind(
    "semantic segmentation", MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING, AutoModelForSemanticSegmentation
)
CLASSIFIER = ModelKind(
    "image classification", MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, AutoModelForImageClassification
)


# Options that name a checkpoint of transformers or timm to start from: the classmethod that loads it, and the
# models that have it.
STARTS = {
    "swin": ("from_swin", "glam_swin"),
    "segformer": ("from_segformer", "segdeformer"),
    "backbone": ("from_backbone", "segdeformer or mask_rcnn"),
}

IGNORE_INDEX_FIELDS = ("semantic_loss_ignore_index", "loss_ignore_index")


def build_model(
    kind: ModelKind,
    name: str,
    preset: str | None,
    *,
    class_names: list[str],
    options: dict[str, Any],
    weights: str | None = None,
    starts: Mapping[str, str | None] | None = None,
) -> PreTrainedModel:
    """Builds a model for the given classes.

    Args:
        kind: What the model is for.
        name: Model type, such as "glam_swin"; with `weights`, the checkpoint decides.
        preset: Published size, such as "tiny"; None for the defaults of the configuration.
        class_names: Class names by id.
        options: Fields of the configuration to set.
        weights: Checkpoint of the same kind to fine-tune; a classifier for other classes is initialized anew.
        starts: Checkpoints of other models to start from, by option, see `STARTS`; at most one is not None.

    Returns:
        The model, randomly initialized unless `weights` or `starts` name a checkpoint.

    Raises:
        ValueError: If type, preset or checkpoint do not exist or do not fit together.
    """
    options = {
        "id2label": dict(enumerate(class_names)),
        "label2id": {label: index for index, label in enumerate(class_names)},
        **options,
    }
    starts = {option: source for option, source in (starts or {}).items() if source}
    if (preset is not None) + (weights is not None) + len(starts) > 1:
        options_given = ", ".join(f"--{option}" for option in STARTS)
        raise ValueError(
            f"--preset, --weights, {options_given} each determine the model's size. Give only one of them."
        )
    if weights:
        return from_weights(kind, weights, options)
    if starts:
        (option, source), *_ = starts.items()
        return started(kind, name, option, source, options)
    with explained_settings(name):
        config = configuration(kind, name, preset, options)
        return kind.classes[type(config)](config)


def started(kind: ModelKind, name: str, option: str, source: str, options: dict[str, Any]) -> PreTrainedModel:
    """Builds a model of type `name` from the checkpoint `source` that an option of `STARTS` names."""
    method, fitting = STARTS[option]
    model_class = kind.classes[config_class_of(kind, name)]
    if not hasattr(model_class, method):
        raise ValueError(f"--{option} does not work with --model {name}. Use --model {fitting}.")
    folder = model_folder(source)
    with explained_damage(folder):
        model = getattr(model_class, method)(folder, **options)
    check_finite(model, f"cannot start from {source}")
    return model


def configuration(
    kind: ModelKind, name: str, preset: str | None, options: dict[str, Any]
) -> PreTrainedConfig:
    """Returns the configuration of a model type, in the published size `preset` if it is not None."""
    config_class = config_class_of(kind, name)
    if not issubclass(config_class, CheckedConfig):
        check_encoder_sizes(options)
    if preset is None:
        return config_class(**options)
    if not hasattr(config_class, "preset"):
        raise ValueError(f"'{name}' has no presets. Leave out --preset, and set sizes with --set NAME=VALUE.")
    return config_class.preset(preset, **options)


def config_class_of(kind: ModelKind, name: str) -> type[PreTrainedConfig]:
    """Returns the configuration class of a model type.

    Raises ValueError if there is no such model of this kind.
    """
    if name not in CONFIG_MAPPING or CONFIG_MAPPING[name] not in kind.classes:
        known = sorted(config.model_type for config in kind.classes)
        raise ValueError(f"no model '{name}' for {kind.purpose}. Known: {', '.join(known)}.")
    return CONFIG_MAPPING[name]


def from_weights(kind: ModelKind, weights: str, options: dict[str, Any]) -> PreTrainedModel:
    """Loads a checkpoint and adapts its classifier to the new classes, which the model logs."""
    source = model_folder(weights)
    with explained_damage(source):
        model = kind.auto_class.from_pretrained(source, ignore_mismatched_sizes=True, **options)
    check_finite(model, f"cannot start from {source}")
    return model


def ignore_index_field(config: PreTrainedConfig) -> str:
    """Returns the field of the label that the loss ignores; transformers has two names for it."""
    field = next((name for name in IGNORE_INDEX_FIELDS if hasattr(config, name)), None)
    if field is None:
        raise ValueError(
            f"'{config.model_type}' is not a semantic segmenter: its loss cannot ignore pixels. Use one, such as "
            "glam_swin or segformer."
        )
    return field


def class_names(model: PreTrainedModel) -> list[str]:
    """Returns the class names by id."""
    return list(model.config.id2label.values())


def open_model(name: str) -> tuple[PreTrainedModel, BaseImageProcessor, str]:
    """Opens a segmenter for inference.

    Args:
        name: A run folder, a folder written by `save_pretrained`, or a name on the Hub.

    Returns:
        The model in evaluation mode, its image processor, and the folder or name that they were loaded from.

    Raises:
        ValueError: If a file is damaged, or weights are missing or not finite.
    """
    disable_progress_bar()  # that of transformers; loading takes a moment
    source = model_folder(name)
    model = load_model(AutoModelForSemanticSegmentation, source)
    return model, load_processor(source), source


def check_classes(model: PreTrainedModel, data: Any) -> list[str]:
    """Returns the model's class names.

    Raises ValueError if the data has another number of classes; warns if names differ.
    """
    known, found = (
        [model.config.id2label[index] for index in range(model.config.num_labels)],
        list(data.classes),
    )
    if len(known) != len(found):
        raise ValueError(
            f"the model has {len(known)} classes ({', '.join(known[:5])}, ...), the data {len(found)} "
            f"({', '.join(found[:5])}, ...). Use data with the model's classes, or fine-tune the model with "
            "contextseg-train --weights."
        )
    if different := [pair for pair in zip(known, found, strict=True) if pair[0] != pair[1]]:
        logger.warning(
            "class '%s' of the model is '%s' in the data (%d names differ)", *different[0], len(different)
        )
    return known


def parse_overrides(settings: list[str]) -> dict[str, Any]:
    """Parses --set: `["embed_dim=32", "depths=[2,2,2,2]", "loss=cross_entropy+dice"]` -> values by field
    name.
    """
    overrides = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name:
            raise ValueError(
                f"--set {setting} has no value. Write --set NAME=VALUE, such as --set embed_dim=32."
            )
        overrides[name.strip().replace("-", "_")] = parse_value(text.strip())
    return overrides


def parse_value(text: str) -> Any:
    """Parses a number, list, boolean or null, in JSON or Python syntax; otherwise a string."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return text


def describe(model: nn.Module) -> str:
    """Returns class name and number of parameters."""
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    return f"{type(model).__name__}, {millions:.1f} M parameters"
