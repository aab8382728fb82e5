"""contextseg-predict: segments image files.

contextseg-predict runs/streets photo.jpg big.tif folder/ --output masks/
contextseg-predict runs/streets big.tif --window 1024 --confidence --entropy
"""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..training.command_line import (
    MODEL_HELP,
    CommandLine,
    CommandOptions,
    option,
    positional,
    short_errors,
)
from ..training.inference_options import InferenceOptions

if TYPE_CHECKING:
    from ..processing.prediction_files import Job

PROGRAM = "contextseg-predict"
DESCRIPTION = """Segment image files. Each mask is a PNG with the pixel layout of its image file (also for photographs with an EXIF
rotation); its values are class ids, and its palette shows them in color. Files that cannot be read are reported at the end."""


@dataclass
class PredictArguments(CommandOptions, InferenceOptions):
    model: str = positional(MODEL_HELP)
    images: list[str] = positional("image files, and folders that are searched for them")
    output: str = option(
        "masks",
        "folder for the masks, which keep the file names and subfolders of the images",
        metavar="FOLDER",
    )
    overlay: bool = option(
        False, "also write the images overlaid with class colors to overlays/ in the output folder"
    )
    confidence: bool = option(
        False, "also write the probability of the predicted class to confidence/: 16-bit PNG, 65535 is 1"
    )
    entropy: bool = option(
        False,
        "also write the entropy divided by log K to entropy/: 16-bit PNG, 65535 is 1 (all classes equally likely)",
    )
    probabilities: bool = option(
        False, "also write the probabilities of all K classes to probabilities/: .npy, float16 (K, H, W)"
    )
    explain: str | None = option(
        None,
        "also write which pixels the pixel at X,Y attends to, to attention/ (GLAM-Swin only)",
        metavar="X,Y",
    )
    cpu: bool = option(False, "run on the CPU even if there is a GPU")


def new_parser() -> CommandLine:
    return CommandLine(PredictArguments, PROGRAM, DESCRIPTION)


def main(argv: list[str] | None = None) -> int:
    arguments = new_parser().arguments(argv)
    with short_errors(PROGRAM, arguments.traceback):
        failures = predict(arguments)
    for job, message in failures:
        print(message if str(job.source) in message else f"{job.source}: {message}", file=sys.stderr)
    return 1 if failures else 0


def predict(arguments: PredictArguments) -> "list[tuple[Job, str]]":
    """Segments all images and writes the results. Returns the files that could not be segmented, and why."""
    from accelerate import Accelerator

    from ..modeling.explanations import global_attention_maps
    from ..processing.prediction import Predictor
    from ..processing.prediction_files import find_jobs
    from ..processing.prediction_maps import MAPS
    from ..processing.progress import progress
    from ..training.models import open_model

    position = parse_position(arguments.explain) if arguments.explain else None
    inference = arguments.inference()
    jobs = find_jobs(arguments.images, arguments.output)
    model, processor, _ = open_model(arguments.model)
    model.to(Accelerator(cpu=arguments.cpu).device)
    maps = [name for name in MAPS if getattr(arguments, name)]
    results = {"maps": maps, "overlay": arguments.overlay}
    predictor = Predictor(
        model, processor, inference, **results, explain=position, attention=global_attention_maps
    )
    failures = []
    for job in progress(jobs, unit="image", disable=len(jobs) == 1):
        try:
            predictor.run(job)
        except (ValueError, FileNotFoundError, IsADirectoryError, PermissionError) as error:
            failures.append((job, str(error)))
    print(f"{len(jobs) - len(failures)} of {len(jobs)} images segmented into {arguments.output}")
    return failures


def parse_position(text: str) -> tuple[int, int]:
    """Parses --explain: `"120,45"` -> (120, 45), pixels from the left and from the top."""
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdigit() for part in parts):
        raise ValueError(
            f"--explain {text} is not a position. Write X,Y in pixels from the left and the top, such as 120,45."
        )
    return int(parts[0]), int(parts[1])


if __name__ == "__main__":
    sys.exit(main())
