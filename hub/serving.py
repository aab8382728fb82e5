"""Writes what serves a published segmenter: the handler of an Inference Endpoint, and a Space.

Both are source files of this folder in one piece each, see `bundling.py`, and need transformers, not contextseg.
"""

import json
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from huggingface_hub import CardData, ModelCard, SpaceCardData
from transformers import BaseImageProcessor
from transformers.utils import CONFIG_NAME

from ..processing.mask_models import MASK_SIZES
from ..processing.palettes import class_colors
from ..processing.plain_text import markdown_text, one_line
from .bundling import bundle_names
from .card_data import HANDLER_NAME, SEGMENTATION, task_of
from .card_sections import labels_of, takes_volumes
from .endpoint_handler import EndpointHandler
from .model_card import CARD_NAME, NAMED_LICENSE, read_settings, write_text

APP_NAME, MODEL_FOLDER, REQUIREMENTS_NAME = "app.py", "model", "requirements.txt"
PYTHON = "3.11"
# Lines of requirements.txt; the versions are those of pyproject.toml.
REQUIRED = (
    "torch>=2.8",
    "torchvision>=0.23",
    "transformers>=5.10.1,<6",
    "numpy>=2.0",
    "pillow>=11",
)
TIMM, GRADIO, LEAST_GRADIO = "timm>=1.0.20", "gradio>=6.20,<7", "6.20.0"
END_OF_APP = """

COLORS = [  # of the classes
{colors}
]
HERE = Path(__file__).parent
page = Page(ImageSegmenter(HERE / "model"), COLORS)
demo = build({title}, page, HERE / "model" / "example.png")

if __name__ == "__main__":
    demo.launch()
"""
SPACE_CARD = f"""---
{{front_matter}}
---
# {{title}}

A page for the model in this Space (`{MODEL_FOLDER}/`): choose an image, and each pixel gets one of {{count}} classes.{{looks}}

`{MODEL_FOLDER}/` holds the weights and the code of the model, which needs transformers and not contextseg. To run the page on your own
machine: `pip install -r {REQUIREMENTS_NAME}`, then `python {APP_NAME}`.
"""


def check_served(model: str, config: dict[str, Any], option: str, rgb: bool = False) -> None:
    """Raises ValueError unless a model is a segmenter of images, with `rgb` of RGB images.

    Args:
        model: Its name, for the message.
        config: Its config.json.
        option: What was asked for, for the message.
        rgb: Whether it must take three channels.
    """
    if config.get("model_type") in MASK_SIZES:
        raise ValueError(
            f"{option} is for segmenters that classify pixels, and {model} classifies masks. Leave it out: transformers' "
            "own pipeline for image segmentation runs this model."
        )
    task = task_of({"architectures": config.get("architectures") or [""]})
    if task != SEGMENTATION or takes_volumes(config, task):
        raise ValueError(
            f"{option} is for segmenters of images, and {model} is not one. Leave it out: the repository itself is "
            "complete without it."
        )
    if rgb and config.get("num_channels", 3) != 3:
        raise ValueError(
            f"{option} writes a page for RGB images, but {model} takes {config['num_channels']} channels. Use --handler, "
            "which takes files of any number."
        )


def write_handler(folder: Path, config: dict[str, Any]) -> None:
    """Writes `handler.py` and `requirements.txt` into the folder of a model with this config.json."""
    (text,) = bundle_names([(EndpointHandler.__module__, EndpointHandler.__name__)]).values()
    write_text(folder / HANDLER_NAME, text)
    write_text(folder / REQUIREMENTS_NAME, requirements(config))


def requirements(config: dict[str, Any], *others: str) -> str:
    """The lines of `requirements.txt` for a model with this config.json, and others."""
    is_of_timm = "timm" in str((config.get("backbone_config") or {}).get("model_type"))
    return "\n".join([*REQUIRED, *[TIMM] * is_of_timm, *others, ""])


def check_new_space(folder: Path) -> None:
    """Raises ValueError if a folder has files already, except hidden ones, as those of git."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file. Give a folder for the Space.")
    files = [path.name for path in folder.glob("*") if not path.name.startswith(".")]
    if files:
        raise ValueError(f"{folder} already holds {files[0]}. Give a new or empty folder for the Space.")


def write_space(folder: Path, name: str, processor: BaseImageProcessor, published: str | None = None) -> None:
    """Writes the page, the requirements and the card of a Space, whose model is in its subfolder `model` already.

    Args:
        folder: Folder of the Space.
        name: Name of the model, for the title.
        processor: Image processor of the model.
        published: The model's repository on the Hub, if it has one.
    """
    model = folder / MODEL_FOLDER
    config = read_settings(model / CONFIG_NAME)
    labels = labels_of(config)
    write_text(folder / APP_NAME, app(name, class_colors(getattr(processor, "palette", None), len(labels))))
    write_text(folder / REQUIREMENTS_NAME, requirements(config, GRADIO))
    card = ModelCard.load(model / CARD_NAME) if (model / CARD_NAME).is_file() else ModelCard("")
    looks = " Click a pixel to see where it looks." if "global_attention_maps" in code_of(model) else ""
    write_text(
        folder / CARD_NAME,
        SPACE_CARD.format(
            front_matter=front_matter(name, card.data, published).to_yaml(),
            title=markdown_text(name),
            count=len(labels),
            looks=looks,
        ),
    )


def app(name: str, colors: Sequence[Sequence[int]]) -> str:
    """The source of `app.py`."""
    parts = [(f"{__package__}.space_page", part) for part in ("build", "Page")]
    (text,) = bundle_names([*parts, (f"{__package__}.image_segmenter", "ImageSegmenter")]).values()
    shown = ['"#{:02x}{:02x}{:02x}",'.format(*color) for color in colors]
    lines = ["    " + " ".join(shown[first : first + 9]) for first in range(0, len(shown), 9)]
    return text + END_OF_APP.format(colors="\n".join(lines), title=json.dumps(markdown_text(name)))


def code_of(folder: Path) -> str:
    """The code in the folder of a model."""
    return "".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("modeling_*.py")))


def front_matter(name: str, card: CardData, published: str | None) -> SpaceCardData:
    """What the Hub reads to run a Space: title, software, and the license of the model's card."""
    license = {field: card.get(field) for field in NAMED_LICENSE if card.get(field)}
    base = card.get("base_model") or []
    models = [published] if published else [base] if isinstance(base, str) else base
    return SpaceCardData(
        title=one_line(name),
        emoji="🔍",
        colorFrom="green",
        colorTo="blue",
        sdk="gradio",
        sdk_version=gradio_version(),
        python_version=PYTHON,
        app_file=APP_NAME,
        models=models or None,
        tags=["contextseg", SEGMENTATION],
        short_description="Semantic segmentation with contextseg",
        **license,
    )


def gradio_version() -> str:
    """The installed version of gradio, or the least one that the page works with."""
    try:
        return version("gradio")
    except PackageNotFoundError:
        return LEAST_GRADIO
