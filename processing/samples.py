"""What samples of images with masks hold, for data sets and for what takes their samples."""

from collections.abc import Mapping, Sequence
from typing import Any

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
    """The option of an image processor for the sample of a float array, which is on the scale 0..255 already."""
    is_told = VALUE_RANGE in sample and hasattr(processor, VALUE_RANGE)
    return {VALUE_RANGE: sample[VALUE_RANGE]} if is_told else {}


def check_sizes(image: Sequence[int], mask: Sequence[int], name: str) -> None:
    if tuple(image) != tuple(mask):
        turned = " They would fit after a quarter turn: the image may be turned by its EXIF orientation."
        hint = turned if tuple(image) == tuple(mask)[::-1] else ""
        raise ValueError(
            f"the mask of '{name}' is {mask[1]}x{mask[0]}, but its image is {image[1]}x{image[0]} "
            f"(width x height). Make them the same size; resize masks by nearest neighbor.{hint}"
        )
