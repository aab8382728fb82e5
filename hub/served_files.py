"""What files for other runtimes share: facts about the model, and the check at sizes that the exporter never saw.

Legend: B batch, C channels, K classes, H, W pixels, h, w cells of the logits.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel

from ..modeling.input_channels import channels_of
from ..processing.mask_models import gives_scores
from ..processing.palettes import class_colors
from ..processing.plain_text import one_line
from .served_processing import PixelArithmetic, crop_rule, resize_rule
from .served_segmenters import ServedIds, ServedLogits, ServedSegmenter

TRACED = (2, 768, 1024)  # images without content, so their size costs nothing; several windows in every stage
CHECKED = ((1, 160, 224), (3, 224, 96), (2, 203, 261), (1, 333, 187))  # images, height, width
MULTIPLES = (1, 32)  # of the sides: encoders of other libraries may be translated for whole cells alone
TOLERANCE = 1e-3  # of the logits' range
# What models raise that do not take images, or not of this size, or that do not give logits.
REFUSALS = (ArithmeticError, AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class ServedFile:
    """A file that was written, and how far its results are from PyTorch's."""

    path: Path
    signature: str  # names, shapes and types of input and output
    difference: float  # the largest at the checked sizes, as a share of the logits' range
    multiple: int = 1  # heights and widths that the file takes are multiples of it


def check_new_file(path: Path) -> None:
    """Raises ValueError if the file exists, or its folder does not."""
    if path.exists():
        raise ValueError(f"{path} already exists. Delete it, or give the name of a new file.")
    if not path.parent.is_dir():
        raise ValueError(f"the folder {path.parent} does not exist. Make it, or give another path.")


def served(model: PreTrainedModel, processor: BaseImageProcessor, with_processing: bool) -> ServedSegmenter:
    """The module that a file holds, in evaluation mode.

    Raises ValueError if the model is not a segmenter of images of any size in float32 on the CPU, or has another number
    of channels than the processor; with processing, also if what the processor does cannot be inside.
    """
    if gives_scores(model):
        raise ValueError(
            f"a file is of a segmenter that gives logits, and {model.config.model_type} classifies masks. Use its folder with "
            "transformers."
        )
    if (model.dtype, model.device.type) != (torch.float32, "cpu"):
        raise ValueError(
            f"the model is {model.dtype} on {model.device}; float32 on the CPU is required. Call model.float().cpu() first."
        )
    check_logits(ServedLogits(model, processor).eval())
    return (ServedIds if with_processing else ServedLogits)(model, processor).eval()


def check_logits(module: ServedLogits) -> None:
    """Raises ValueError unless the model gives logits (B, K, h, w) for images of several sizes."""
    labels, reasons = module.model.config.num_labels, []
    for multiple in MULTIPLES:
        images = checked_images(module, *CHECKED[0], multiple), checked_images(module, *CHECKED[-1], multiple)
        try:
            with torch.no_grad():
                shapes = [tuple(module(image).shape) for image in images]
        except REFUSALS as error:
            reasons.append(one_line(str(error), 150))
            continue
        if all(len(shape) == 4 and shape[1] == labels for shape in shapes):
            return
        reasons.append(f"its logits have the shape {shapes[0]}")
    raise ValueError(
        f"a file is of a segmenter of images of any size, and this {type(module.model).__name__} is not one "
        f"({reasons[0]}). Use its folder with PyTorch."
    )


def metadata(model: PreTrainedModel, processor: BaseImageProcessor) -> dict[str, str]:
    """What the file says of itself, as JSON."""
    names = model.config.id2label
    labels = [names.get(index, f"class {index}") for index in range(model.config.num_labels)]
    value_range = getattr(processor, "value_range", None)
    facts = {
        "labels": labels,
        "palette": class_colors(getattr(processor, "palette", None), len(labels)),
        **asdict(PixelArithmetic.of(processor, channels_of(model.config))),
        "value_range": value_range and list(value_range),
        "size": resize_rule(processor),
        "crop_size": crop_rule(processor),
    }
    return {name: json.dumps(value, ensure_ascii=False) for name, value in facts.items()}


def checked(served: ServedSegmenter, run: Callable[[Tensor], Tensor | None], path: Path) -> tuple[float, int]:
    """Compares a written file with its module.

    Args:
        served: What the file holds.
        run: The file as a function of its input; returns None if its runtime refuses it.
        path: Its name in the error.

    Returns:
        The largest difference as a share of the logits' range, and of what heights and widths must be multiples.

    Raises:
        ValueError: If results differ by more than 1e-3 of the logits' range.
    """
    for multiple in MULTIPLES:
        difference = largest_difference(served, run, multiple)
        if difference <= TOLERANCE:
            return difference, multiple
    if math.isinf(difference):
        reason = "what was traced holds for images of some sizes alone"
    else:
        reason = (
            f"its results differ from the model's in PyTorch by {difference:.1e} of the logits' range, more than "
            f"{TOLERANCE:g}"
        )
    raise ValueError(f"{path} was not written: {reason}. Use the model's folder with PyTorch.")


def largest_difference(
    served: ServedSegmenter, run: Callable[[Tensor], Tensor | None], multiple: int = 1
) -> float:
    """How far results are from PyTorch's, as a share of the logits' range; infinite for another shape or none.

    Args:
        served: What the file holds.
        run: See `checked`.
        multiple: To what the sides of the checked sizes are rounded up.
    """
    differences = []
    for size in CHECKED:
        images = checked_images(served, *size, multiple)
        result = run(images)
        try:
            with torch.no_grad():
                differences.append(math.inf if result is None else served.difference(images, result))
        except REFUSALS:  # the model itself takes whole cells alone
            differences.append(math.inf)
        if differences[-1] > TOLERANCE:
            break
    return max(differences)


def checked_images(served: ServedSegmenter, count: int, height: int, width: int, multiple: int) -> Tensor:
    """An input whose sides are rounded up to a multiple."""
    return served.images(count, *(-(-side // multiple) * multiple for side in (height, width)))
