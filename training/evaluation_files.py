"""Files of an evaluation: scores as JSON, Markdown and CSV, and the confusion matrix."""

import csv
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..processing.atomic_write import atomic_write
from ..processing.metrics import ConfusionMatrix, percent, scores_table
from ..processing.plain_text import csv_text, markdown_text
from .evaluation_options import EvaluateArguments
from .plots import plot_confusion
from .records import environment, write_json, write_whole


def facts_of(
    arguments: EvaluateArguments,
    scores: dict[str, Any],
    failures: list[str],
    num_images: int,
    started: float,
    unit: str = "image",
) -> dict[str, Any]:
    """Returns what the files say of an evaluation, and adds `not_scored` to the scores unless it is empty.

    Args:
        arguments: Options of the command.
        scores: The scores.
        failures: Why images could not be scored.
        num_images: Number of images, with those that could not be scored.
        started: When the evaluation began, by `time.perf_counter`.
        unit: What is scored. Default: "image".

    Raises:
        ValueError: If no image could be scored.
    """
    if len(failures) == num_images:
        raise ValueError(f"none of the {num_images} {unit}s can be scored. The first error: {failures[0]}")
    facts = {
        "data": arguments.data,
        f"{unit}s": num_images - len(failures),
        "seconds": round(time.perf_counter() - started, 1),
    }
    if failures:
        facts[f"{unit}s that could not be scored"] = len(failures)
        scores["not_scored"] = failures
    return facts


def report(scores: dict[str, Any], facts: dict[str, Any], confusion: ConfusionMatrix, folder: Path) -> None:
    """Prints the scores of a segmenter, and writes them and the confusion matrix.

    Args:
        scores: Result of `ConfusionMatrix.compute`, with `boundary_iou` and `boundary_f` too.
        facts: Model, data and protocol, by name.
        confusion: The counts.
        folder: Folder for evaluation.json, .md and .csv, confusion.csv and .png; created if needed.
    """
    means = (
        f"mIoU {percent(scores['mean_iou'])} %, pixel accuracy {percent(scores['pixel_accuracy'])} %, "
        f"boundary IoU {percent(scores['boundary_iou'])} %, boundary F {percent(scores['boundary_f'])} %"
    )
    write_scores(scores, facts, scores_table(scores), f"{means} ({facts['boundaries']})", folder)
    names = [row["name"] for row in scores["per_class"]]
    counts, cells = confusion.matrix.tolist(), [csv_text(name) for name in names]
    write_csv(
        folder / "confusion.csv",
        [["label", *cells], *([name, *row] for name, row in zip(cells, counts, strict=True))],
    )
    plot_confusion(confusion.matrix.cpu().numpy(), names, folder / "confusion.png", means)
    print(f"the confusion matrix is {folder / 'confusion.csv'} and .png")


def write_scores(scores: dict[str, Any], facts: dict[str, Any], table: str, means: str, folder: Path) -> None:
    """Prints the scores of any model, and writes evaluation.json, .md and .csv.

    Args:
        scores: Scores by name, and `per_class`, one dict with a `name` per class; of volumes `per_region`, too.
        facts: Model, data and protocol, by name.
        table: The scores of the classes, in Markdown.
        means: The scores over all classes, in words.
        folder: Created if needed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "evaluation.json", {**facts, **scores, **environment()})
    text = "\n".join(f"- {name}: {markdown_text(str(value))}" for name, value in facts.items())
    write_whole(folder / "evaluation.md", f"# Evaluation\n\n{text}\n\n{table}\n\n{means}\n")
    rows = [{**row, "name": csv_text(row["name"])} for row in scores["per_class"]]
    if "per_region" in scores:
        regions = [{**row, "name": csv_text(row["name"])} for row in scores["per_region"]]
        rows = [{**row, "kind": "class"} for row in rows] + [{**row, "kind": "region"} for row in regions]
    write_csv(folder / "evaluation.csv", [list(rows[0]), *(row.values() for row in rows)])
    print(f"{table}\n\n{means}\nwritten to {folder / 'evaluation.json'}, .md and .csv")


def write_csv(path: Path, rows: list[Iterable[Any]]) -> None:
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
