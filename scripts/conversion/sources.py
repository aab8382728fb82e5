"""Sources of weights, by the name that `contextseg-convert --source` takes."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ...configuration.configuration_glam_swin import GlamSwinConfig
from ...modeling.renaming import read_weights
from .cswin_official import cswin_from_official
from .glam_official import glam_swin_from_official
from .relay_official import relay_from_official
from .segdeformer_official import segdeformer_from_official
from .swin import glam_swin_from_transformers


def converted(
    source: str, weights: str | Path, arguments: dict[str, Any] | None, max_image_size: tuple[int, int] | None
) -> PreTrainedModel:
    """Builds our model with the weights of a source.

    Args:
        source: "cswin-official", "glam-official", "relay-official", "segdeformer-official" or "swin".
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
    if source == "cswin-official":
        return cswin_from_official(read_weights(weights), arguments)
    if source == "relay-official":
        return relay_from_official(read_weights(weights), arguments)
    return glam_swin_from_official(read_weights(weights), arguments, max_image_size)


def remarks(model: PreTrainedModel) -> list[str]:
    """Returns remarks for the user about the converted model, one per line."""
    lines = []
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
