"""Paragraphs of a model card in Markdown."""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ..processing.plain_text import markdown_text, one_line
from .card_data import (
    CLASSIFICATION,
    DETECTION,
    EXAMPLE_NAME,
    FEATURES,
    METRICS,
    PREDICTION_NAME,
    SEGMENTATION,
    task_of,
)
from .papers import READINGS, TITLES, papers_of

USE = {
    SEGMENTATION: """\
from transformers import pipeline

segment = pipeline("image-segmentation", model="{repository}", trust_remote_code=True)
for region in segment("photo.jpg"):
    print(region["label"], region["mask"].getbbox())""",
    CLASSIFICATION: """\
from transformers import pipeline

classify = pipeline("image-classification", model="{repository}", trust_remote_code=True)
print(classify("photo.jpg"))""",
    DETECTION: """\
from transformers import pipeline

detect = pipeline("object-detection", model="{repository}", trust_remote_code=True)
for found in detect("photo.jpg"):
    print(found["label"], found["score"], found["box"])""",
    FEATURES: """\
from transformers import AutoModel

model = AutoModel.from_pretrained("{repository}", trust_remote_code=True)
print(model)""",
}
USE_ON_VOLUMES = """\
from contextseg import Inference
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

model = AutoModelForSemanticSegmentation.from_pretrained("{repository}")
processor = AutoImageProcessor.from_pretrained("{repository}")
mask = Inference()(model, processor, "case.nii.gz")"""
PURPOSES = {
    SEGMENTATION: "semantic segmentation",
    CLASSIFICATION: "image classification",
    DETECTION: "object detection",
    FEATURES: "image features",
}
MASKED = "ForMaskedImageModeling"  # end of the names of models for pretraining
DECODERS = {
    "upernet": "UPerNet",
    "unet": "Unet",
    "semantic_fpn": "Semantic FPN",
    "semantic_branch": "Semantic FPN without a pyramid",
    "segdeformer": "SegDeformer",
    "one_step": "one transposed convolution",
    "progressive": "progressive transposed convolutions",
}
# Scores of a class in `per_class` of evaluation.json -> column of the table.
COLUMNS = {
    "iou": "IoU",
    "accuracy": "accuracy",
    "boundary_iou": "boundary IoU",
    "boundary_f": "boundary F",
    "top_1": "top-1",
}


def sections(
    config: Mapping[str, Any],
    processor: Mapping[str, Any],
    scores: Mapping[str, Any],
    run: Mapping[str, Any] | None,
    repository: str,
    example: str | None,
    has_prediction: bool = False,
    has_handler: bool = False,
) -> list[str]:
    """Returns the paragraphs of a card; without a training section if `run` is None.

    `example` is the title of the example image, if there is one; `has_prediction` tells whether there is a
    picture of its prediction, and `has_handler` whether there is a handler for Inference Endpoints.
    """
    task = task_of(config)
    paragraphs = [f"# {heading(config, repository)}", introduction(config, task)]
    if example:
        paragraphs.append(example_paragraph(markdown_text(example), has_prediction))
    paragraphs += [
        "## Use",
        f"```python\n{use(config, task, repository)}\n```",
        *[about_volumes(repository)] * takes_volumes(config, task),
        about_code(repository),
        *about_serving(config, task, repository, has_handler),
    ]
    paragraphs += ["## Scores", *score_paragraphs(scores)]
    if task != FEATURES:
        paragraphs += ["## Labels", label_table(config, processor, scores)]
    if run is not None:
        paragraphs += ["## Training", *training(run)]
    paragraphs += ["## Limits", limits(config, task, ((run or {}).get("hub_names") or {}).get("base_model"))]
    if papers := papers_of(config):
        paragraphs += ["## Citation", "```bibtex\n{}\n```".format("\n\n".join(papers))]
    return paragraphs


def use(config: Mapping[str, Any], task: str, repository: str) -> str:
    """The lines that open and use the model."""
    text = (USE_ON_VOLUMES if takes_volumes(config, task) else USE[task]).format(repository=repository)
    return text.replace("AutoModel", f"AutoModel{MASKED}") if is_masked(config) else text


def takes_volumes(config: Mapping[str, Any], task: str) -> bool:
    """Whether the model is a segmenter of volumes: its patches have three sides."""
    patch = config.get("patch_size")
    return task == SEGMENTATION and isinstance(patch, list | tuple) and len(patch) == 3


def is_masked(config: Mapping[str, Any]) -> bool:
    return config["architectures"][0].endswith(MASKED)


def example_paragraph(title: str, has_prediction: bool) -> str:
    """The example image; beside its prediction, if there is one."""
    shown = f"![{title}]({EXAMPLE_NAME})"
    if not has_prediction:
        return shown
    return f"| {title} | Prediction |\n| --- | --- |\n| {shown} | ![Prediction]({PREDICTION_NAME}) |"


def heading(config: Mapping[str, Any], repository: str) -> str:
    return config["architectures"][0] if repository == "." else repository.rpartition("/")[2]


def introduction(config: Mapping[str, Any], task: str) -> str:
    model_type = config["model_type"]
    title, decoder = TITLES.get(model_type, f"`{model_type}`"), DECODERS.get(config.get("decoder"))
    if model_type == "nnformer" and config.get("num_global_tokens"):
        title = "GLAM-nnFormer"
    if task == SEGMENTATION and decoder and decoder != title:
        title = f"{title} with the {decoder} decoder"
    count = f", {len(labels_of(config))} labels" if task != FEATURES else ""
    purpose = "masked image modeling" if is_masked(config) else PURPOSES[task]
    return f"{title} for {purpose}{count}: a `{config['architectures'][0]}` of the contextseg library."


def about_volumes(repository: str) -> str:
    return (
        "transformers' pipelines take no volumes. `Inference` of the contextseg library (`pip install 'contextseg[volumes]'`) "
        "segments a volume of any size in overlapping windows, and "
        f"`contextseg-predict {repository} case.nii.gz --output out/` writes the mask on the grid of the file."
    )


def about_code(repository: str) -> str:
    name = ' The model name `"."` is the folder of this card.' if repository == "." else ""
    return (
        "The model code is in this repository and needs torch, torchvision and transformers. With contextseg "
        f"installed, `import contextseg` replaces `trust_remote_code=True`.{name}"
    )


def about_serving(config: Mapping[str, Any], task: str, repository: str, has_handler: bool) -> list[str]:
    """What of the Hub runs the model; nothing for models that only give features."""
    if task == FEATURES:
        return []
    if task != SEGMENTATION or takes_volumes(config, task):
        return [
            "The widget on the Hub's page of a model runs no code of repositories, so it does not run this model."
        ]
    handler = (
        "with `handler.py`, which is here" if has_handler else "after `contextseg-export` with `--handler`"
    )
    rows = [
        ["the widget of its page", "no: it runs no code of repositories"],
        [
            "[Inference Endpoint](https://endpoints.huggingface.co)",
            f"yes, {handler}: an image in, label, score and PNG mask of each class out",
        ],
        [
            "[Space](https://huggingface.co/docs/hub/spaces)",
            f"yes: `contextseg-export {repository} --space FOLDER` writes its page",
        ],
    ]
    return ["## Serve", table(["on the Hub", "runs this model"], rows)]


def labels_of(config: Mapping[str, Any]) -> dict[int, str]:
    named = config.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"}
    return {int(index): name for index, name in sorted(named.items(), key=lambda item: int(item[0]))}


def label_table(config: Mapping[str, Any], processor: Mapping[str, Any], scores: Mapping[str, Any]) -> str:
    """Returns a table with one row per class: id, name, color if there is a palette, and scores."""
    palette = processor.get("palette") or []
    measured = {row["name"]: row for row in scores.get("per_class") or []}
    columns = [name for name in COLUMNS if any(name in row for row in measured.values())]
    rows = []
    for index, name in labels_of(config).items():
        color = "#{:02x}{:02x}{:02x}".format(*palette[index]) if index < len(palette) else ""
        row = measured.get(name, {})
        cells = [index, markdown_text(name), *[color] * bool(palette)]
        rows.append([*cells, *(number(row.get(column)) for column in columns)])
    return table(["id", "label", *["color"] * bool(palette), *(COLUMNS[name] for name in columns)], rows)


def score_paragraphs(scores: Mapping[str, Any]) -> list[str]:
    rows = [[name, number(scores[key])] for key, (_, name) in METRICS.items() if scores.get(key) is not None]
    if not rows:
        return ["This folder holds no scores."]
    images = f", {scores['images']} images" if "images" in scores else ""
    protocol = f": {scores['protocol']}" if "protocol" in scores else ""
    data = one_line(str(scores.get("data", "unnamed data"))).replace("`", "'")
    return [f"On `{data}`{images}{protocol}.", table(["score", "value"], rows)]


def training(run: Mapping[str, Any]) -> list[str]:
    """Returns command, cost and settings of the run, from `run.json`."""
    if not run:
        return ["This folder holds no record of the training run."]
    paragraphs = [f"```\n{one_line(shlex.join(run['command']))}\n```"] if run.get("command") else []
    if "seconds" in run:
        paragraphs.append(cost(run))
    settings = {name: value for name, value in run.items() if name not in ("best", "command", "scores")}
    block = json.dumps(without_empty(settings), indent=1, sort_keys=True).replace("<", "\\u003c")
    return [*paragraphs, f"<details><summary>All settings</summary>\n\n```json\n{block}\n```\n\n</details>"]


def without_empty(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Removes settings that are None or empty, also in nested mappings."""
    inner = {
        name: without_empty(value) if isinstance(value, Mapping) else value
        for name, value in settings.items()
    }
    return {name: value for name, value in inner.items() if value not in (None, [], {})}


def cost(run: Mapping[str, Any]) -> str:
    """Returns steps, seconds, hardware and versions in one sentence."""
    hardware, versions = run.get("hardware") or {}, run.get("versions") or {}
    gpus = hardware.get("gpus") or []
    machine = ", ".join(
        f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus)
    ) or "{}, threads: {}".format(
        hardware.get("processor") or "an unnamed processor", hardware.get("threads", "?")
    )
    packages = [
        f"{name} {versions[name]}" for name in ("torch", "transformers", "contextseg") if name in versions
    ]
    return (
        f"{run.get('steps_done', '?')} steps in {run['seconds']:.0f} seconds on {machine}, seed {run.get('seed', '?')}"
        + (f"; {', '.join(packages)}." if packages else ".")
    )


def limits(config: Mapping[str, Any], task: str, base_model: str | None) -> str:
    lines = [
        "- Scores hold only for the data and protocol named with them. Evaluate on your own data before use."
    ]
    if task == SEGMENTATION:
        lines += [
            "- Every pixel gets one of the labels above, even if none of them fits.",
            f"- Logits are computed {logits_size(config)}: small objects are easily missed.",
        ]
    lines += [about_start(base_model)] * (base_model is not None)
    lines += READINGS.get(config["model_type"], [])
    return "\n".join(lines)


def about_start(base_model: str) -> str:
    return (
        f"- The weights start from [{base_model}](https://huggingface.co/{base_model}), "
        "whose license applies to them as well."
    )


def logits_size(config: Mapping[str, Any]) -> str:
    if config.get("decoder") == "unet":
        if "backbone_config" in config:
            return "at full resolution from the encoder's finest feature map"
        patch, unit = config["patch_size"], "voxels" if takes_volumes(config, SEGMENTATION) else "pixels"
        sides = patch if isinstance(patch, list | tuple) else (patch, patch)
        return f"at full resolution from patches of {' x '.join(map(str, sides))} {unit}"
    if takes_volumes(config, SEGMENTATION):
        return f"at full resolution from patches of {' x '.join(map(str, config['patch_size']))} voxels"
    if "backbone_config" in config:
        return "at the resolution of the encoder's finest feature map"
    return f"at 1/{config.get('patch_size', 4)} of the image's height and width"


def table(head: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    """Returns a table whose cells are Markdown of one line; names from data go through `markdown_text` first."""
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in cells)


def number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "-" if value is None else str(value)
