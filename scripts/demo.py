"""contextseg-demo: the library's whole way in a few minutes, on scenes that it draws itself.

    contextseg-demo

Draws labelled scenes whose white areas can only be told apart by a far flag, trains the smallest GLAM-Swin, scores it,
saves it, and lets a Python that cannot import contextseg segment with transformers' pipeline. Pictures and a report tell.
"""

import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from ..training.command_line import CommandLine, CommandOptions, option, short_errors

if TYPE_CHECKING:
    from .demonstration import Asked

PROGRAM = "contextseg-demo"
DESCRIPTION = """Draw scenes, train the smallest GLAM-Swin on them, score, save, reload without contextseg, predict. Needs no data and no
network, and up to 5 minutes on 2 cores. REPORT.md in the output folder tells how it went."""

MARKER = ".contextseg-demo"  # a folder without it is never cleared
SPLITS = ("train", "val", "test")
SHOWN = 4  # test scenes in the picture


@dataclass
class DemoArguments(CommandOptions):
    scenes: int = option(1500, "scenes to train on")
    size: int = option(96, "side of a scene in pixels")
    distance: float = option(
        48, "pixels from the flag to the nearest white area, in the scenes that are scored"
    )
    steps: int = option(800, "optimizer steps, of 8 scenes each")
    tokens: int = option(4, "global tokens in each window; 0 is plain Swin, for comparison")
    seed: int = option(0, "seed of the scenes, the initial weights and the order of training")
    output: str = option("demo", "folder for everything; replaces an earlier demonstration")


def new_parser() -> CommandLine:
    return CommandLine(DemoArguments, PROGRAM, DESCRIPTION)


def main(argv: list[str] | None = None) -> int:
    arguments = new_parser().arguments(argv)
    with short_errors(PROGRAM, arguments.traceback):
        return demo(arguments)


def demo(arguments: DemoArguments) -> int:
    """The five steps; the exit code, which is that of the training when it was stopped."""
    from .demo_report import NEXT, report, summary

    started, folder = time.perf_counter(), fresh_folder(Path(arguments.output))
    say(1, f"drawing {arguments.scenes} scenes to train on, and others to score")
    draw(arguments, folder)
    say(2, f"training GLAM-Swin nano with {arguments.tokens} global tokens in each window")
    if code := train_nano(arguments, folder):
        return code
    say(3, "scoring scenes that were not trained on")
    facts = {"scores": score(folder)}
    say(4, "saving, and predicting with transformers' pipeline in a Python without contextseg")
    facts |= save_and_reload(arguments, folder)
    say(5, "asking the model where it looks, and drawing pictures")
    facts |= explain(arguments, folder)
    facts["minutes"] = (time.perf_counter() - started) / 60
    (folder / "REPORT.md").write_text(report(vars(arguments), facts), encoding="utf-8")
    print(
        f"{summary(facts)}\nRead {folder / 'REPORT.md'} and look at {folder / 'scenes.png'}.\n{NEXT}", end=""
    )
    return 0


def say(step: int, what: str) -> None:
    print(f"\n[{step}/5] {what}", flush=True)


def fresh_folder(folder: Path) -> Path:
    """An empty folder that is known as ours, in place of what an earlier demonstration left there."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARKER).exists():
            raise ValueError(
                f"{folder} holds files that are not from contextseg-demo. Choose another --output."
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()
    return folder


def draw(arguments: DemoArguments, folder: Path) -> None:
    """data/train with flags at any distance; data/val and data/test with far flags only."""
    from ..processing.data.scenes import write_scenes

    for split in SPLITS:
        count = {"train": arguments.scenes, "val": 40, "test": 160}[split]
        distance = 0 if split == "train" else arguments.distance
        seed = series(arguments, split)
        write_scenes(folder / "data" / split, count, seed, size=arguments.size, distance=distance)


def series(arguments: DemoArguments, split: str) -> int:
    """The seed of a split's scenes: no two splits, of whatever seeds, share one."""
    return len(SPLITS) * arguments.seed + SPLITS.index(split)


def train_nano(arguments: DemoArguments, folder: Path) -> int:
    """What `contextseg-train` with these options does."""
    from ..processing.data.scenes import CLASSES, FLAGS
    from ..training.options import SegmentationArguments
    from ..training.run import train

    weights = [10 if label in FLAGS else 1 for label in range(len(CLASSES))]  # flags are 0.5 % of the pixels
    return train(
        SegmentationArguments(
            train=str(folder / "data" / "train"),
            val=str(folder / "data" / "val"),
            output=str(folder / "run"),
            preset="nano",
            set=[f"num_global_tokens={arguments.tokens}", f"class_weights={weights}"],
            crop_size=str(arguments.size),
            augmentation=False,
            steps=arguments.steps,
            learning_rate=1e-3,
            clip_norm=1.0,
            seed=arguments.seed,
        )
    )


def score(folder: Path) -> dict[str, Any]:
    """What `contextseg-evaluate run --data data/test` does."""
    from .evaluate import EvaluateArguments, evaluate

    return evaluate(EvaluateArguments(str(folder / "run"), data=str(folder / "data" / "test")))


def save_and_reload(arguments: DemoArguments, folder: Path) -> dict[str, Any]:
    """What `contextseg-export run --output model` does, and what a user without contextseg makes of it."""
    from ..training.publishing import ExportArguments, export
    from .demonstration import compare_elsewhere

    export(ExportArguments(str(folder / "run"), output=str(folder / "model"), proof=False))
    count = compare_elsewhere(test_scenes(arguments, folder, SHOWN), folder / "model", folder / "pipeline")
    print(f"{count} masks, pixel for pixel those of this process")
    return {"pipeline_masks": count}


def explain(arguments: DemoArguments, folder: Path) -> dict[str, Any]:
    """Pictures, and over more scenes: does the white follow the flag, and does attention find it?"""
    from ..training.plots import plot_curves
    from ..training.records import read_log
    from .demo_report import ASKED
    from .demonstration import attention_of_stages, best_stage, picture

    asked = test_scenes(arguments, folder, ASKED)
    attention = attention_of_stages(asked)
    shown = best_stage(attention, arguments.size)
    picture(asked[:SHOWN], shown.stage if shown else None).save(folder / "scenes.png")
    plot_curves(read_log(folder / "run" / "log.jsonl"), folder / "loss.png")
    return {"right": mean(case.right for case in asked), "attention": attention, "shown": shown}


def test_scenes(arguments: DemoArguments, folder: Path, count: int) -> "list[Asked]":
    """The saved model with the first test scenes, each of them under both flags."""
    from ..training.models import open_model
    from .demonstration import ask

    model, processor, _ = open_model(str(folder / "model"))
    seed = series(arguments, "test")
    return ask(model, processor, seed=seed, count=count, size=arguments.size, distance=arguments.distance)


if __name__ == "__main__":
    sys.exit(main())
