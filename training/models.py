"""Kinds of model, and opening a trained one; `starting_points.py` builds the model of a new run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING,
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils.logging import disable_progress_bar

from .. import modeling  # noqa: F401 - registers our models in transformers' tables, which are read below
from ..processing.mask_models import MASK_SIZES, MaskSegmenter, check_has_classes, is_mask_model
from ..processing.plain_text import counted
from .checkpoints import model_folder
from .model_files import (
    check_model_files,
    explained_values,
    load_model,
    load_processor,
    with_tokenizer,
)
from .model_names import explained_absence


@dataclass(frozen=True)
class ModelKind:
    """A kind of model: its purpose in words, its model class by configuration class, and its Auto class."""

    purpose: str
    classes: Mapping[type[PreTrainedConfig], type[PreTrainedModel]]
    auto_class: type


SEGMENTER = ModelKind(
    "semantic segmentation", MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING, AutoModelForSemanticSegmentation
)
# Models of transformers that classify masks; `MaskSegmenter` makes segmenters of those in its table.
MASK_CLASSIFIER = ModelKind(
    "semantic segmentation", MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING, AutoModelForUniversalSegmentation
)
CLASSIFIER = ModelKind(
    "image classification", MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, AutoModelForImageClassification
)


TASKS_BY_HEAD = {
    "ForImageClassification": "classification",
    "ForObjectDetection": "detection",
    "ForMaskedImageModeling": "masked_pretraining",
}

OTHER_HEADS = ("Estimation", "DensePrediction", "Matting")  # of types that have a segmenter, too

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


def class_names(model: PreTrainedModel) -> list[str]:
    """Returns the class names by id."""
    return list(model.config.id2label.values())


def task_of_model(name: str) -> str:
    """Returns what a model does: "segmentation", "classification", "detection" or "masked_pretraining".

    Args:
        name: A run folder, a folder written by `save_pretrained`, or a name on the Hub.
    """
    return task_of_config(config_of_model(name))


def config_of_model(name: str) -> PreTrainedConfig:
    """Returns the configuration of a run folder, a folder written by `save_pretrained`, or a name on the Hub.

    Raises:
        ValueError: If a file is damaged.
    """
    source = model_folder(name)
    check_model_files(Path(source))
    with explained_values(source), explained_absence(source):
        return AutoConfig.from_pretrained(source)


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
        The model in evaluation mode, its image processor, and the folder or name that they were loaded from. A
        mask-classification model, such as EoMT, is a `MaskSegmenter`.

    Raises:
        ValueError: If the model is of another kind, a file is damaged, or weights are missing or not finite.
    """
    disable_progress_bar()  # that of transformers; loading takes a moment
    source = model_folder(name)
    check_model_files(Path(source))
    with explained_values(source), explained_absence(source):
        config = AutoConfig.from_pretrained(source)
    kind = kind_for(config, kind)
    check_kind(config, kind, name)
    with explained_absence(source):
        model, processor = load_model(kind.auto_class, source), load_processor(source)
    if kind is MASK_CLASSIFIER:
        needs_text = config.model_type == "oneformer"
        model = MaskSegmenter(model, with_tokenizer(source, processor) if needs_text else processor).eval()
    return model, processor, source


def kind_for(config: PreTrainedConfig, kind: ModelKind) -> ModelKind:
    """Returns the kind; for a segmenter with a mask-classification model's configuration, that of such models."""
    return MASK_CLASSIFIER if kind is SEGMENTER and is_mask_model(config) else kind


def check_kind(config: PreTrainedConfig, kind: ModelKind, name: str) -> None:
    """Raises ValueError if the model `name` with this configuration is not of the kind."""
    check_has_classes(config, name)
    architecture = (config.architectures or [f"model of type '{config.model_type}'"])[0]
    if type(config) not in kind.classes or architecture.endswith(OTHER_HEADS):
        of_masks = f", and {', '.join(MASK_SIZES)}" if kind is SEGMENTER else ""
        raise ValueError(
            f"{name} holds a {architecture}, which this command cannot use for {kind.purpose}. Types of models that "
            f"it can use: {known_types(kind)}{of_masks}."
        )


def describe(model: nn.Module) -> str:
    """Returns class name and number of parameters."""
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    return f"{type(model).__name__}, {millions:.1f} M parameters"


def describe_with_data(model: nn.Module, num_classes: int, num_images: int) -> str:
    """Returns the line that begins a run: the model, its classes, and the images that it learns from."""
    data = (counted(num_classes, "class", "classes"), counted(num_images, "image", "images"))
    return ", ".join([describe(model), *data])
