"""contextseg-convert: converts weights of other code bases to a folder that `from_pretrained` loads.

    contextseg-convert --source swin --weights microsoft/swin-tiny-patch4-window7-224 --output swin-tiny

Heavy imports follow the parsing of the command line, so that `--help` answers at once.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..training.command_line import (
    CommandLine,
    CommandOptions,
    option,
    required,
    short_errors,
)
from ..training.option_texts import height_and_width

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROGRAM = "contextseg-convert"
DESCRIPTION = """Convert the weights of another code base, and write a folder with model and image processor that from_pretrained
loads."""


@dataclass(kw_only=True)
class ConvertArguments(CommandOptions):
    source: Literal[
        "cswin-official",
        "glam-nnformer-official",
        "glam-official",
        "nnformer-official",
        "relay-official",
        "segdeformer-official",
        "swin",
    ] = required(
        "*-official: a checkpoint of the authors' repository; swin: a Swin or UPerNet-Swin checkpoint of transformers"
    )
    weights: str = required("weights to convert: a file (.safetensors, .pth), a folder, or a name on the Hub")
    output: str = required("folder to write", metavar="FOLDER")
    arguments: str | None = option(
        None,
        "JSON file; for the official checkpoints but segdeformer-official the authors' constructor arguments, for the others fields of our "
        "configuration, such as id2label (swin: by default without global tokens, which is equivalent to the source)",
        metavar="FILE",
    )
    max_image_size: str | None = option(
        None,
        "glam-official: drop the rows of the position tables that images up to this size do not use",
        metavar="HEIGHTxWIDTH",
    )


def new_parser() -> CommandLine:
    return CommandLine(ConvertArguments, PROGRAM, DESCRIPTION)


def main(argv: list[str] | None = None) -> int:
    arguments = new_parser().arguments(argv)
    with short_errors(PROGRAM, arguments.traceback):
        size = arguments.max_image_size
        model = convert_weights(
            arguments.source,
            arguments.weights,
            arguments.output,
            arguments.arguments,
            size and height_and_width(size, "--max-image-size"),
        )
    from .conversion.sources import remarks

    print(f"{type(model).__name__} with {model.num_parameters():,} parameters written to {arguments.output}")
    for line in remarks(model):
        print(line)
    return 0


def convert_weights(
    source: str,
    weights: str | Path,
    output: str | Path,
    arguments: str | Path | None = None,
    max_image_size: tuple[int, int] | None = None,
) -> "PreTrainedModel":
    """Converts a checkpoint and writes the model and its image processor.

    Args:
        source: Code base of the checkpoint, a name that `--source` takes, such as "nnformer-official".
        weights: A file, or for "swin" a folder or a name on the Hub.
        output: Folder to write.
        arguments: JSON file with the authors' constructor arguments, or with fields of our configuration.
        max_image_size: Height and width of the largest image for which to keep position rows
            ("glam-official").

    Returns:
        The converted model.

    Raises:
        ValueError: If arguments are missing, or something cannot be converted.
    """
    from .conversion.sources import converted, image_processor

    options = None if arguments is None else json.loads(Path(arguments).read_text())
    model = converted(source, weights, options, max_image_size)
    model.save_pretrained(output)
    image_processor(model).save_pretrained(output)
    return model


if __name__ == "__main__":
    sys.exit(main())
