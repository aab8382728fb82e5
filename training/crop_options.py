"""Options of training crops, of `contextseg-train` and `contextseg-finetune`."""

from dataclasses import dataclass
from typing import Literal

from .command_line import option


@dataclass(kw_only=True)
class CropOptions:
    """Which crops of an image a segmenter is trained on."""

    _argument_group_name = "Segmentation: training crops"

    crops_per_image: int = option(1, "crops taken from each image in an epoch, for few large images")
    min_scale: float = option(0.5, "smallest factor of the random resizing before the crop")
    max_scale: float = option(2.0, "largest factor of the random resizing before the crop")
    rotation: float = option(
        0.0,
        "largest angle by which training crops are rotated at random; what lies outside the image is ignored",
        metavar="DEGREES",
    )
    resize_share: float = option(
        1.0, "share of the training crops that are resized at random; the others keep the image's scale"
    )
    rotation_share: float = option(1.0, "share of the training crops that are rotated, with --rotation")
    context_sampling: Literal["area", "point"] = option(
        "area",
        "how crops and contexts of a model with two scales are sampled: by the mean over the area of each pixel, or at "
        "single points without smoothing, as the authors of relay tokens do",
    )
