"""What files for other runtimes share: facts about the model, and the check at sizes that the exporter never saw.

Legend: B batch, C channels, K classes, H, W pixels, h, w cells of the logits.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel

from ..processing.image_processor_options import UnusedSize
from ..processing.palettes import class_colors
from .served_segmenters import ServedIds, ServedLogits, ServedSegmenter

TRACED = (2, 768, 1024)  # images without content, so their size costs nothing; several windows in every stage
CHECKED = ((1, 160, 224), (3, 224, 96), (2, 203, 261), (1, 333, 187))  # images, height, width
MULTIPLES = (1, 32)  # of the sides: encoders of other libraries may be translated for whole cells alone
TOLERANCE = 1e-3  # of the logits' range


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
    """The module that a file holds, in evaluation mode."""
    return (ServedIds if with_processing else ServedLogits)(model, processor).eval()


def metadata(model: PreTrainedModel, processor: BaseImageProcessor) -> dict[str, str]:
    """What the file says of itself, as JSON."""
    labels = [model.config.id2label[index] for index in range(model.config.num_labels)]
    facts = {
        "labels": labels,
        "palette": class_colors(getattr(processor, "palette", None), len(labels)),
        **{name: getattr(processor, name) for name in ("image_mean", "image_std", "rescale_factor")},
        "size": resize_rule(processor),
    }
    return {name: json.dumps(value, ensure_ascii=False) for name, value in facts.items()}


def resize_rule(processor: BaseImageProcessor) -> dict[str, int] | None:
    """The size that a processor resizes images to, such as {"height": 512, "width": 512}; None if it does not."""
    size, resizes = processor.size, processor.do_resize
    if not (not isinstance(size, UnusedSize) if resizes is None else resizes):
        return None
    return {name: side for name, side in dict(size).items() if side is not None}


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
    raise ValueError(
        f"{path} was not written: its results differ from the model's in PyTorch by {difference:.1e} of the logits' "
        f"range, more than {TOLERANCE:g}. Use the model's folder with PyTorch."
    )


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
    for count, *sides in CHECKED:
        images = served.images(count, *(-(-side // multiple) * multiple for side in sides))
        result = run(images)
        with torch.no_grad():
            differences.append(math.inf if result is None else served.difference(images, result))
        if differences[-1] > TOLERANCE:
            break
    return max(differences)
