"""Which form of GLAM learns to use its tokens? Trains the Unet of `contextseg-context` with each.

    python -m contextseg.benchmarks.glam_forms --results glam_forms.jsonl

A form is a path of the tokens (bare, half, transformer), a position encoding in G-MSA and the scale of the initial
tokens. The task is that of the distant cue. Each run adds a line to the file of results; runs that it has already are
skipped. `benchmarks/glam_forms.md` tells the results.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..training.command_line import CommandLine, CommandOptions, option, short_errors
from .results_file import read_results, run_missing

if TYPE_CHECKING:
    from .context_networks import Task

PROGRAM = "python -m contextseg.benchmarks.glam_forms"
DESCRIPTION = (
    "Train and score a small GLAM-Swin-Unet in each form of the global tokens on scenes with a distant cue."
)
SETTINGS = ("size", "scenes", "steps", "batch_size", "learning_rate", "weights_std")
EDGES = (0, 16, 32)  # distances in pixels at which the columns of the table begin
SOLVED = 0.9  # share of far white pixels that follow the flag
WATCHED, WATCH_STEPS = 20, 50  # scenes of the learning curve, and steps between its points


class Cell(NamedTuple):
    """The options of a form, one row of the table."""

    path: str  # "bare", "half" or "transformer"
    positions: str  # "none", "table" or "sines"
    initial: float  # standard deviation of the initial tokens


CELLS = {
    f"{path}, {positions}, {initial:g}": Cell(path, positions, initial)
    for positions, initial, path in product(
        ("none", "table", "sines"), (1, 0.02), ("bare", "half", "transformer")
    )
}


@dataclass
class FormArguments(CommandOptions):
    results: str = option("glam_forms.jsonl", "file to which a line is added for each run", metavar="FILE")
    forms: str | None = option(
        None, "names of forms with '|' between them, e.g. 'bare, none, 1|half, table, 0.02'; by default all"
    )
    seeds: str = option("0,1", "seeds, each a run of every form", metavar="N,N")
    size: int = option(64, "side of a scene in pixels")
    scenes: int = option(1000, "number of training scenes")
    scored: int = option(100, "scenes to score, each under both flags")
    steps: int = option(400, "optimizer steps")
    batch_size: int = option(8, "scenes in each step")
    learning_rate: float = option(1e-3, "peak learning rate of AdamW")
    weights_std: float = option(0.15, "standard deviation of the initial weights of all linear layers")
    tables: bool = option(False, "print the table of the results instead of running")


def main(argv: list[str] | None = None) -> int:
    arguments = CommandLine(FormArguments, PROGRAM, DESCRIPTION).arguments(argv)
    with short_errors(PROGRAM, arguments.traceback):
        if arguments.tables:
            print(tables(read_results(Path(arguments.results))))
            return 0
        for result in run_all(arguments):
            print(json.dumps(result), flush=True)
    return 0


def run_all(arguments: FormArguments) -> Iterator[dict]:
    settings = {name: getattr(arguments, name) for name in SETTINGS}
    names = arguments.forms.split("|") if arguments.forms else list(CELLS)
    return run_missing(
        Path(arguments.results),
        names,
        arguments.seeds,
        lambda name, seed: run(name, seed, arguments),
        settings,
    )


def run(name: str, seed: int, arguments: FormArguments) -> dict:
    """Trains and scores one form."""
    import torch

    from .context_networks import Network, place, predict, score, trained
    from .form_networks import follows, new_model

    task = new_task(arguments)
    images, both = task.training_scenes(seed), task.scored_scenes()
    places = place(both[0].scenes, Network(0).config(), task.edges)
    watched = tuple(type(each)(each.scenes[:WATCHED]) for each in both)
    far = torch.from_numpy(places.bins[:WATCHED] == len(EDGES) - 1)
    curve = []

    def watch(step: int) -> None:
        if step % WATCH_STEPS == 0:
            curve.append(round(follows(model, watched, far), 4))

    torch.manual_seed(seed)
    model = new_model(*CELLS[name], arguments.size, arguments.weights_std)
    started = time.process_time()
    trained(model, images, task, seed, arguments.steps, watch)
    seconds = time.process_time() - started
    rows = score(tuple(predict(model, each) for each in both), both, places)
    return {
        **{key: [round(row[key], 4) for row in rows] for key in ("iou", "follows")},
        "curve": curve,
        "unseen": round(1 - float(places.in_view.sum() / (places.bins >= 0).sum()), 4),
        "parameters": model.num_parameters(),
        "seconds": round(seconds, 1),
    }


def new_task(arguments: FormArguments) -> "Task":
    from .context_networks import Task

    shared = {name: getattr(arguments, name) for name in ("scored", *SETTINGS[:-1])}
    return Task(nearest=12, edges=(*EDGES, arguments.size), patience=1, **shared)


def tables(results: list[dict]) -> str:
    """Markdown: a title and a table for each setting of the runs."""
    parts = []
    for setting in sorted({tuple(one[name] for name in SETTINGS) for one in results}):
        runs = [one for one in results if tuple(one[name] for name in SETTINGS) == setting]
        words = ", ".join(f"`{name}` {value:g}" for name, value in zip(SETTINGS, setting, strict=True))
        parts.append(f"{words}:\n\n{table(runs)}")
    return "\n\n".join(parts)


def table(results: list[dict]) -> str:
    """A Markdown table: the mean over seeds, followed by each seed."""
    far = f"beyond {EDGES[-1] - 1}"
    columns = [
        f"{SOLVED:.0%} follow at step",
        f"follow {far}, %",
        f"IoU {far}, %",
        f"IoU below {EDGES[1]}, %",
    ]
    lines = [f"| path | positions | initial tokens | seeds | {' | '.join(columns)} |"]
    lines.append("|---" * (len(columns) + 4) + "|")
    for name, cell in CELLS.items():
        runs = sorted((one for one in results if one["network"] == name), key=lambda one: one["seed"])
        if runs:
            seeds = ", ".join(str(one["seed"]) for one in runs)
            values = [" / ".join(solved_at(one["curve"]) for one in runs)]
            values += [percents([one[key][-1] for one in runs]) for key in ("follows", "iou")]
            values.append(percents([one["iou"][0] for one in runs]))
            lines.append(f"| {' | '.join(map(str, cell))} | {seeds} | {' | '.join(values)} |")
    return "\n".join(lines)


def solved_at(curve: list[float]) -> str:
    """The first step after which at least `SOLVED` of the far white pixels follow the flag."""
    for number, value in enumerate(curve, start=1):
        if value >= SOLVED:
            return str(number * WATCH_STEPS)
    return "never"


def percents(values: list[float]) -> str:
    each = " / ".join(f"{100 * value:.1f}" for value in values)
    mean = sum(values) / len(values)
    return f"**{100 * mean:.1f}** ({each})" if len(values) > 1 else each


if __name__ == "__main__":
    sys.exit(main())
