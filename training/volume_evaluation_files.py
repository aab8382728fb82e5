"""Files of an evaluation of volumes: tables of classes and regions, and the scores of each case."""

import math
from pathlib import Path
from typing import Any

from ..processing.metrics import percent
from ..processing.plain_text import counted, csv_text, markdown_table, markdown_text
from ..processing.volumes.volume_scores import SCORES, VolumeScores
from .evaluation_files import write_csv, write_scores

WORST = 5  # cases to name


def report_volumes(
    results: dict[str, Any], facts: dict[str, Any], scores: VolumeScores, folder: Path
) -> None:
    """Prints the scores of a segmenter of volumes, and writes them.

    Args:
        results: Result of `VolumeScores.compute`.
        facts: Model, data and protocol, by name.
        scores: The scores of the cases.
        folder: Folder for evaluation.json, .md and .csv, and cases.csv; created if needed.
    """
    notes = [means_in_words(results, scores), *left_out(scores), *lowest(scores)]
    write_scores(results, facts, volume_table(results, scores), "\n".join(notes), folder)
    write_csv(folder / "cases.csv", [CASE_COLUMNS, *case_rows(scores)])
    print(f"the scores of each case are {folder / 'cases.csv'}")


CASE_COLUMNS = ["case", "class", "kind", *SCORES, "truth_voxels", "predicted_voxels"]


def case_rows(scores: VolumeScores) -> list[list[Any]]:
    """One row for each case and structure, with the columns of `CASE_COLUMNS`."""
    return [
        [
            csv_text(case.name),
            csv_text(structure.name),
            "region" if structure.is_region else "class",
            *(getattr(case, key)[index] for key in CASE_COLUMNS[3:]),
        ]
        for case in scores.cases
        for index, structure in enumerate(scores.structures)
    ]


def volume_table(results: dict[str, Any], scores: VolumeScores) -> str:
    """Formats scores as a Markdown table: a line for each class and their mean, then the same of regions."""
    rows = [table_row(row) for row in results["per_class"]]
    rows.append(mean_row("mean", results, "mean_"))
    if results["per_region"]:
        rows += [table_row(row) for row in results["per_region"]]
        rows.append(mean_row("mean of regions", results, "mean_region_"))
    unit = unit_of(scores)
    return markdown_table(
        ["class", "Dice %", f"HD95 {unit}", "NSD %", "cases in truth", "cases predicted"], rows
    )


def table_row(row: dict[str, Any]) -> list[str]:
    cells = [percent(row["dice"]), distance(row["hd95"]), percent(row["nsd"])]
    return [markdown_text(row["name"]), *cells, f"{row['truth_cases']:,}", f"{row['predicted_cases']:,}"]


def mean_row(title: str, results: dict[str, Any], prefix: str) -> list[str]:
    dice, hd95, nsd = (results[prefix + score] for score in SCORES)
    return [f"**{title}**", percent(dice), distance(hd95), percent(nsd), "", ""]


def means_in_words(results: dict[str, Any], scores: VolumeScores) -> str:
    """The means in one line, with what they are means of."""
    words = [
        f"Dice {percent(results['mean_dice'])} %",
        f"HD95 {distance(results['mean_hd95'])} {unit_of(scores)}",
    ]
    if scores.surface_rule != "nnformer":
        words.append(f"NSD {percent(results['mean_nsd'])} % at {scores.tolerance:g} mm")
    cases = counted(len(scores.cases), "case", "cases")
    classes = counted(len(scores.averaged), "class", "classes")
    return f"{', '.join(words)}: means over {cases}, then over {classes}"


def left_out(scores: VolumeScores) -> list[str]:
    """Says how many cases have no HD95 although the class is there, because truth or prediction lacks it."""
    if scores.surface_rule == "nnformer":
        return [
            "HD95 is in voxels, and 0 where truth or prediction lacks the class, as in nnFormer's evaluation"
        ]
    counts = {
        structure.name: sum(
            (case.truth_voxels[index] > 0) != (case.predicted_voxels[index] > 0) for case in scores.cases
        )
        for index, structure in enumerate(scores.structures)
    }
    told = ", ".join(f"{markdown_text(name)} {count}" for name, count in counts.items() if count)
    return [f"HD95 leaves out cases in which truth or prediction lacks the class: {told}"] if told else []


def lowest(scores: VolumeScores) -> list[str]:
    """Names the cases with the lowest mean Dice."""
    told = [f"{markdown_text(case['name'])} {percent(case['dice'])} %" for case in worst_cases(scores)]
    return [f"lowest Dice: {', '.join(told)}"] if len(scores.cases) > 1 and told else []


def worst_cases(scores: VolumeScores) -> list[dict[str, Any]]:
    """`name` and mean `dice` of the cases with the lowest mean Dice, the lowest first."""
    means = [{"name": case.name, "dice": scores.case_mean(case)} for case in scores.cases]
    return sorted((case for case in means if not math.isnan(case["dice"])), key=lambda case: case["dice"])[
        :WORST
    ]


def unit_of(scores: VolumeScores) -> str:
    return "voxels" if scores.surface_rule == "nnformer" else "mm"


def distance(value: float) -> str:
    """A distance with two decimals; a dash for NaN."""
    return "-" if math.isnan(value) else f"{value:.2f}"
