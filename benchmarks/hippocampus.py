"""Do global tokens help on small MR volumes? Trains nnFormer nano with and without them, and MONAI's U-Net.

    python -m contextseg.benchmarks.hippocampus --data msd-hippocampus --results hippocampus.jsonl

Each run adds a line to the file of results; runs that it has already are skipped. MONAI is needed for the U-Net only.
`benchmarks/hippocampus.md` tells the results.
"""

import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..training.command_line import CommandLine, CommandOptions, option, short_errors
from .results_file import read_results, run_missing

if TYPE_CHECKING:
    import torch
    from torch import nn

PROGRAM = "python -m contextseg.benchmarks.hippocampus"
DESCRIPTION = (
    "Train and score nnFormer nano with and without global tokens, and a U-Net, on hippocampus volumes."
)
CROP = (32, 48, 32)  # slices, rows, columns of training and of inference windows
UNET = "MONAI U-Net"
UNET_CHANNELS = (20, 40, 80, 160)  # about as many parameters as nnFormer nano
CLASSES = ("background", "anterior", "posterior")
WARMUP_STEPS, CLIP_NORM = 50, 12.0


class Case(NamedTuple):
    """A volume (1, D, H, W), normalized, with its class ids (D, H, W) and spacing in millimeters."""

    values: np.ndarray
    labels: np.ndarray
    spacing: tuple[float, ...]


@dataclass
class HippocampusArguments(CommandOptions):
    data: str = option("msd-hippocampus", "folder with train/ and val/", metavar="FOLDER")
    results: str = option("hippocampus.jsonl", "file to which a line is added for each run", metavar="FILE")
    networks: str | None = option(
        None, "names of networks with '|' between them; by default all", metavar="NAMES"
    )
    seeds: str = option("0,1", "seeds, each a run of every network", metavar="N,N")
    steps: int = option(400, "optimizer steps")
    batch_size: int = option(2, "volumes in each step")
    learning_rate: float = option(2e-3, "peak learning rate of AdamW")
    tables: bool = option(False, "print the table of the results instead of running")


def network_options() -> dict[str, dict[str, Any]]:
    """Name of an nnFormer -> the fields in which its configuration differs from the preset "nano"."""
    tokens = {
        f"2021, {form} {count}": {"variant": "2021", "num_global_tokens": count, "global_block": form}
        for form in ("bare", "half", "transformer")
        for count in (1, 4)
    }
    return {"2022": {"variant": "2022"}, "2021": {"variant": "2021"}, **tokens}


def new_model(name: str) -> "nn.Module":
    if name == UNET:
        from monai.networks.nets import UNet

        return UNet(3, 1, len(CLASSES), UNET_CHANNELS, strides=(2,) * 3, num_res_units=2)
    from ..configuration.configuration_nnformer import NnFormerConfig
    from ..modeling.modeling_nnformer import NnFormerForSemanticSegmentation

    config = NnFormerConfig.preset("nano", num_labels=len(CLASSES), **network_options()[name])
    return NnFormerForSemanticSegmentation(config)


def logits_and_loss(model: "nn.Module", values: "torch.Tensor", labels: "torch.Tensor | None") -> tuple:
    """(B, 1, D, H, W), (B, D, H, W) or None -> logits (B, K, D, H, W), and the loss or None."""
    if hasattr(model, "config"):
        outputs = model(pixel_values=values, labels=labels)
        return outputs.logits, outputs.loss
    from ..modeling.losses import segmentation_loss

    logits = model(values)
    return logits, labels is not None and segmentation_loss(
        logits, labels, terms="cross_entropy+foreground_dice"
    )


def main(argv: list[str] | None = None) -> int:
    arguments = CommandLine(HippocampusArguments, PROGRAM, DESCRIPTION).arguments(argv)
    with short_errors(PROGRAM, arguments.traceback):
        if arguments.tables:
            print(table(read_results(Path(arguments.results))))
            return 0
        for result in run_all(arguments):
            print(json.dumps(result), flush=True)
    return 0


def read_cases(folder: Path) -> list[Case]:
    from ..processing.data.volume_datasets import open_volume_data
    from ..processing.image_processing_volume import VolumeImageProcessor

    data, processor = open_volume_data(str(folder)), VolumeImageProcessor()
    cases = []
    for sample in (data[index] for index in range(len(data))):
        prepared = processor.prepare(sample["image"])
        cases.append(Case(prepared.values, sample["mask"].astype(np.int64), sample["image"].spacing))
    return cases


def run_all(arguments: HippocampusArguments) -> Iterator[dict]:
    folder = Path(arguments.data)
    names = arguments.networks.split("|") if arguments.networks else [*network_options(), UNET]
    train, val = read_cases(folder / "train"), read_cases(folder / "val")
    return run_missing(
        Path(arguments.results),
        names,
        arguments.seeds,
        lambda name, seed: run(name, seed, arguments, train, val),
    )


def run(name: str, seed: int, arguments: HippocampusArguments, train: list[Case], val: list[Case]) -> dict:
    """Trains and scores one network."""
    import torch

    torch.manual_seed(seed)
    model = new_model(name)
    started = time.process_time()
    fit(model, seed, arguments, train)
    seconds = time.process_time() - started
    return {
        **score(model.eval(), val),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": arguments.steps,
        "seconds": round(seconds, 1),
    }


def fit(model: "nn.Module", seed: int, arguments: HippocampusArguments, train: list[Case]) -> None:
    import torch

    from ..training.optim import learning_rate_factor

    random = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    model.train()
    for step in range(arguments.steps):
        chosen = random.integers(0, len(train), arguments.batch_size)
        pairs = [augmented(train[index], random) for index in chosen]
        values, labels = (torch.from_numpy(np.stack(parts)) for parts in zip(*pairs, strict=True))
        factor = learning_rate_factor(step, steps=arguments.steps, warmup_steps=WARMUP_STEPS, schedule="poly")
        for group in optimizer.param_groups:
            group["lr"] = arguments.learning_rate * factor
        logits_and_loss(model, values, labels)[1].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()


def augmented(case: Case, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A crop at a random place, mirrored left to right at random, with random contrast, brightness and noise.

    The other axes are not mirrored: what tells the anterior part from the posterior one is where it is.
    """
    spare = [size - side for side, size in zip(CROP, case.labels.shape, strict=True)]
    values = case.values * random.uniform(0.75, 1.25) + random.normal(0, 0.1)
    values = values + random.normal(0, 0.1, values.shape)
    starts = [int(random.integers(min(extra, 0), max(extra, 0) + 1)) for extra in spare]
    values, labels = cropped(Case(values, case.labels, case.spacing), starts)
    if random.random() < 0.5:
        values, labels = values[..., ::-1], labels[..., ::-1]
    return np.ascontiguousarray(values, np.float32), np.ascontiguousarray(labels)


def cropped(case: Case, starts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The crop that starts at these voxels of the case; what is outside of the case is zero and background."""
    values, labels = np.zeros((1, *CROP), np.float32), np.zeros(CROP, np.int64)
    spans = list(zip(starts, CROP, case.labels.shape, strict=True))
    source = tuple(slice(max(start, 0), min(start + side, size)) for start, side, size in spans)
    place = tuple(slice(max(-start, 0), min(size - start, side)) for start, side, size in spans)
    values[(slice(None), *place)], labels[place] = case.values[(slice(None), *source)], case.labels[source]
    return values, labels


def score(model: "nn.Module", val: list[Case]) -> dict:
    """Dice and HD95 in millimeters of both parts of the hippocampus, means over the cases."""
    from ..processing.volumes.volume_scores import VolumeScores

    scores = VolumeScores(list(CLASSES))
    for number, case in enumerate(val):
        labels = predicted(model, case)
        scores.update(labels, case.labels, spacing=case.spacing, name=str(number))
    rows = scores.compute()["per_class"]
    return {f"{key} {row['name']}": row[key] for key in ("dice", "hd95") for row in rows}


def predicted(model: "nn.Module", case: Case) -> np.ndarray:
    """Class ids (D, H, W) from the mean probabilities of crops at all corners of the case."""
    import torch

    probabilities = torch.zeros(len(CLASSES), *case.labels.shape)
    corners = [sorted({0, max(size - side, 0)}) for side, size in zip(CROP, case.labels.shape, strict=True)]
    for starts in itertools.product(*corners):
        values = torch.from_numpy(cropped(case, starts)[0])
        with torch.inference_mode():
            window = logits_and_loss(model, values[None], None)[0][0].softmax(0)
        place = probabilities[
            (..., *(slice(start, start + side) for start, side in zip(starts, CROP, strict=True)))
        ]
        place += window[(..., *(slice(0, side) for side in place.shape[1:]))]
    return probabilities.argmax(0).numpy()


def table(results: list[dict]) -> str:
    """A Markdown table: the mean over seeds, followed by each seed."""
    columns = [f"{key} {name}" for key in ("dice", "hd95") for name in CLASSES[1:]]
    titles = [column.replace("dice", "Dice, %,").replace("hd95", "HD95, mm,") for column in columns]
    lines = [f"| network | {' | '.join(titles)} | parameters | processor time of training |"]
    lines.append("|---" * (len(columns) + 3) + "|")
    for name in [*network_options(), UNET]:
        runs = [one for one in results if one["network"] == name]
        if runs:
            cells = [shown([one[column] for one in runs], column) for column in columns]
            seconds = np.mean([one["seconds"] for one in runs])
            lines.append(f"| {name} | {' | '.join(cells)} | {runs[0]['parameters']:,} | {seconds:.0f} s |")
    return "\n".join(lines)


def shown(values: list[float], column: str) -> str:
    factor, digits = (100, 1) if column.startswith("dice") else (1, 2)
    each = " / ".join(f"{factor * value:.{digits}f}" for value in values)
    return f"**{factor * np.mean(values):.{digits}f}** ({each})"


if __name__ == "__main__":
    sys.exit(main())
