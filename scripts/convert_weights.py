"""Writes a repository that `from_pretrained` opens from the weights of somebody else's code."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..configuration.configuration_glam_swin import GlamSwinConfig
from ..modeling.renaming import read_weights
from ..processing.image_processing_segmentation import SegmentationImageProcessor
from .conversion.cswin_official import cswin_from_official
from .conversion.glam_official import glam_swin_from_official
from .conversion.segdeformer_official import segdeformer_from_official
from .conversion.swin import glam_swin_from_transformers

# Of ImageNet, in the range 0 to 1: what the GLAM authors and Swin's normalise with.
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SOURCES = ("cswin-official", "glam-official", "segdeformer-official", "swin")


def build_model(
    source: str, weights: str | Path, arguments: dict[str, Any] | None, max_image_size: tuple[int, int] | None
) -> PreTrainedModel:
    """Our model with the weights of a source, by the source's name."""
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
    return glam_swin_from_official(read_weights(weights), arguments, max_image_size)


def convert_weights(
    source: str,
    weights: str | Path,
    output: str | Path,
    arguments: str | Path | None = None,
    max_image_size: tuple[int, int] | None = None,
) -> PreTrainedModel:
    """Converts a checkpoint and writes model and image processor to `output`."""
    options = None if arguments is None else json.loads(Path(arguments).read_text())
    model = build_model(source, weights, options, max_image_size)
    model.save_pretrained(output)
    SegmentationImageProcessor(image_mean=IMAGE_MEAN, image_std=IMAGE_STD).save_pretrained(output)
    return model


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="contextseg-convert", description=__doc__)
    parser.add_argument(
        "--source",
        choices=SOURCES,
        required=True,
        help="glam-official, cswin-official, segdeformer-official: a file of those authors' repository; swin: a folder or Hub name of "
        "transformers' Swin or UPerNet with Swin",
    )
    parser.add_argument("--weights", required=True, help="the file (.safetensors, .pth), folder or Hub name")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument(
        "--arguments",
        help="JSON file; for glam-official and cswin-official the authors' constructor arguments, for the others fields of our "
        "configuration, such as id2label (swin: by default no global tokens, which computes the same as the source)",
    )
    parser.add_argument(
        "--max-image-size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="glam-official: leave out the position rows that no image up to this size reads",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `contextseg-convert`."""
    arguments = parse_arguments(argv)
    size = None if arguments.max_image_size is None else tuple(arguments.max_image_size)
    try:
        model = convert_weights(
            arguments.source, arguments.weights, arguments.output, arguments.arguments, size
        )
    except (ValueError, OSError) as error:
        raise SystemExit(f"contextseg-convert: {error}") from None
    print(f"{type(model).__name__} with {model.num_parameters():,} parameters written to {arguments.output}")
    for line in remarks(model):
        print(line)


def remarks(model: PreTrainedModel) -> list[str]:
    """What the user of a converted model should know."""
    lines = []
    if not isinstance(model.config, GlamSwinConfig):
        return lines
    if model.config.use_global_attention and model.config.num_global_tokens:
        lines.append("The global attention of each stage's last block was left out: no output depends on it.")
    if rows := model.config.global_position_rows:
        limits = [count // model.config.num_global_tokens for count in rows if count]
        lines.append(
            f"Its position tables serve images of up to {', '.join(map(str, limits))} windows per stage."
        )
    return lines


if __name__ == "__main__":
    main()
