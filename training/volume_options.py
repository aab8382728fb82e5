"""Options of training on volumes, of `contextseg-train`, and which options of images have no effect on them."""

from dataclasses import dataclass, fields
from typing import Any, Literal

from .command_line import option

# Options of images alone.
OF_IMAGES = {
    *(
        "base_size",
        "min_scale",
        "max_scale",
        "rotation",
        "resize_share",
        "rotation_share",
        "context_sampling",
    ),
    *("value_range", "pixel_limit", "image_column", "mask_column", "share_context"),
}


@dataclass(kw_only=True)
class VolumeOptions:
    """How volumes are resampled, normalized and cut; what is not given is planned from the training data."""

    _argument_group_name = "Volumes"

    target_spacing: str | None = option(
        None,
        "spacing in millimeters that volumes are resampled to (default: their median, of thick slices that of the thinner ones)",
        metavar="SLICESxROWSxCOLUMNS",
    )
    slice_axis: Literal["z", "y", "x"] | None = option(
        None, "body axis along which slices lie (default: the one with the largest spacing)"
    )
    normalization: Literal["zscore", "ct", "none"] | None = option(
        None,
        "zscore: by the mean of each volume; ct: by the intensities of labeled voxels of the training data (default: ct for "
        "channels named CT, else zscore)",
    )
    crop_to_nonzero: bool = option(
        False, "cut off what is 0 around the body, and normalize by the other voxels, as nnU-Net does"
    )
    foreground_share: float = option(
        1 / 3, "share of the training crops that are centered on a voxel of a random class"
    )
    prepared: str | None = option(
        None,
        "folder for the resampled training volumes, which several runs may share (default: prepared/ in --output)",
        metavar="FOLDER",
    )


def check_for_volumes(arguments: Any) -> None:
    """Raises ValueError if an option that concerns images alone was given for a model of volumes."""
    for name, value, default in values_of(arguments):
        if name in OF_IMAGES and value != default:
            raise ValueError(
                f"--{name.replace('_', '-')} has no effect on volumes. Leave it out, or choose a model of images."
            )
    if arguments.class_weights == "auto":
        raise ValueError(
            "--class-weights auto counts the pixels of images. Give one number per class, or a JSON file of numbers."
        )
    if arguments.blend == "center":
        raise ValueError("--blend center is for images. Use gaussian or constant.")


def check_for_images(arguments: Any) -> None:
    """Raises ValueError if an option that concerns volumes alone was given for a model of images."""
    own = {field.name for field in fields(VolumeOptions)}
    for name, value, default in values_of(arguments):
        if name in own and value != default:
            raise ValueError(
                f"--{name.replace('_', '-')} is an option of volumes. Leave it out, or choose a model of volumes, such as "
                "--model nnformer."
            )


def values_of(arguments: Any) -> list[tuple[str, Any, Any]]:
    """Returns name, value and default of each option."""
    return [(field.name, getattr(arguments, field.name), field.default) for field in fields(arguments)]
