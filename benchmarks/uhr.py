"""Does a wide context help a sharp crop? Trains small networks with and without one, on several data sets.

    python -m contextseg.benchmarks.uhr flags --results uhr.jsonl
    python -m contextseg.benchmarks.uhr camvid --data camvid --results uhr.jsonl --networks local,relay4 --seeds 0

Each run adds a line to the file of results; runs that it has already are skipped, so an interrupted command can be
repeated. `benchmarks/uhr.md` tells the results.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..training.command_line import CommandLine, CommandOptions, option, positional, short_errors
from .results_file import read_results

if TYPE_CHECKING:
    from torch import nn

    from .uhr_crops import FlagCrop, Pair, Picture
    from .uhr_networks import Network

PROGRAM = "python -m contextseg.benchmarks.uhr"
DESCRIPTION = "Train and score networks with and without a context branch, on one task."
FLAG_WEIGHT = 10.0  # loss weight of the flag classes, which have few pixels
REDUCED = {"camvid": 1, "dubai-aerial": 1, "idrid-lesions": 4}  # images are reduced by this factor
SHARE_ON_RARE = {
    "camvid": 0.0,
    "dubai-aerial": 0.0,
    "idrid-lesions": 0.5,
}  # crops around a pixel that is not class 0
FLAG_BINS = {
    "near": (66, 78),
    "far": (114, 174),
}  # pixels to the flag: in contexts of ratio 2 and 4, of 4 only


COLUMNS = {
    "flags": {
        "iou_near": "IoU of white, flag in the context of ratio 2",
        "iou_far": "IoU of white, flag beyond it",
        "follows_far": "white that follows the flag beyond it",
        "iou_others": "IoU of the other classes",
    },
    "pictures": {"mean_iou": "mIoU", "pixel_accuracy": "pixel accuracy"},
}


@dataclass
class UhrArguments(CommandOptions):
    task: str = positional(
        "flags, camvid, dubai-aerial or idrid-lesions; or tables, to print those of the results"
    )
    data: str | None = option(None, "folder with train/ and val/ of the task", metavar="FOLDER")
    results: str = option("uhr.jsonl", "file to which a line is added for each run", metavar="FILE")
    networks: str | None = option(
        None, "names of networks; by default those of the page", metavar="NAME,NAME"
    )
    seeds: str = option("0,1", "seeds, each a run of every network", metavar="N,N")
    steps: int = option(1000, "optimizer steps")
    batch_size: int = option(8, "crops in each step")
    learning_rate: float = option(1e-3, "peak learning rate of AdamW")
    crops: int = option(1500, "training crops of the task flags")
    scored: int = option(200, "scored crops of the task flags, each with both flags")


def main(argv: list[str] | None = None) -> int:
    arguments = CommandLine(UhrArguments, PROGRAM, DESCRIPTION).arguments(argv)
    with short_errors(PROGRAM, arguments.traceback):
        if arguments.task == "tables":
            print("\n\n".join(tables(Path(arguments.results))))
            return 0
        for result in run_all(arguments):
            print(json.dumps(result), flush=True)
    return 0


def tables(file: Path) -> Iterator[str]:
    """Yields a Markdown table of each task: the mean over seeds in %, followed by each seed."""
    from .uhr_networks import NETWORKS

    results = read_results(file)
    for task in dict.fromkeys(result["task"] for result in results):
        columns = COLUMNS["flags" if task == "flags" else "pictures"]
        rows = [f"{task}\n\n| network | {' | '.join(columns.values())} | parameters | processor time |"]
        rows.append("|---" * (len(columns) + 3) + "|")
        for name, network in NETWORKS.items():
            runs = [one for one in results if (one["task"], one["network"]) == (task, name)]
            if runs:
                cells = [percents([one[column] for one in runs]) for column in columns]
                seconds = np.mean([one["seconds"] for one in runs])
                rows.append(
                    f"| {network.title} | {' | '.join(cells)} | {runs[0]['parameters']:,} | {seconds:.0f} s |"
                )
        yield "\n".join(rows)


def percents(values: list[float]) -> str:
    each = " / ".join(f"{100 * value:.1f}" for value in values)
    return f"**{100 * np.mean(values):.1f}** ({each})"


def run_all(arguments: UhrArguments) -> Iterator[dict]:
    """Runs what the file of results lacks, adds each result to it and yields it."""
    from .uhr_networks import COMPARED, NETWORKS

    results = Path(arguments.results)
    done = {(one["task"], one["network"], one["seed"]) for one in read_results(results)}
    names = (
        arguments.networks.split(",")
        if arguments.networks
        else list(NETWORKS if arguments.task == "flags" else COMPARED)
    )
    task = FlagTask(arguments) if arguments.task == "flags" else PictureTask(arguments)
    for seed in map(int, arguments.seeds.split(",")):
        for name in names:
            if (arguments.task, name, seed) in done:
                continue
            result = {"task": arguments.task, "network": name, "seed": seed} | run(
                task, NETWORKS[name], arguments, seed
            )
            with results.open("a") as file:
                file.write(json.dumps(result) + "\n")
            yield result


def run(task: "FlagTask | PictureTask", network: "Network", arguments: UhrArguments, seed: int) -> dict:
    """Trains and scores one network."""
    from .uhr_networks import Training, train

    settings = Training(arguments.steps, arguments.batch_size, arguments.learning_rate)
    model, seconds = train(network, (task.num_classes, task.class_weights), task.drawer(seed), settings, seed)
    return {
        **task.scores(network, model),
        "parameters": model.num_parameters(),
        "seconds": round(seconds),
        "steps": arguments.steps,
    }


class FlagTask:
    """Crops of scenes whose white areas need a flag that only the context shows."""

    def __init__(self, arguments: UhrArguments) -> None:
        from ..processing.data.scenes import CLASSES, FLAGS
        from .uhr_crops import flag_crops

        self.num_classes = len(CLASSES)
        self.class_weights = [FLAG_WEIGHT if label in FLAGS else 1.0 for label in range(len(CLASSES))]
        self.number = arguments.crops
        self.scored = flag_crops(0, arguments.scored)

    def drawer(self, seed: int) -> "Callable[[np.random.Generator, int], Pair]":
        from .uhr_crops import flag_crops

        crops: list[FlagCrop] = flag_crops(seed + 1, self.number, around_flag=2)

        def draw(rng: np.random.Generator, ratio: int) -> "Pair":
            crop = crops[rng.integers(len(crops))]
            return crop.pictures[rng.integers(2)].pair(*crop.corner, ratio)

        return draw

    def scores(self, network: "Network", model: "nn.Module") -> dict:
        """IoU of the white classes and share of white pixels that follow the flag, by its distance; mIoU of all."""
        import torch

        from ..processing.data.scenes import AMBIGUOUS
        from ..processing.metrics import ConfusionMatrix
        from .uhr_crops import IGNORE_INDEX
        from .uhr_networks import predicted

        both = [
            [crop.pictures[flag].pair(*crop.corner, network.ratio) for crop in self.scored] for flag in (0, 1)
        ]
        masks = [predicted(network, model, pairs) for pairs in both]
        labels = [torch.stack([pair.labels for pair in pairs]) for pairs in both]
        distances = torch.tensor([crop.distance for crop in self.scored])
        white = torch.isin(labels[0], torch.tensor(AMBIGUOUS))
        found: dict[str, float] = {}
        for name, (low, high) in FLAG_BINS.items():
            here = white & ((distances >= low) & (distances <= high))[:, None, None]
            confusion = ConfusionMatrix(self.num_classes, IGNORE_INDEX)
            for mask, truth in zip(masks, labels, strict=True):
                confusion.update(mask, torch.where(here, truth, IGNORE_INDEX))
            per_class = confusion.compute()["per_class"]
            found[f"iou_{name}"] = float(np.mean([per_class[label]["iou"] for label in AMBIGUOUS]))
            found[f"follows_{name}"] = float((masks[0] != masks[1])[here].float().mean())
        confusion = ConfusionMatrix(self.num_classes, IGNORE_INDEX)
        for mask, truth in zip(masks, labels, strict=True):
            confusion.update(mask, torch.where(white, IGNORE_INDEX, truth))
        others = [row["iou"] for index, row in enumerate(confusion.compute()["per_class"]) if index < 5]
        return found | {"iou_others": float(np.nanmean(others))}


class PictureTask:
    """Crops of the pictures of a data set; whole pictures are scored, by tiles."""

    class_weights = None

    def __init__(self, arguments: UhrArguments) -> None:
        from .uhr_crops import open_pictures

        if arguments.task not in REDUCED:
            raise ValueError(f"unknown task '{arguments.task}'. Known: flags, {', '.join(REDUCED)}.")
        if arguments.data is None:
            raise ValueError(f"task '{arguments.task}' needs --data, the folder with its train/ and val/.")
        reduced = REDUCED[arguments.task]
        self.share = SHARE_ON_RARE[arguments.task]
        self.training, classes = open_pictures(Path(arguments.data) / "train", reduced)
        self.validation, _ = open_pictures(Path(arguments.data) / "val", reduced)
        self.num_classes = len(classes)

    def drawer(self, seed: int) -> "Callable[[np.random.Generator, int], Pair]":  # noqa: ARG002
        from .uhr_crops import CROP

        rare = [np.argwhere((one.labels > 0).numpy() & (one.labels < 255).numpy()) for one in self.training]

        def corner(rng: np.random.Generator, index: int, picture: "Picture") -> tuple[int, int]:
            limits = np.asarray(picture.labels.shape) - CROP
            if rng.random() < self.share and len(rare[index]):
                place = rare[index][rng.integers(len(rare[index]))] - rng.integers(0, CROP, 2)
                return tuple(np.clip(place, 0, limits))
            return tuple(rng.integers(0, limits + 1))

        def draw(rng: np.random.Generator, ratio: int) -> "Pair":
            index = int(rng.integers(len(self.training)))
            picture = self.training[index]
            return picture.pair(*map(int, corner(rng, index, picture)), ratio)

        return draw

    def scores(self, network: "Network", model: "nn.Module") -> dict:
        from .uhr_networks import score_tiles

        scores = score_tiles(network, model, self.validation, self.num_classes)
        return {"mean_iou": scores["mean_iou"], "pixel_accuracy": scores["pixel_accuracy"]} | {
            "iou": [row["iou"] for row in scores["per_class"]]
        }


if __name__ == "__main__":
    sys.exit(main())
