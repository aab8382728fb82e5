"""Model cards of recipes: the paper's scores, and how to train the model, which was not trained here."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub import ModelCardData

from ..hub.card_data import CLASSIFICATION, DETECTION, SEGMENTATION
from ..hub.card_sections import about_start, table
from ..hub.papers import PAPERS, READINGS
from ..processing.data.official_layouts import LAYOUTS
from . import setup
from .optimization_options import LEARNING_RATE
from .options import TrainArguments, train_arguments
from .origin import public_model
from .recipes import Recipe, read_recipe, with_recipe
from .tasks import task_for

PIPELINES = {"segmentation": SEGMENTATION, "classification": CLASSIFICATION, "detection": DETECTION}
DATASETS = {layout.title: layout.hub_name for layout in LAYOUTS} | {
    "ImageNet-1k": "imagenet-1k",
    "COCO 2017": "coco",
}
COMMAND = re.compile(r"contextseg-train --recipe .+")
MEASURES = {
    "mIoU": "mIoU, %",
    "mIoU-multi-scale": "mIoU, multi-scale with flips, %",
    "top-1": "top-1 accuracy, %",
}
DECAYED = {
    "weights": "the weights of linear layers and convolutions",
    "all-but-norms": "all but layer norms and positions",
    "all": "all",
}
ABOUT_DATA = {"source", "data", "images", "classes", "parameters-in-millions", "multiply-adds-in-billions"}
SOURCES = {
    "set-by-the-paper": "The paper",
    "set-by-the-authors-configuration": "The authors' configuration",
    "set-as-in-the-authors-other-configurations": "The authors' other configurations",
    "set-as-in-mmsegmentation": "mmsegmentation",
    "set-as-in-the-recipe-it-follows": "The recipe that the paper follows",
    "without-an-option": "Not available as an option",
    "also-without-an-option": "Nor is",
    "scored-on": "Scored on",
    "parameters-differ": "Parameters",
    "multiply-adds-of": "Multiply-adds are those of",
    "multiply-adds-differ": "Multiply-adds",
}


@dataclass(frozen=True)
class Row:
    """A recipe with the content of its comments: title, training command and notes."""

    recipe: Recipe
    title: str
    command: list[str]
    notes: str

    @property
    def name(self) -> str:
        return self.recipe.path.stem


def read_row(name: str) -> Row:
    """Reads a recipe; the comments above its options are its title, its command and notes."""
    recipe = read_recipe(name)
    head = recipe.path.read_text(encoding="utf-8").partition("\nmodel:")[0].partition("\ntask:")[0]
    text = "\n".join(line.removeprefix("#").strip() for line in head.splitlines())
    command = COMMAND.search(text)
    words = shlex.split(command[0].replace("--output ...", f"--output runs/{name}"))
    words = [
        f"DATA/{split[2:]}" if word == "..." else word
        for split, word in zip(["", *words], words, strict=False)
    ]
    title = text[: command.start()].strip().rstrip(":")
    return Row(recipe, title, words, " ".join(text[command.end() :].split()))


def card(row: Row) -> str:
    """Returns the model card of a recipe, as Markdown with front matter."""
    arguments = train_arguments(with_recipe({"recipe": row.name})[0])
    paper = row.recipe.paper
    family = next(
        (name for name in PAPERS if name in (arguments.model, str(arguments.preset).partition("_")[0])), ""
    )
    sources = [f"- {title}: {paper[key]}." for key, title in SOURCES.items() if key in paper]
    limits = [
        "- No weights of this recipe are published here, and no score was measured.",
        *map(about_start, filter(None, [base_model(row)])),
        *READINGS.get(family, []),
    ]
    paragraphs = [
        f"---\n{front_matter(row, arguments)}\n---",
        f"# {row.title}",
        "**Not trained here.** The scores are those of the paper; parameters are counted from the model that the command builds.",
        score_table(paper, count_parameters(arguments, paper["classes"])),
        f"Source: {paper['source']}. {images_of(paper)}, {paper['classes']} classes.",
        "## Training",
        f"```\n{chr(10).join(commands(row, arguments))}\n```",
        f"`contextseg-train --recipe {row.name} --dry-run` prints the plan and needs no data. The options are in "
        f"[scripts/recipes/{row.name}.yaml](../scripts/recipes/{row.name}.yaml).",
        settings_table(arguments, paper),
        "\n".join(sources),
        row.notes,
        "## Limits",
        "\n".join(limits),
    ]
    cited = [family] if family in PAPERS else []
    cited += ["glam_swin"] * row.name.startswith("glam_nnformer")  # one paper for both
    if cited:
        entries = "\n\n".join(PAPERS[name] for name in cited)
        paragraphs += ["## Citation", f"```bibtex\n{entries}\n```"]
    return "\n\n".join(filter(None, paragraphs)) + "\n"


def commands(row: Row, arguments: TrainArguments) -> list[str]:
    """Returns the commands that train, evaluate and publish the model."""
    run, data = f"runs/{row.name}", row.command[row.command.index("--val") + 1]
    evaluation = [f"contextseg-evaluate {run} --data {data}"] if arguments.task == "segmentation" else []
    return [shlex.join(row.command), *evaluation, f"contextseg-export {run} --push me/{row.name}"]


def front_matter(row: Row, arguments: TrainArguments) -> str:
    """Returns the card's metadata as YAML; no model index, which is for scores of published weights."""
    pipeline, data, start = PIPELINES[arguments.task], row.recipe.paper["data"], base_model(row)
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=pipeline,
        tags=[
            "contextseg",
            arguments.model,
            pipeline,
            *["semantic-segmentation"] * (pipeline == SEGMENTATION),
        ],
        datasets=[DATASETS[data]] if data in DATASETS else None,
        base_model=start,
    ).to_yaml()


def base_model(row: Row) -> str | None:
    """Returns the Hub name of the checkpoint in the command; None for RUN, which is trained first."""
    pairs = zip(row.command, row.command[1:], strict=False)
    start = next((word for option, word in pairs if option == "--init-from"), None)
    return None if start == "RUN" else public_model(start)


def score_table(paper: Mapping[str, Any], parameters: int) -> str:
    """Returns a table of the paper's scores and of the number of parameters."""
    scores = {
        name: value
        for name, value in paper.items()
        if isinstance(value, int | float) and name not in ABOUT_DATA
    }
    lines = [
        [MEASURES.get(name, name.replace("-", " ")), value, "not measured"] for name, value in scores.items()
    ]
    printed = paper.get("parameters-in-millions")
    lines.append(["parameters", f"{printed} M" if printed else "not printed", f"{parameters / 1e6:.2f} M"])
    if "multiply-adds-in-billions" in paper:
        lines.append(["multiply-adds", f"{paper['multiply-adds-in-billions']} G", "see below"])
    return table(["", "paper", "here"], lines)


def count_parameters(arguments: TrainArguments, num_classes: int) -> int:
    """Counts the parameters of the full-size model, built on the meta device."""
    task = task_for(arguments)
    data = task.generated(num_classes)
    with torch.device("meta"):
        model = setup.new_model(task, data)
    return sum(parameter.numel() for parameter in model.parameters())


def settings_table(arguments: TrainArguments, paper: Mapping[str, Any]) -> str:
    """Returns a table of the recipe's main settings, defaults of `contextseg-train` included."""
    images = arguments.batch_size * arguments.accumulation
    steps, warmup = length_of(arguments, paper)
    factor = (
        f", times {arguments.head_lr_factor:g} outside the backbone" if arguments.head_lr_factor != 1 else ""
    )
    lines = [
        ["model", " ".join(filter(None, [arguments.model, arguments.preset, *arguments.set]))],
        ["steps", steps],
        [
            "images per step",
            f"{images} ({arguments.batch_size} x {arguments.accumulation} accumulated on one GPU)",
        ],
        [
            "learning rate",
            f"{arguments.learning_rate or LEARNING_RATE:g}{factor}; {shape_of(arguments)}, {warmup} of warm-up",
        ],
        ["weight decay", f"{arguments.weight_decay:g} of {DECAYED[arguments.weight_decay_of]}"],
    ]
    if arguments.optimizer == "sgd":
        lines.insert(3, ["optimizer", f"SGD, Nesterov momentum {arguments.momentum:g}"])
    return table(["setting", "value"], lines)


def shape_of(arguments: TrainArguments) -> str:
    """Returns the shape of the schedule, with its power unless that is 1."""
    power = f" to the power {arguments.poly_power:g}" if arguments.poly_power != 1 else ""
    return f"{arguments.schedule}{power}"


def images_of(paper: Mapping[str, Any]) -> str:
    """Returns the training data in words; not every paper prints the number of images."""
    return f"{paper['images']} images of {paper['data']}" if "images" in paper else paper["data"]


def length_of(arguments: TrainArguments, paper: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the length of a run and of its warm-up in words; without a number of images in epochs."""
    if "images" in paper:
        schedule = setup.new_schedule(arguments, paper["images"], 1)
        samples = paper["images"] * arguments.crops_per_image
        epochs = schedule.steps * arguments.batch_size * arguments.accumulation / samples
        return f"{schedule.steps} ({epochs:.1f} epochs)", f"{schedule.warmup_steps} steps"
    warmup = "a tenth" if arguments.warmup_steps is None else f"{arguments.warmup_steps} steps"
    return f"{arguments.epochs:g} epochs", warmup


def main_score(paper: Mapping[str, Any]) -> str:
    """Returns the first score of the paper with its name, for the index."""
    for name, value in paper.items():
        if isinstance(value, int | float) and name not in ABOUT_DATA:
            return f"{value} {name.replace('-', ' ')}"
    return "no score noted"
