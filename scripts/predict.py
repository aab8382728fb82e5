"""contextseg-predict: segments image files.

contextseg-predict runs/streets photo.jpg big.tif folder/ --output masks/
contextseg-predict runs/streets big.tif --window 1024 --confidence --entropy
contextseg-predict runs/streets photo.jpg --grad-cam car
"""

import sys
import traceback
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
from ..training.interruption import interruptible
from ..training.reading_options import PixelOptions

if TYPE_CHECKING:
    from ..processing.prediction import Predictor
    from ..processing.prediction_files import Job

PROGRAM = "contextseg-predict"
DESCRIPTION = """Segment image files. Each mask is a PNG with the pixel layout of its image file (also for photographs with an EXIF
rotation); its values are class ids, and its palette shows them in color. Files that cannot be read are reported at the end."""


@dataclass
class PredictArguments(CommandOptions, PixelOptions, InferenceOptions):
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
    with short_errors(PROGRAM, arguments.traceback), interruptible(PROGRAM):
        failures = predict(arguments)
    for message in failures:
        print(message, file=sys.stderr)
    return 1 if failures else 0


def predict(arguments: PredictArguments) -> list[str]:
    """Segments all images and writes the results. Returns which files could not be segmented, and why."""
    from accelerate import Accelerator

    from ..processing.prediction import Predictor
    from ..processing.prediction_files import find_jobs
    from ..processing.prediction_maps import MAPS
    from ..training.explaining import chosen_explanations
    from ..training.models import open_model
    from ..training.stored_reading import set_reading

    inference = arguments.inference()
    failures: list[str] = []
    jobs = find_jobs(
        arguments.images,
        arguments.output,
        lambda error: failures.append(f"{error.filename}: {error.strerror}"),
    )
    model, processor, _ = open_model(arguments.model)
    set_reading(arguments, model, processor)
    model.to(Accelerator(cpu=arguments.cpu).device)
    maps = [name for name in MAPS if getattr(arguments, name)]
    results = {"maps": maps, "overlay": arguments.overlay}
    explanations = chosen_explanations(model, inference, arguments.explain, arguments.grad_cam)
    predictor = Predictor(model, processor, inference, **results, explanations=explanations)
    done = segment(predictor, jobs, failures, arguments)
    print(f"{done} of {len(jobs)} images segmented into {arguments.output}")
    return failures


def segment(
    predictor: "Predictor", jobs: "list[Job]", failures: list[str], arguments: PredictArguments
) -> int:
    """Segments the images of all jobs; adds an error of one to `failures` and goes on. Returns how many are done.

    Raises OSError if no further file can be written, because the disk is full or read-only.
    """
    from ..processing.failures import concerns_every_file, reason, telling
    from ..processing.progress import progress

    done = 0

    def state() -> str:
        named = "".join(f"\n{message}" for message in failures)
        return (
            f"{done} of {len(jobs)} images are segmented into {arguments.output}, each result complete. "
            f"Run the command again to segment all.{named}"
        )

    with telling(state), progress(jobs, unit="image", disable=len(jobs) == 1) as bar:
        for job in bar:
            try:
                predictor.run(job)
                done += 1
            except Exception as error:
                if concerns_every_file(error):
                    raise
                if arguments.traceback:
                    traceback.print_exc()
                failures.append(reason(error, str(job.source)))
    return done


if __name__ == "__main__":
    sys.exit(main())
