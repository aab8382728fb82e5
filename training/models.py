"""Kinds of model, and opening a trained one; `starting_points.py` builds the model of a new run."""

import ast
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils.logging import disable_progress_bar

from .. import modeling  # noqa: F401 - registers our models in transformers' tables, which are read below
from ..configuration.ranges import shown
from ..processing.image_files import same_name
from .checkpoints import model_folder
from .model_files import check_model_files, explained_values, load_model, load_processor
from .model_names import explained_absence

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


TASKS_BY_HEAD = {"ForImageClassification": "classification", "ForObjectDetection": "detection"}

IGNORE_INDEX_FIELDS = ("semantic_loss_ignore_index", "loss_ignore_index")


def config_class_of(kind: ModelKind, name: str) -> type[PreTrainedConfig]:
    """Returns the configuration class of a model type.

    Raises ValueError if there is no such model of this kind.
    """
    if name not in CONFIG_MAPPING or CONFIG_MAPPING[name] not in kind.classes:
        raise ValueError(f"no model '{name}' for {kind.purpose}. Known: {known_types(kind)}.")
    return CONFIG_MAPPING[name]


def known_types(kind: ModelKind) -> str:
    """Returns the model types of a kind, for messages."""
    return ", ".join(sorted(config.model_type for config in kind.classes))


def ignore_index_field(config: PreTrainedConfig) -> str:
    """Returns the field of the label that the loss ignores; transformers has two names for it."""
    field = next((name for name in IGNORE_INDEX_FIELDS if hasattr(config, name)), None)
    if field is None:
        raise ValueError(
            f"'{config.model_type}' is not a semantic segmenter: its loss cannot ignore pixels. Use one, such as "
            "glam_swin or segformer."
        )
    return field


def channels_of(config: PreTrainedConfig) -> int:
    """Returns the number of channels of a model's images, which some models store with their backbone."""
    backbone = getattr(config, "backbone_config", None)
    return getattr(config, "num_channels", None) or getattr(backbone, "num_channels", None) or 3


def class_names(model: PreTrainedModel) -> list[str]:
    """Returns the class names by id."""
    return list(model.config.id2label.values())


def task_of_model(name: str) -> str:
    """Returns what a model does: "segmentation", "classification" or "detection".

    Args:
        name: A run folder, a folder written by `save_pretrained`, or a name on the Hub.
    """
    source = model_folder(name)
    check_model_files(Path(source))
    with explained_values(source), explained_absence(source):
        return task_of_config(AutoConfig.from_pretrained(source))


def task_of_config(config: PreTrainedConfig) -> str:
    """Returns what the model of a saved configuration does, from the name of its class."""
    architecture = (config.architectures or [""])[0]
    return next((task for head, task in TASKS_BY_HEAD.items() if architecture.endswith(head)), "segmentation")


def open_model(name: str, kind: ModelKind = SEGMENTER) -> tuple[PreTrainedModel, BaseImageProcessor, str]:
    """Opens a model for inference.

    Args:
        name: A run folder, a folder written by `save_pretrained`, or a name on the Hub.
        kind: What the model is for. Default: a segmenter.

    Returns:
        The model in evaluation mode, its image processor, and the folder or name that they were loaded from.

    Raises:
        ValueError: If the model is of another kind, a file is damaged, or weights are missing or not finite.
    """
    disable_progress_bar()  # that of transformers; loading takes a moment
    source = model_folder(name)
    check_model_files(Path(source))
    with explained_absence(source):
        check_kind(AutoConfig.from_pretrained(source), kind, name)
        model = load_model(kind.auto_class, source)
        return model, load_processor(source), source


def check_kind(config: PreTrainedConfig, kind: ModelKind, name: str) -> None:
    """Raises ValueError if the model `name` with this configuration is not of the kind."""
    if type(config) not in kind.classes:
        architecture = (config.architectures or [f"model of type '{config.model_type}'"])[0]
        raise ValueError(
            f"{name} holds a {architecture}, which this command cannot use for {kind.purpose}. Types of models that "
            f"it can use: {known_types(kind)}."
        )


def check_classes(model: PreTrainedModel, data: Any) -> list[str]:
    """Returns the model's class names, and numbers the classes of the data in the same order.

    Classes with the same names in another order are matched by name, whatever their case and blanks. Where some names differ, classes are
    matched by position with a warning, unless a name that both have is at different positions.

    Raises ValueError if the classes cannot be matched.
    """
    names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    found = list(data.classes)
    known = respelled(names, found)
    if known != found and sorted(known) == sorted(found):
        logger.warning("the data has the classes of the model in another order; they are matched by name")
        data.number_classes_as(known)
        return names
    if len(known) != len(found) or any(
        name in known and known.index(name) != i for i, name in enumerate(found)
    ):
        raise ValueError(
            f"the model has {len(known)} classes and the data {len(found)}. Only in the model: {_beyond(known, found)}; "
            f"only in the data: {_beyond(found, known)}. Give the data the model's classes and names in "
            "classes.json, or fine-tune the model with contextseg-train --init-from."
        )
    if different := [pair for pair in zip(known, found, strict=True) if pair[0] != pair[1]]:
        logger.warning(
            "class '%s' of the model is '%s' in the data (%d names differ)", *different[0], len(different)
        )
    return names


def respelled(names: list[str], others: list[str]) -> list[str]:
    """The names as `others` spell them, where these differ in case, blanks, "_", "-" or Unicode normal form only."""
    spelling = {spelled_plainly(other): other for other in others}
    if len(spelling) < len(others) or len(set(map(spelled_plainly, names))) < len(names):
        return list(names)  # names that differ in nothing else
    return [spelling.get(spelled_plainly(name), name) for name in names]


def spelled_plainly(name: str) -> str:
    return " ".join(re.split(r"[\s_-]+", same_name(name).casefold())).strip()


def match_classes(model: PreTrainedModel, data: Any) -> None:
    """Numbers the classes of labeled images or objects as the model does, by name.

    The data may lack classes of the model. Where no name agrees, as for numbers in place of names, as many classes
    are matched by position, with a warning.

    Raises ValueError if the data has a class that the model does not have.
    """
    found = list(data.classes)
    known = respelled(class_names(model), found)
    if set(found) <= set(known):
        data.number_classes_as(known)
    elif len(found) == len(known) and not set(found) & set(known):
        logger.warning(
            "class '%s' of the model is '%s' in the data, and so on by position", known[0], found[0]
        )
    else:
        raise ValueError(
            f"the data has classes that the model does not have: {_beyond(found, known)}. The model's own are "
            f"{', '.join(known[:5])}{', ...' * (len(known) > 5)}. Rename the classes of the data, or leave those out."
        )


def _beyond(names: list[str], others: list[str]) -> str:
    beyond = [name for name in names if name not in others]
    return ", ".join(beyond[:5]) + ", ..." * (len(beyond) > 5) or "none"


def parse_overrides(settings: list[str]) -> dict[str, Any]:
    """Parses --set: `["embed_dim=32", "depths=[2,2,2,2]", "loss=cross_entropy+dice"]` -> values by field
    name.
    """
    overrides = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name:
            raise ValueError(
                f"--set {shown(setting)} has no value. Write --set NAME=VALUE, such as --set embed_dim=32."
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
