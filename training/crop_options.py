"""Options of training crops, of `contextseg-train` and `contextseg-finetune`."""

from dataclasses import dataclass

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
