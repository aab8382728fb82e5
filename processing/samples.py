"""What samples of images with masks hold, for data sets and for what takes their samples."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

VALUE_RANGE, SCALE = "value_range", (0.0, 255.0)  # entry of a sample with a float array, and its value
MASK_COLUMNS = (
    "mask",
    "masks",
    "label",
    "labels",
    "annotation",
    "segmentation",
    "segmentation_mask",
    "semantic_mask",
)


def scale_for(processor: Any, sample: Mapping[str, Any]) -> dict[str, Any]:
    """Options of an image processor for a float array, which is on the scale 0..255 and has the model's channels."""
    is_told = VALUE_RANGE in sample and hasattr(processor, VALUE_RANGE)
    return {VALUE_RANGE: sample[VALUE_RANGE], "do_convert_rgb": False} if is_told else {}


def scale_of(image: Any) -> dict[str, Any]:
    """The entry of a sample that states the scale of a float array."""
    is_float = isinstance(image, np.ndarray) and image.dtype.kind == "f"
    return {VALUE_RANGE: SCALE} if is_float else {}


def check_sizes(image: Sequence[int], mask: Sequence[int], name: str) -> None:
    if tuple(image) != tuple(mask):
        turned = " They would fit after a quarter turn: the image may be turned by its EXIF orientation."
        hint = turned if tuple(image) == tuple(mask)[::-1] else ""
        raise ValueError(
            f"the mask of '{name}' is {mask[1]}x{mask[0]}, but its image is {image[1]}x{image[0]} "
            f"(width x height). Make them the same size; resize masks by nearest neighbor.{hint}"
        )
