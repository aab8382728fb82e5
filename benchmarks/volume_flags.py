"""Does G-MSA carry a cue through a volume? Trains small nnFormers with and without global tokens.

    python -m contextseg.benchmarks.volume_flags --results volumes.jsonl

A volume holds gray noise, white cubes, and one small flag, bright or dark, which alone tells the class of all white
voxels. Scores are by distance from the flag, the largest of slices, rows and columns. Each run adds a line to the
file of results; runs that it has already are skipped. `benchmarks/volumes.md` tells the results.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..training.command_line import CommandLine, CommandOptions, option, short_errors
from .results_file import read_results, run_missing

if TYPE_CHECKING:
    from torch import nn

PROGRAM = "python -m contextseg.benchmarks.volume_flags"
DESCRIPTION = "Train and score small nnFormers with and without global tokens on volumes with a distant cue."
SIZE = (16, 64, 64)  # slices, rows, columns
CUBE, CUBES = 4, 40  # side in voxels, and number, of the white cubes
FLAG_SIDE = 8  # voxels
WHITE, FLAG = 2.0, 5.0  # values in a volume of noise with a standard deviation of 0.5
EDGES = (0, 16, 32, 48, 64)  # distances at which the columns of the table begin, and the end
WARMUP_STEPS, CLIP_NORM = 50, 1.0


class Scene(NamedTuple):
    """A volume with a bright flag, and what is scored.

    Args:
        values: (1, D, H, W) float32.
        white: (D, H, W), true for white voxels.
        flag: Slices of the flag along each axis.
        distance: (D, H, W), voxels to the flag, the largest of the three axes.
    """

    values: np.ndarray
    white: np.ndarray
    flag: tuple[slice, ...]
    distance: np.ndarray

    def under(self, flag: int) -> tuple[np.ndarray, np.ndarray]:
        """Values and labels with a dark (0) or bright (1) flag: white voxels have the class 1 or 2, the flag 3 or 4."""
        values, labels = self.values.copy(), (self.white * (1 + flag)).astype(np.int64)
        values[(0, *self.flag)] = FLAG if flag else -FLAG
        labels[self.flag] = 3 + flag
        return values, labels


@dataclass
class VolumeFlagArguments(CommandOptions):
    results: str = option("volume_flags.jsonl", "file to which a line is added for each run", metavar="FILE")
    networks: str | None = option(
        None, "names of networks, joined by commas; by default all", metavar="NAME,NAME"
    )
    seeds: str = option("0,1", "seeds, each a run of every network", metavar="N,N")
    steps: int = option(600, "optimizer steps")
    batch_size: int = option(4, "volumes in each step")
    learning_rate: float = option(1e-3, "peak learning rate of AdamW")
    scored: int = option(40, "scored volumes, each with both flags")
    tables: bool = option(False, "print the tables of the results instead of running")


def network_options() -> dict[str, dict]:
    """Name of a network -> the fields in which its configuration differs."""
    tokens = {
        f"{form} {count}": {"num_global_tokens": count, "global_block": form}
        for form in ("bare", "half", "transformer")
        for count in (1, 4)
    }
    return {"none": {"num_global_tokens": 0}, **tokens}


def new_model(name: str) -> "nn.Module":
    from ..configuration.configuration_nnformer import NnFormerConfig
    from ..modeling.modeling_nnformer import NnFormerForSemanticSegmentation

    options = {
        "variant": "2021",
        "crop_size": SIZE,
        "patch_size": (2, 4, 4),
        "embed_dim": 24,
        "depths": (1, 3),
        "num_heads": (2, 4),
        "window_size": (2, 2),
        "deep_supervision": False,
        "drop_path_rate": 0.0,
        "initializer_range": 0.1,
        "num_labels": 5,
        "loss": "cross_entropy",
        "class_weights": (0.1, 1, 1, 1, 1),
    }
    return NnFormerForSemanticSegmentation(NnFormerConfig(**{**options, **network_options()[name]}))


def new_scene(seed: int, index: int) -> Scene:
    """Draws a volume; it depends on seed and index only."""
    random = np.random.default_rng((seed, index))
    values = random.normal(0, 0.5, SIZE).astype(np.float32)
    white = np.zeros(SIZE, bool)
    for _ in range(CUBES):
        white[cube_at(random, CUBE)] = True
    flag = cube_at(random, FLAG_SIDE)
    around = tuple(slice(max(0, side.start - CUBE), side.stop + CUBE) for side in flag)
    white[around] = False
    values[white] += WHITE
    distance = np.zeros(SIZE, int)
    for axis, side in enumerate(flag):
        place = np.arange(SIZE[axis])
        away = np.maximum(np.maximum(side.start - place, place - side.stop + 1), 0)
        distance = np.maximum(distance, away.reshape([-1 if a == axis else 1 for a in range(3)]))
    return Scene(values[None], white, flag, distance)


def cube_at(random: np.random.Generator, cube: int) -> tuple[slice, ...]:
    corner = random.integers(0, [side - cube + 1 for side in SIZE])
    return tuple(slice(start, start + cube) for start in corner.tolist())


def main(argv: list[str] | None = None) -> int:
    arguments = CommandLine(VolumeFlagArguments, PROGRAM, DESCRIPTION).arguments(argv)
    with short_errors(PROGRAM, arguments.traceback):
        if arguments.tables:
            print(table(read_results(Path(arguments.results))))
            return 0
        for result in run_all(arguments):
            print(json.dumps(result), flush=True)
    return 0


def run_all(arguments: VolumeFlagArguments) -> Iterator[dict]:
    names = arguments.networks.split(",") if arguments.networks else list(network_options())
    return run_missing(
        Path(arguments.results), names, arguments.seeds, lambda name, seed: run(name, seed, arguments)
    )


def run(name: str, seed: int, arguments: VolumeFlagArguments) -> dict:
    """Trains and scores one network."""
    import torch

    torch.manual_seed(seed)
    model = new_model(name)
    started = time.process_time()
    train(model, seed, arguments)
    return {
        **score(model.eval(), arguments.scored),
        "reach": reach(model),
        "parameters": model.num_parameters(),
        "steps": arguments.steps,
        "seconds": round(time.process_time() - started, 1),
    }


def train(model: "nn.Module", seed: int, arguments: VolumeFlagArguments) -> None:
    import torch

    from ..training.optim import learning_rate_factor, parameter_groups, set_learning_rate

    optimizer = torch.optim.AdamW(
        parameter_groups(model, learning_rate=arguments.learning_rate, weight_decay=0.01)
    )
    model.train()
    for step in range(arguments.steps):
        pairs = [
            new_scene(seed + 1, step * arguments.batch_size + number).under(number % 2)
            for number in range(arguments.batch_size)
        ]
        values, labels = (torch.from_numpy(np.stack(parts)) for parts in zip(*pairs, strict=True))
        factor = learning_rate_factor(step, steps=arguments.steps, warmup_steps=WARMUP_STEPS, schedule="poly")
        set_learning_rate(optimizer, factor)
        loss = model(pixel_values=values, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()


def score(model: "nn.Module", scored: int) -> dict:
    """IoU of both white classes, and the share of white voxels that follow the flag, by distance from it."""
    import torch

    bins = len(EDGES) - 1
    counts = np.zeros((bins, 2, 5), int)  # by distance: true class - 1, predicted class
    follows, white = np.zeros(bins), np.zeros(bins)
    for index in range(scored):
        scene = new_scene(0, index)
        both = [scene.under(flag) for flag in range(2)]
        with torch.inference_mode():
            logits = model(pixel_values=torch.from_numpy(np.stack([values for values, _ in both]))).logits
        predicted = logits.argmax(1).numpy()
        place = np.digitize(scene.distance, EDGES[1:-1])
        for number in range(bins):
            where = scene.white & (place == number)
            white[number] += where.sum()
            follows[number] += ((predicted[0] == 1) & (predicted[1] == 2) & where).sum()
            for flag in range(2):
                counts[number, flag] += np.bincount(predicted[flag][where], minlength=5)
    right = counts[:, [0, 1], [1, 2]]
    other = counts[:, [1, 0], [1, 2]]  # white of the other class that is labeled as this one
    iou = right / np.maximum(counts.sum(2) + other, 1)
    return {"iou": iou.mean(1).round(4).tolist(), "follows": (follows / white).round(4).tolist()}


def reach(model: "nn.Module") -> int:
    """Largest distance in voxels at which logits near the center of a volume depend on a voxel, by gradients.

    All places of a voxel in the patches and windows of the coarser stage are tried in turn along rows and columns.
    """
    import torch

    far, middle = 0, [side // 2 for side in SIZE]
    values = torch.randn(1, 1, *SIZE, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logits = model(pixel_values=values).logits
    for step in range(0, 16, 3):
        place = [middle[0], middle[1] + step, middle[2] + step]
        (gradient,) = torch.autograd.grad(logits[(0, slice(None), *place)].sum(), values, retain_graph=True)
        seen = gradient[0, 0].nonzero()
        far = max(far, int((seen - torch.tensor(place)).abs().max()))
    return far


def table(results: list[dict]) -> str:
    """A Markdown table: the mean over seeds in %, followed by each seed."""
    names = [f"{first} to {last - 1}" for first, last in zip(EDGES, EDGES[1:], strict=False)]
    lines = [
        f"| network | reach | IoU at {' | '.join(names)} | follows the flag beyond {EDGES[-2]} | parameters |"
    ]
    lines.append("|---" * (len(names) + 4) + "|")
    for name in network_options():
        runs = [one for one in results if one["network"] == name]
        if runs:
            cells = [percents([one["iou"][number] for one in runs]) for number in range(len(names))]
            cells.append(percents([one["follows"][-1] for one in runs]))
            lines.append(f"| {name} | {runs[0]['reach']} | {' | '.join(cells)} | {runs[0]['parameters']:,} |")
    return "\n".join(lines)


def percents(values: list[float]) -> str:
    each = " / ".join(f"{100 * value:.1f}" for value in values)
    return f"**{100 * np.mean(values):.1f}** ({each})"


if __name__ == "__main__":
    sys.exit(main())
