"""contextseg-demo: the whole workflow of the library in two to five minutes, on generated scenes.

    contextseg-demo

Draws labeled scenes whose white areas can only be classified by a distant flag, trains the smallest
GLAM-Swin, scores and saves it, and segments with transformers' pipeline in a Python process that cannot
import contextseg. Writes images and a report.
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
    from .demonstration import SceneComparison

PROGRAM = "contextseg-demo"
DESCRIPTION = """Draw scenes, train the smallest GLAM-Swin on them, score, save, reload without contextseg, and predict. Needs neither
data nor network, and takes two to five minutes on two cores. The results are in REPORT.md in the output folder."""

MARKER = ".contextseg-demo"  # a folder without this file is never cleared
SPLITS = ("train", "val", "test")
SHOWN = 4  # test scenes in scenes.png


@dataclass
class DemoArguments(CommandOptions):
    scenes: int = option(1500, "number of training scenes")
    size: int = option(96, "side of a scene in pixels")
    distance: float = option(
        48, "pixels from the flag to the nearest white area, in the validation and test scenes"
    )
    steps: int = option(800, "optimizer steps with 8 scenes each")
    tokens: int = option(4, "global tokens per window; 0 is plain Swin, for comparison")
    seed: int = option(0, "seed of the scenes, the initial weights and the order of the training scenes")
    output: str = option(
        "demo", "folder for all results; replaces those of an earlier demo", metavar="FOLDER"
    )


def new_parser() -> CommandLine:
    return CommandLine(DemoArguments, PROGRAM, DESCRIPTION)


def main(argv: list[str] | None = None) -> int:
    arguments = new_parser().arguments(argv)
    with short_errors(PROGRAM, arguments.traceback):
        return demo(arguments)


def demo(arguments: DemoArguments) -> int:
    """Runs the five steps; returns the exit code, which is that of the training if it was stopped."""
    from .demo_report import NEXT, report, summary

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
    print(
        f"{summary(facts)}\nRead {folder / 'REPORT.md'} and look at {folder / 'scenes.png'}.\n{NEXT}", end=""
    )
    return 0


def say(step: int, what: str) -> None:
    print(f"\n[{step}/5] {what}", flush=True)


def fresh_folder(folder: Path) -> Path:
    """Returns an empty, marked folder; clears that of an earlier demo.

    Raises ValueError if it holds other files.
    """
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARKER).exists():
            raise ValueError(
                f"{folder} contains files that contextseg-demo did not write. Choose another --output."
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()
    return folder


def draw(arguments: DemoArguments, folder: Path) -> None:
    """Writes data/train with flags at any distance, and data/val and data/test with distant flags only."""
    from ..processing.data.scenes import write_scenes

    for split in SPLITS:
        count = {"train": arguments.scenes, "val": 40, "test": 160}[split]
        distance = 0 if split == "train" else arguments.distance
        seed = series(arguments, split)
        write_scenes(folder / "data" / split, count, seed, size=arguments.size, distance=distance)


def series(arguments: DemoArguments, split: str) -> int:
    """Returns the seed of a split's scenes, different for all splits and all --seed."""
    return len(SPLITS) * arguments.seed + SPLITS.index(split)


def train_nano(arguments: DemoArguments, folder: Path) -> int:
    """Trains GLAM-Swin nano, as `contextseg-train` with these options does; returns the exit code."""
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
    """Scores the model, as `contextseg-evaluate run --data data/test` does."""
    from .evaluate import EvaluateArguments, evaluate

    return evaluate(EvaluateArguments(str(folder / "run"), data=str(folder / "data" / "test")))


def save_and_reload(arguments: DemoArguments, folder: Path) -> dict[str, Any]:
    """Exports the model, as `contextseg-export run --output model` does, and uses it without contextseg."""
    from ..training.publishing import ExportArguments, export
    from .demonstration import compare_elsewhere

    export(ExportArguments(str(folder / "run"), output=str(folder / "model"), proof=False))
    count = compare_elsewhere(test_scenes(arguments, folder, SHOWN), folder / "model", folder / "pipeline")
    print(f"{count} masks, identical to those of this process")
    return {"pipeline_masks": count}


def explain(arguments: DemoArguments, folder: Path) -> dict[str, Any]:
    """Draws the figures, and measures whether predictions follow the flag and attention finds it."""
    from ..training.plots import plot_curves
    from ..training.records import read_log
    from .demo_report import NUM_COMPARED
    from .demonstration import attention_of_stages, best_stage, image

    comparisons = test_scenes(arguments, folder, NUM_COMPARED)
    attention = attention_of_stages(comparisons)
    shown = best_stage(attention, arguments.size)
    image(comparisons[:SHOWN], shown.stage if shown else None).save(folder / "scenes.png")
    plot_curves(read_log(folder / "run" / "log.jsonl"), folder / "loss.png")
    return {"right": mean(case.right for case in comparisons), "attention": attention, "shown": shown}


def test_scenes(arguments: DemoArguments, folder: Path, count: int) -> "list[SceneComparison]":
    """Applies the saved model to the first test scenes, each with both flags."""
    from ..training.models import open_model
    from .demonstration import ask

    model, processor, _ = open_model(str(folder / "model"))
    seed = series(arguments, "test")
    return ask(model, processor, seed=seed, count=count, size=arguments.size, distance=arguments.distance)


if __name__ == "__main__":
    sys.exit(main())
