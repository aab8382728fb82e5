"""contextseg-predict: segments image files.

contextseg-predict runs/streets photo.jpg big.tif folder/ --output masks/
contextseg-predict runs/streets big.tif --window 1024 --confidence --entropy
contextseg-predict runs/streets photo.jpg --grad-cam car
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
    grad_cam: str | None = option(
        None,
        "also write what speaks for a class where it is predicted, or for the class of the pixel at X,Y, to grad-cam/",
        metavar="CLASS",
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
    from tqdm import tqdm

    from ..processing.prediction import Predictor
    from ..processing.prediction_files import find_jobs
    from ..processing.prediction_maps import MAPS
    from ..training.explaining import attention_explanation, grad_cam_explanation
    from ..training.models import open_model

    inference = arguments.inference()
    jobs = find_jobs(arguments.images, arguments.output)
    model, processor, _ = open_model(arguments.model)
    model.to(Accelerator(cpu=arguments.cpu).device)
    maps = [name for name in MAPS if getattr(arguments, name)]
    results = {"maps": maps, "overlay": arguments.overlay}
    explanations = {}
    if arguments.explain is not None:
        explanations["attention"] = attention_explanation(model, arguments.explain)
    if arguments.grad_cam is not None:
        explanations["grad-cam"] = grad_cam_explanation(model, arguments.grad_cam)
    predictor = Predictor(model, processor, inference, **results, explanations=explanations)
    failures = []
    for job in tqdm(jobs, unit="image", disable=len(jobs) == 1):
        try:
            predictor.run(job)
        except (ValueError, FileNotFoundError, IsADirectoryError, PermissionError) as error:
            failures.append((job, str(error)))
    print(f"{len(jobs) - len(failures)} of {len(jobs)} images segmented into {arguments.output}")
    return failures


if __name__ == "__main__":
    sys.exit(main())
