"""contextseg-evaluate: scores a trained segmenter on images with masks.

contextseg-evaluate runs/streets --data data/val
"""

import csv
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .training.arguments import parse, short_errors

PROGRAM = "contextseg-evaluate"
DESCRIPTION = """Score a segmenter on images with masks: whole images of any size, one at a time, each compared with its mask
at the size of the file. Prints a table and writes evaluation.json, .md and .csv."""


@dataclass
class EvaluateArguments:
    model: str  # a run of contextseg-train (its best/), a folder of save_pretrained, or a Hub name
    # Data
    data: str = ""  # folder with images/ and masks/ or of a published data set, or a name for `datasets`
    workers: int | None = None  # processes that load data (default: one fewer than cores, at most 8)
    # Protocol
    flip: bool = False  # average with the prediction for the mirrored image
    # Output
    output: str | None = None  # folder for the results (default: the model's folder)
    # Machine
    cpu: bool = False  # leave GPUs alone
    traceback: bool = False  # show where in the code an error came from


def main(argv: list[str] | None = None) -> int:
    arguments = parse(EvaluateArguments, argv, PROGRAM, DESCRIPTION)
    with short_errors(PROGRAM, arguments.traceback):
        evaluate(arguments)
    return 0


def evaluate(arguments: EvaluateArguments) -> dict[str, Any]:
    """Scores, also written to `arguments.output`."""
    from accelerate import Accelerator
    from tqdm import tqdm

    from .training.data import open_data
    from .training.models import check_classes, open_model
    from .training.official_layouts import with_split
    from .training.scoring import score, whole_images

    if not arguments.data:
        raise ValueError("--data is missing. Give a folder with images/ and masks/, such as data/val.")
    model, processor, source = open_model(arguments.model)
    data = open_data(with_split(arguments.data, "val"))
    accelerator = Accelerator(cpu=arguments.cpu)
    started = time.perf_counter()
    scores = score(
        model.to(accelerator.device),
        processor,
        tqdm(whole_images(data, processor, accelerator, arguments.workers), unit="image"),
        accelerator,
        class_names=check_classes(model, data),
        ignore_index=data.ignore_index,
        flip=arguments.flip,
        with_boundaries=True,
    )
    facts = {
        "model": source,
        "data": arguments.data,
        "images": len(data),
        "protocol": "whole images, batch of one"
        + (", averaged with the mirrored image" if arguments.flip else ""),
        "seconds": round(time.perf_counter() - started, 1),
    }
    if accelerator.is_main_process:
        report(scores, facts, output_folder(arguments))
    return scores


def output_folder(arguments: EvaluateArguments) -> Path:
    """What was asked for; else the folder of the model; else, for a model of the Hub, the current one."""
    if arguments.output is not None:
        return Path(arguments.output)
    return Path(arguments.model) if Path(arguments.model).is_dir() else Path()


def report(scores: dict[str, Any], facts: dict[str, Any], folder: Path) -> None:
    """Prints the table, and writes it as JSON, Markdown and CSV."""
    from ..processing.metrics import percent, scores_table
    from .training.records import environment, write_json

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "evaluation.json", {**facts, **scores, **environment()})
    means = (
        f"mIoU {percent(scores['mean_iou'])} %, pixel accuracy {percent(scores['pixel_accuracy'])} %, "
        f"boundary IoU {percent(scores['boundary_iou'])} %"
    )
    text = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    table = scores_table(scores)
    (folder / "evaluation.md").write_text(f"# Evaluation\n\n{text}\n\n{table}\n\n{means}\n", encoding="utf-8")
    with (folder / "evaluation.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(scores["per_class"][0]))
        writer.writeheader()
        writer.writerows(scores["per_class"])
    print(f"{table}\n\n{means}\nwritten to {folder / 'evaluation.json'}, .md and .csv")


if __name__ == "__main__":
    sys.exit(main())
