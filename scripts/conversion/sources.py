"""Sources of weights, by the name that `contextseg-convert --source` takes."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ...configuration.configuration_glam_swin import GlamSwinConfig
from ...configuration.configuration_nnformer import NnFormerConfig
from ...configuration.configuration_relay import RelayConfig
from ...modeling.renaming import read_weights
from ...processing.image_processing_segmentation import SegmentationImageProcessor
from ...processing.image_processing_volume import VolumeImageProcessor
from .cswin_official import cswin_from_official
from .glam_official import glam_swin_from_official
from .nnformer_official import glam_nnformer_from_official, nnformer_from_official
from .relay_official import relay_from_official
from .segdeformer_official import segdeformer_from_official
from .swin import glam_swin_from_transformers

# ImageNet's mean and std for pixels in 0..1, with which the authors of GLAM and Swin normalize.
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WITH_ARGUMENTS = {
    "cswin-official": cswin_from_official,
    "glam-nnformer-official": glam_nnformer_from_official,
    "nnformer-official": nnformer_from_official,
    "relay-official": relay_from_official,
}


def image_processor(model: PreTrainedModel) -> SegmentationImageProcessor | VolumeImageProcessor:
    """Builds the image processor of a converted model, with the mean and std with which its authors normalize.

    Those of relay tokens only divide by 255 (URUR and Gleason); their other data sets have numbers of their own, which
    are not in the weights. Neither are spacing and intensities of volumes: their processor has the defaults, which keep
    the spacing of each file and normalize by mean and standard deviation of each volume.
    """
    if isinstance(model.config, NnFormerConfig):
        return VolumeImageProcessor()
    if isinstance(model.config, RelayConfig):
        channels = model.config.num_channels
        return SegmentationImageProcessor(image_mean=(0.0,) * channels, image_std=(1.0,) * channels)
    return SegmentationImageProcessor(image_mean=IMAGE_MEAN, image_std=IMAGE_STD)


def converted(
    source: str, weights: str | Path, arguments: dict[str, Any] | None, max_image_size: tuple[int, int] | None
) -> PreTrainedModel:
    """Builds our model with the weights of a source.

    Args:
        source: A name that `contextseg-convert --source` takes.
        weights: A file of weights; for "swin" a folder or a name on the Hub.
        arguments: The authors' constructor arguments, or fields of our configuration, depending on the
            source.
        max_image_size: Height and width of the largest image for which to keep position rows
            ("glam-official").

    Raises:
        ValueError: If the source needs arguments that are missing, or has no position tables to cut.
    """
    if source != "glam-official" and max_image_size is not None:
        raise ValueError(
            f"--max-image-size cuts position tables, which --source {source} does not have. Leave it out."
        )
    if source == "swin":
        return glam_swin_from_transformers(weights, arguments or {})
    if source == "segdeformer-official":
        return segdeformer_from_official(read_weights(weights), arguments or {})
    if arguments is None:
        raise ValueError(
            f"--source {source} needs --arguments: a JSON file with the authors' constructor arguments."
        )
    if source in WITH_ARGUMENTS:
        return WITH_ARGUMENTS[source](read_weights(weights), arguments)
    return glam_swin_from_official(read_weights(weights), arguments, max_image_size)


def remarks(model: PreTrainedModel) -> list[str]:
    """Returns remarks for the user about the converted model, one per line."""
    lines = []
    if isinstance(model.config, RelayConfig):
        lines.append(
            "The image processor only divides by 255, as for URUR and Gleason. For weights of other data, set image_mean "
            "and image_std in preprocessor_config.json."
        )
    if isinstance(model.config, NnFormerConfig):
        lines.append(
            "Spacing and intensities of the training data are not in the weights: set target_spacing, normalization and "
            "intensity in preprocessor_config.json. Until then, volumes keep their spacing and are normalized one by one."
        )
        if model.config.variant == "2021":
            lines.append(
                "What never affects the output was left out: the last downsampling and the heads after the second."
            )
    if not isinstance(model.config, GlamSwinConfig):
        return lines
    if model.config.use_global_attention and model.config.num_global_tokens:
        lines.append(
            "The global attention of each stage's last block was left out: it does not affect the output."
        )
    if rows := model.config.global_position_rows:
        limits = [count // model.config.num_global_tokens for count in rows if count]
        lines.append(
            f"The position tables suffice for images of up to {', '.join(map(str, limits))} windows, by stage."
        )
    return lines
