"""How a trained model reads images: from its run, its configuration and its image processor."""

from pathlib import Path
from typing import Any

from transformers import BaseImageProcessor, EomtImageProcessor, PreTrainedModel

from ..modeling.input_channels import channels_of
from ..processing.data.class_table import ClassTable
from ..processing.image_processor_options import REDUCED_LABELS
from ..processing.plain_text import counted
from .models import class_names
from .option_texts import height_and_width
from .reading_options import PixelOptions, ReadingOptions, RgbOptions, reading_names
from .records import read_json


def options_of_run(run: str) -> dict[str, Any]:
    """Returns all options of a run, from its `run.json`; none for other models."""
    folder = Path(run)
    record = next(
        (place / "run.json" for place in (folder, folder.parent) if (place / "run.json").is_file()), None
    )
    return read_json(record).get("arguments", {}) if record else {}


def crop_of_run(run: str) -> tuple[int, int] | None:
    """Returns the (height, width) of the training samples of a run; None for other models."""
    stored = options_of_run(run).get("crop_size")
    return height_and_width(stored, "--crop-size") if isinstance(stored, str) else None


def reading_of_run(run: str) -> ReadingOptions:
    """Returns the options with which the data of a run was read, from its `run.json`; none for other models."""
    stored = options_of_run(run)
    return ReadingOptions(**{name: stored.get(name) for name in reading_names()})


def reading_for(
    options: ReadingOptions, run: str, model: PreTrainedModel, processor: BaseImageProcessor
) -> dict[str, Any]:
    """Returns arguments of `open_data` that read data as a model was trained.

    Args:
        options: The given options, which come first.
        run: Name of the model, as given.
        model: The model, for its channels and class names.
        processor: Its image processor, which stores ranges and how masks encode classes.

    Raises:
        ValueError: If the given number of channels is not that of the model.
    """
    check_channels(options, model)
    palette, reduces_labels = getattr(processor, "palette", None), reduces(processor)
    table = ClassTable(
        class_names(model),
        palette and [tuple(color) for color in palette],
        getattr(processor, "ignore_index", None),
        getattr(processor, "label_map", None) or (REDUCED_LABELS if reduces_labels else None),
    )
    stored = reading_of_run(run).keywords()
    if "classes" in stored and not Path(stored["classes"]).is_file():
        stored["classes"] = table  # the file is gone or elsewhere, but the run has its contents
    stored |= {
        name: value
        for name in ("value_range", "pixel_limit")
        if (value := getattr(processor, name, None)) is not None
    }
    return {**stored, "default_table": table, **options.keywords(), "num_channels": channels_of(model.config)}


def reduces(processor: BaseImageProcessor) -> bool:
    """Whether ids in masks are one too high, and 0 is ignored; EoMT's processor says so by an `ignore_index`."""
    by_ignore_index = isinstance(processor, EomtImageProcessor) and processor.ignore_index is not None
    return by_ignore_index or bool(getattr(processor, "do_reduce_labels", False))


def rgb_reading(options: RgbOptions, run: str, model: PreTrainedModel) -> dict[str, Any]:
    """Returns arguments of `read_image` that read images as a classifier or detector was trained.

    Args:
        options: The given options, which come first.
        run: Name of the model, as given.
        model: The model.

    Raises:
        ValueError: If the model does not take RGB images.
    """
    if (needed := channels_of(model.config)) != 3:
        raise ValueError(
            f"{run} takes images with {counted(needed, 'channel', 'channels')}, but classifiers and detectors are given "
            "RGB images. Use a model with 3 channels."
        )
    return reading_of_run(run).keywords() | options.keywords()


def set_reading(options: PixelOptions, model: PreTrainedModel, processor: BaseImageProcessor) -> None:
    """Makes an image processor read as the given options say. Raises ValueError for other channels than the model's."""
    check_channels(options, model)
    for name, value in options.keywords().items():
        if name != "num_channels":
            setattr(processor, name, value)


def check_channels(options: PixelOptions, model: PreTrainedModel) -> None:
    """Raises ValueError if the given number of channels is not that of the model."""
    needed = channels_of(model.config)
    if options.num_channels not in (None, needed):
        raise ValueError(
            f"--num-channels is {options.num_channels}, but the model takes {counted(needed, 'channel', 'channels')}. Leave it out, or "
            f"train a model with contextseg-train --init-from and --num-channels {options.num_channels}."
        )
