"""The model card (README.md) of a repository, written from what lies in the folder: settings, processor, scores.

Only the part between our two marker lines is ever written again; what people write around it stays, and a card without
the markers is theirs. Scores come from `evaluation.json`, the recipe from `run.json`, as the scripts leave them.
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME
from yaml import YAMLError

logger = logging.getLogger(__name__)

CARD_NAME = "README.md"
SCORES_NAME, RUN_NAME = RECORDS = ("evaluation.json", "run.json")
BEGIN = "<!-- contextseg writes this part again with every save; what stands outside it is kept -->"
END = "<!-- end of contextseg's part -->"
# transformers' own drafts: an empty form, which we replace, and Trainer's log of a training, which we keep and complete.
EMPTY_FORM = "This model card has been automatically generated."
TRAINER_LOG = "generated automatically according to the information the Trainer had access to"

SEGMENTATION, CLASSIFICATION, FEATURES = (
    "image-segmentation",
    "image-classification",
    "image-feature-extraction",
)
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
    FEATURES: """\
from transformers import AutoModel

model = AutoModel.from_pretrained("{repository}", trust_remote_code=True)
print(model)""",
}
PAPERS = {
    "segdeformer": """\
@inproceedings{shi2022transformer,
  title = {A Transformer-Based Decoder for Semantic Segmentation with Multi-level Context Mining},
  author = {Shi, Bowen and Jiang, Dongsheng and Zhang, Xiaopeng and Li, Han and Dai, Wenrui and Zou, Junni and Xiong, Hongkai and Tian, Qi},
  booktitle = {European Conference on Computer Vision (ECCV)},
  pages = {624--639},
  year = {2022}
}""",
    "glam_swin": """\
@inproceedings{themyr2023full,
  title = {Full Contextual Attention for Multi-resolution Transformers in Semantic Segmentation},
  author = {Themyr, Loic and Rambour, Cl{\\'e}ment and Thome, Nicolas and Collins, Toby and Hostettler, Alexandre},
  booktitle = {Proceedings of the IEEE/CVF Winter Conference on Applications of Computer Vision (WACV)},
  pages = {3224--3233},
  year = {2023}
}""",
    "maformer": """\
@article{wang2022maformer,
  title = {MAFormer: A Transformer Network with Multi-scale Attention Fusion for Visual Recognition},
  author = {Wang, Yunhao and Sun, Huixin and Wang, Xiaodi and Zhang, Bin and Li, Chao and Xin, Ying and
    Zhang, Baochang and Ding, Errui and Han, Shumin},
  journal = {arXiv preprint arXiv:2209.01620},
  year = {2022}
}""",
    "cswin": """\
@inproceedings{dong2022cswin,
  title = {CSWin Transformer: A General Vision Transformer Backbone with Cross-Shaped Windows},
  author = {Dong, Xiaoyi and Bao, Jianmin and Chen, Dongdong and Zhang, Weiming and Yu, Nenghai and Yuan, Lu and
    Chen, Dong and Guo, Baining},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  pages = {12124--12134},
  year = {2022}
}""",
}


# Where a paper leaves open what its model is: what ours does.
READINGS = {
    "maformer": [
        "- The MAFormer authors published neither code nor weights. This model follows the paper and the numbers in its "
        "tables: global learning pools the map to a fixed grid before its fully connected layer, because one over all tokens "
        "would have more weights than the whole model is printed with; and MAFormer-S has 5.1 G multiply-adds where 4.5 G are "
        "printed (`depths=(2, 4, 8, 3)` gives both printed numbers).",
    ],
}


def write_model_card(
    folder: str | os.PathLike,
    *,
    repository: str = ".",
    scores: Mapping[str, Any] | None = None,
    run: Mapping[str, Any] | None = None,
    license: str | None = None,
    tags: Sequence[str] = (),
    **metadata: Any,
) -> None:
    """Writes the README.md of a folder that `save_pretrained` filled, or our part of it; a card without it is left alone.

    repository: the name that the lines of use give to `from_pretrained`; "." is the folder itself.
    scores, run: contents of `evaluation.json` and `run.json`, by default those in the folder.
    license, tags, metadata: further front matter, such as `datasets`, `base_model` or `widget`. A new card's licence is
        Apache-2.0 unless told; what a card has and is not named here, it keeps.
    """
    folder = Path(folder)
    config = read_settings(folder / CONFIG_NAME)
    scores = without_own_folders(scores or read_settings(folder / SCORES_NAME))
    run = without_own_folders(run or read_settings(folder / RUN_NAME))
    processor = read_settings(folder / IMAGE_PROCESSOR_NAME)
    given = metadata | ({"license": license} if license else {})
    data = front_matter(config, scores, tags)
    part = "\n\n".join([BEGIN, *sections(config, processor, scores, run, repository), END])
    path = folder / CARD_NAME
    existing = path.read_text(encoding="utf-8") if path.is_file() else ""
    try:
        card = merged(existing, data, given, part)
    except (ValueError, YAMLError) as error:  # a save must not fail because a person's front matter does
        logger.warning("%s was left as it is, because its front matter cannot be read: %s", path, error)
        return
    write_text(path, card)


def merged(existing: str, data: Mapping[str, Any], given: Mapping[str, Any], part: str) -> str:
    """The card's new text: its own words stay, and its front matter where not `given`; our part and scores are as of now."""
    if BEGIN in existing and END in existing:
        before, rest = existing.split(BEGIN, 1)
        text = before + part + rest.split(END, 1)[1]
    elif TRAINER_LOG in existing:
        text = f"{existing.rstrip()}\n\n{part}\n"
    elif existing.strip() and EMPTY_FORM not in existing:
        return existing
    else:
        text = f"---\n{{}}\n---\n{part}\n"
    card = ModelCard(text)
    kept = card.data.to_dict()
    if TRAINER_LOG not in existing:
        kept = {name: value for name, value in kept.items() if name not in ("model-index", "metrics")}
    values = {
        **data,
        **kept,
        **given,
        "tags": list(dict.fromkeys([*(kept.get("tags") or []), *data["tags"]])),
    }
    return f"---\n{ModelCardData(**values, ignore_metadata_errors=True).to_yaml()}\n---\n{card.text.lstrip()}"


def front_matter(config: Mapping[str, Any], scores: Mapping[str, Any], tags: Sequence[str]) -> dict[str, Any]:
    """What the Hub reads: task, licence, tags and scores."""
    architecture, task = config["architectures"][0], task_of(config)
    results = None
    if "mean_iou" in scores:
        data = str(scores.get("data", "unnamed data"))
        results = [EvalResult(task, data, data, "mean_iou", scores["mean_iou"], metric_name="Mean IoU")]
    fields = {"library_name": "transformers", "pipeline_tag": task, "license": "apache-2.0"}
    if results:
        fields |= {"metrics": ["mean_iou"], "eval_results": results, "model_name": architecture}
    return ModelCardData(**fields, tags=[*card_tags(config), *tags]).to_dict()


def card_tags(config: Mapping[str, Any]) -> list[str]:
    task = task_of(config)
    return ["contextseg", config["model_type"], task] + ["semantic-segmentation"] * (task == SEGMENTATION)


def task_of(config: Mapping[str, Any]) -> str:
    architecture = config["architectures"][0]
    named = {"ForSemanticSegmentation": SEGMENTATION, "ForImageClassification": CLASSIFICATION}
    return next((task for ending, task in named.items() if architecture.endswith(ending)), FEATURES)


def sections(
    config: Mapping[str, Any],
    processor: Mapping[str, Any],
    scores: Mapping[str, Any],
    run: Mapping[str, Any],
    repository: str,
) -> list[str]:
    """The card's paragraphs in Markdown."""
    task, architecture = task_of(config), config["architectures"][0]
    paragraphs = [
        f"# {architecture}",
        f"A `{config['model_type']}` model of the contextseg library ({task}).",
    ]
    paragraphs += ["## Use", f"```python\n{USE[task].format(repository=repository)}\n```"]
    paragraphs += [
        "The code that this runs lies beside this card and needs torch, torchvision and transformers; where contextseg "
        'is installed, `import contextseg` takes the place of `trust_remote_code=True`. The model name `"."` is the '
        "folder of this card."
    ]
    if task != FEATURES:
        paragraphs += ["## Labels", label_table(config, processor, scores)]
    paragraphs += ["## Scores", score_table(scores), "## Training", recipe(run)]
    paragraphs += ["## Limits", limits(config, task)]
    if config["model_type"] in PAPERS:
        paragraphs += ["## Citation", f"```bibtex\n{PAPERS[config['model_type']]}\n```"]
    return paragraphs


def label_table(config: Mapping[str, Any], processor: Mapping[str, Any], scores: Mapping[str, Any]) -> str:
    """One row for each class: id, name, colour where there is a palette, IoU where it was measured."""
    labels = {
        int(index): name for index, name in (config.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"}).items()
    }
    palette = processor.get("palette") or []
    measured = {row["name"]: row["iou"] for row in scores.get("per_class", [])}
    head = ["id", "label", *["colour"] * bool(palette), *["IoU"] * bool(measured)]
    rows = []
    for index, name in sorted(labels.items()):
        colour = "#{:02x}{:02x}{:02x}".format(*palette[index]) if index < len(palette) else ""
        rows.append([index, name, *[colour] * bool(palette), *[number(measured.get(name))] * bool(measured)])
    return table(head, rows)


def score_table(scores: Mapping[str, Any]) -> str:
    plain = [
        [name, number(value)]
        for name, value in scores.items()
        if isinstance(value, str | int | float) and name != "model"
    ]
    return table(["", ""], plain) if plain else "Not measured."


def recipe(run: Mapping[str, Any]) -> str:
    """The run's arguments and versions, as `run.json` has them."""
    if not run:
        return "No training run was recorded beside these weights."
    settings = {name: value for name, value in run.items() if name not in ("best", "scores")}
    return f"```json\n{json.dumps(settings, indent=1, sort_keys=True)}\n```"


def limits(config: Mapping[str, Any], task: str) -> str:
    lines = [
        "- A score holds for the data and protocol named beside it; other cameras and places need a test of their own."
    ]
    if task == SEGMENTATION:
        lines += [
            "- Every pixel gets one of the labels above, also where none of them fits.",
            f"- Logits come {logits_size(config)}: objects of few pixels are easily lost.",
        ]
    lines += READINGS.get(config["model_type"], [])
    return "\n".join(lines)


def logits_size(config: Mapping[str, Any]) -> str:
    if config.get("decoder") == "unet":
        return f"at the image's size, from patches of {config['patch_size']} pixels"
    if "backbone_config" in config:
        return "at the size of the encoder's finest feature map"
    return f"at 1/{config.get('patch_size', 4)} of the image's side"


def table(head: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in cells)


def without_own_folders(value: Any) -> Any:
    """The same settings with `/home/me/data/streets/val` as `streets/val`: a card is public."""
    if isinstance(value, Mapping):
        return {name: without_own_folders(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_own_folders(item) for item in value]
    if isinstance(value, str) and os.path.isabs(value):
        return "/".join(Path(value).parts[-2:])
    return value


def number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "-" if value is None else str(value)


def read_settings(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_text(path: Path, text: str) -> None:
    """Under a temporary name first, and not at all when the file says so already."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
