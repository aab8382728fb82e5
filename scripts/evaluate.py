"""contextseg-evaluate: scores a segmenter on images with masks.

contextseg-evaluate runs/streets --data data/val
contextseg-evaluate runs/streets --data data/val --window 1024 --overlap 0.25
contextseg-evaluate runs/streets --data data/val --scales 0.5,0.75,1,1.25,1.5,1.75 --flip
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..training.command_line import (
    MODEL_HELP,
    CommandLine,
    CommandOptions,
    option,
    positional,
    required,
    short_errors,
)
from ..training.inference_options import InferenceOptions
from ..training.interruption import interruptible
from ..training.reading_options import ReadingOptions

PROGRAM = "contextseg-evaluate"
DESCRIPTION = """Score a segmenter on images with masks. Images of any size are predicted one at a time and compared with their masks
at full size. Prints a table and writes it as evaluation.json, .md and .csv, and the confusion matrix as confusion.csv (pixels)
and confusion.png (normalized by row). The score of a class that never occurs is "-" (null in JSON) and left out of the means."""


@dataclass
class EvaluateArguments(CommandOptions, ReadingOptions, InferenceOptions):
    model: str = positional(MODEL_HELP)
    data: str = required(
        "folder with images/ and masks/, folder of a published dataset, or name for `datasets`"
    )
    workers: int | None = option(
        None, "processes that load data (default: number of cores minus one, at most 8)"
    )
    output: str | None = option(
        None, "folder for the results (default: the model's folder)", metavar="FOLDER"
    )
    cpu: bool = option(False, "run on the CPU even if there is a GPU")


def new_parser() -> CommandLine:
    return CommandLine(EvaluateArguments, PROGRAM, DESCRIPTION)


def main(argv: list[str] | None = None) -> int:
    arguments = new_parser().arguments(argv)
    with short_errors(PROGRAM, arguments.traceback), interruptible(PROGRAM):
        not_scored = evaluate(arguments).get("not_scored", [])
    for message in not_scored:
        print(message, file=sys.stderr)
    return 1 if not_scored else 0


def evaluate(arguments: EvaluateArguments) -> dict[str, Any]:
    """Scores a segmenter, and writes the results to the output folder.

    Returns:
        `mean_iou` and the other scores of `ConfusionMatrix.compute`, and boundary IoU and boundary F. If images
        could not be scored, `not_scored` lists them with the reasons, and the scores are those of the others.

    Raises:
        ValueError: If model or data do not exist or do not fit together, or no image can be scored.
    """
    from accelerate import Accelerator

    from ..processing.boundary_metrics import BoundaryF, BoundaryIoU, add_boundaries
    from ..processing.data.datasets import open_data
    from ..processing.data.official_layouts import with_split
    from ..processing.metrics import ConfusionMatrix
    from ..training.evaluation_files import report
    from ..training.models import check_classes, open_model
    from ..training.scoring import count_or_name, whole_images
    from ..training.stored_reading import reading_for

    inference = arguments.inference()
    model, processor, source = open_model(arguments.model)
    reading = reading_for(arguments, arguments.model, model, processor)
    data = open_data(with_split(arguments.data, "val"), **reading)
    names = check_classes(model, data)
    accelerator = Accelerator(cpu=arguments.cpu)
    started = time.perf_counter()
    images = whole_images(data, processor, inference, accelerator, arguments.workers, errors=(Exception,))
    metrics = [kind(len(names), data.ignore_index) for kind in (ConfusionMatrix, BoundaryIoU, BoundaryF)]
    not_scored = count_or_name(model.to(accelerator.device), images, metrics, inference, accelerator)
    confusion, *boundaries = (
        metric.reduced(lambda counts: accelerator.reduce(counts.to(accelerator.device))) for metric in metrics
    )
    if len(not_scored) == len(data):
        raise ValueError(f"none of the {len(data)} images can be scored. The first error: {not_scored[0]}")
    scores = confusion.compute(names)
    add_boundaries(scores, *(metric.compute() for metric in boundaries))
    facts = {
        "model": source,
        "data": arguments.data,
        "images": len(data) - len(not_scored),
        "protocol": f"{inference}, one image at a time",
        "seconds": round(time.perf_counter() - started, 1),
    }
    if not_scored:
        facts["images that could not be scored"] = len(not_scored)
        scores["not_scored"] = not_scored
    if accelerator.is_main_process:
        report(scores, facts, confusion, output_folder(arguments))
    accelerator.end_training()  # threads of its process group can abort a process that ends while they run
    return scores


def output_folder(arguments: EvaluateArguments) -> Path:
    """Returns --output, or the folder of the model, or for a model on the Hub the current folder."""
    if arguments.output is not None:
        return Path(arguments.output)
    return Path(arguments.model) if Path(arguments.model).is_dir() else Path()


if __name__ == "__main__":
    sys.exit(main())
