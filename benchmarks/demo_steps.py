"""Options and steps of `contextseg-demo`: scenes, training, use without contextseg, figures."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from ..training.command_line import CommandOptions, option

if TYPE_CHECKING:
    from .demonstration import SceneComparison

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
