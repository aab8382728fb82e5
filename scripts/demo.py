"""contextseg-demo: the whole workflow of the library in two to five minutes, on generated scenes.

    contextseg-demo

Draws labeled scenes whose white areas can only be classified by a distant flag, trains the smallest
GLAM-Swin, scores and saves it, and segments with transformers' pipeline in a Python process that cannot
import contextseg. Writes images and a report.
"""

import sys
import time
from pathlib import Path
from typing import Any

from ..benchmarks.demo_steps import DemoArguments, draw, explain, fresh_folder, save_and_reload, train_nano
from ..training.command_line import CommandLine, short_errors

PROGRAM = "contextseg-demo"
DESCRIPTION = """Draw scenes, train the smallest GLAM-Swin on them, score, save, reload without contextseg, and predict. Needs neither
data nor network, and takes two to five minutes on two cores. The results are in REPORT.md in the output folder."""


def new_parser() -> CommandLine:
    return CommandLine(DemoArguments, PROGRAM, DESCRIPTION)


def main(argv: list[str] | None = None) -> int:
    arguments = new_parser().arguments(argv)
    with short_errors(PROGRAM, arguments.traceback):
        return demo(arguments)


def demo(arguments: DemoArguments) -> int:
    """Runs the five steps; returns the exit code, which is that of the training if it was stopped."""
    from ..benchmarks.demo_report import NEXT, report, summary

    started, folder = time.perf_counter(), fresh_folder(Path(arguments.output))
    say(1, f"drawing {arguments.scenes} training scenes, and others for scoring")
    draw(arguments, folder)
    say(2, f"training GLAM-Swin nano with {arguments.tokens} global tokens per window")
    if code := train_nano(arguments, folder):
        return code
    say(3, "scoring test scenes")
    facts = {"scores": score(folder)}
    say(4, "saving, and predicting with transformers' pipeline in a Python process without contextseg")
    facts |= save_and_reload(arguments, folder)
    say(5, "measuring what global attention looks at, and drawing figures")
    facts |= explain(arguments, folder)
    facts["minutes"] = (time.perf_counter() - started) / 60
    (folder / "REPORT.md").write_text(report(vars(arguments), facts), encoding="utf-8")
    where = f"Read {folder / 'REPORT.md'} and look at {folder / 'scenes.png'}."
    print(f"{summary(facts)}\n{where}\n{NEXT.format(run=folder / 'run')}", end="")
    return 0


def say(step: int, what: str) -> None:
    print(f"\n[{step}/5] {what}", flush=True)


def score(folder: Path) -> dict[str, Any]:
    """Scores the model, as `contextseg-evaluate run --data data/test` does."""
    from .evaluate import EvaluateArguments, evaluate

    return evaluate(EvaluateArguments(str(folder / "run"), data=str(folder / "data" / "test")))


if __name__ == "__main__":
    sys.exit(main())
