"""contextseg-evaluate: scores a segmenter on images with masks, a classifier on labeled images, or a detector.

contextseg-evaluate runs/streets --data data/val
contextseg-evaluate runs/streets --data data/val --window 1024 --overlap 0.25
contextseg-evaluate runs/streets --data data/val --scales 0.5,0.75,1,1.25,1.5,1.75 --flip
"""

import sys
from typing import Any

from ..training.command_line import CommandLine, short_errors
from ..training.evaluation_options import EvaluateArguments
from ..training.inference_options import VOLUMES, check_task
from ..training.interruption import interruptible

PROGRAM = "contextseg-evaluate"
DESCRIPTION = """Score a segmenter on images with masks. Images of any size are predicted one at a time and compared with their masks
at full size. Prints a table and writes it as evaluation.json, .md and .csv, and the confusion matrix as confusion.csv (pixels)
and confusion.png (normalized by row). The score of a class that never occurs is "-" (null in JSON) and left out of the means.
A segmenter of volumes is scored case by case: Dice, HD95 and normalized surface Dice of each class and region, and cases.csv.
A classifier is scored on labeled images, by top-1 and top-5 accuracy; a detector on objects in COCO's format, by average precision."""


def new_parser() -> CommandLine:
    return CommandLine(EvaluateArguments, PROGRAM, DESCRIPTION)


def main(argv: list[str] | None = None) -> int:
    arguments = new_parser().arguments(argv)
    with short_errors(PROGRAM, arguments.traceback), interruptible(PROGRAM):
        scores = evaluate(arguments)
    return 1 if scores.get("not_scored") else 0


def evaluate(arguments: EvaluateArguments) -> dict[str, Any]:
    """Scores a segmenter of images or volumes, an image classifier or a detector, see `training.evaluations`; returns the scores."""
    from ..processing.volumes.volume_inference import takes_volumes
    from ..training.evaluations import EVALUATIONS
    from ..training.models import config_of_model, task_of_config
    from ..training.processes import explained_loss_of_a_peer
    from ..training.sharing import open_accelerator, said_once

    accelerator = open_accelerator(arguments.cpu)
    with said_once(accelerator, PROGRAM, arguments.traceback):
        config = config_of_model(arguments.model)
        task = VOLUMES if takes_volumes(config) else task_of_config(config)
        check_task(arguments, task)
    with explained_loss_of_a_peer(accelerator, "No results were written. Run the command again."):
        return EVALUATIONS[task](arguments)


if __name__ == "__main__":
    sys.exit(main())
