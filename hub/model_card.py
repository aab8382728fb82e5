"""Writes the model card (README.md) of a repository from its files: configuration, processor, scores, run.

Only the part between our two marker lines is rewritten; text around it is kept, and a card without the
markers is never changed. Scores come from `evaluation.json`, the description of the training from `run.json`,
both written by the scripts.
"""

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME
from yaml import YAMLError

from ..processing.atomic_write import atomic_write
from ..processing.image_opening import read_title
from .card_data import EXAMPLE_NAME, HANDLER_NAME, PREDICTION_NAME, front_matter
from .card_sections import sections

logger = logging.getLogger(__name__)

CARD_NAME = "README.md"
SCORES_NAME, RUN_NAME = RECORDS = ("evaluation.json", "run.json")
BEGIN = "<!-- contextseg rewrites this part with every save; text outside it is kept -->"
END = "<!-- end of the part that contextseg writes -->"
# Cards by transformers: an empty template, which we replace, and Trainer's log, which we keep and extend.
EMPTY_FORM = "This model card has been automatically generated."
TRAINER_LOG = "generated automatically according to the information the Trainer had access to"
# What Trainer writes although it knows neither the data nor, for a local folder, the checkpoint.
TRAINERS_ORIGIN = re.compile(
    r"This model (?:was trained from scratch|is a fine-tuned version of \[(?P<base>[^\]\n]*)\]\([^)\n]*\)) on "
    r"(?P<data>[^\n]*datasets?)\.\n"
)
TRAINERS_GAPS = re.compile(r"## [^\n]+\n\nMore information needed\n+")
UNKNOWN_DATA = ("an unknown dataset", "the None dataset")
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
# Front matter that depends on the weights: values of an older card do not apply to new weights.
OF_THE_WEIGHTS = ("base_model", "datasets", "metrics", "model-index")
NAMED_LICENSE = ("license", "license_name", "license_link")


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
    """Writes the model card of a folder that `save_pretrained` filled, or updates our part of it.

    A card without our part is left unchanged, except for the drafts of transformers. Other front matter of a
    card is kept.

    Args:
        folder: Folder with the saved model.
        repository: Model name in the usage example; "." is the folder itself.
        scores: Content of `evaluation.json`; by default that in the folder.
        run: Content of `run.json`; by default that in the folder.
        license: License of the weights, in the Hub's spelling. By default a new card gets that of the run,
            else that of the checkpoint that the weights start from if it is known, else none.
        tags: Further tags.
        **metadata: Further front matter, such as `widget`.
    """
    folder = Path(folder)
    config = read_settings(folder / CONFIG_NAME)
    processor = read_settings(folder / IMAGE_PROCESSOR_NAME)
    path = folder / CARD_NAME
    existing = read_text(path)
    run = without_own_folders(run or read_settings(folder / RUN_NAME))
    scores = without_own_folders(scores or read_settings(folder / SCORES_NAME)) or scores_of_training(run)
    example = title_of(folder / EXAMPLE_NAME)
    given = metadata | ({"license": license} if license else {})
    data = front_matter(config, scores, run, tags, example)
    record = None if not run and TRAINER_LOG in existing else run  # Trainer's log describes the training
    present = [(folder / name).is_file() for name in (PREDICTION_NAME, HANDLER_NAME)]
    body = sections(config, processor, scores, record, repository, example, *present)
    try:
        card = merged(existing, data, given, "\n\n".join([BEGIN, *body, END]))
    except (ValueError, YAMLError) as error:  # invalid front matter must not make a save fail
        logger.warning("%s was left unchanged, because its front matter cannot be read: %s", path, error)
        return
    write_text(path, card)


def ask_for_license(folder: Path) -> None:
    """Logs a warning if a card that we wrote and that will be public names no license."""
    card = read_text(folder / CARD_NAME)
    if BEGIN in card and ModelCard(card).data.license is None:
        logger.warning(
            "the model card names no license for these weights. Choose one, and give it as license=... of "
            "push_to_hub or save_pretrained, --license of the commands, or `license:` at the top of the card."
        )


def true_part(log: str) -> str:
    """Trainer's card without what it does not know: data, a checkpoint that is no repository, empty sections."""
    return TRAINERS_GAPS.sub("", TRAINERS_ORIGIN.sub(known_origin, log))


def known_origin(sentence: re.Match[str]) -> str:
    """What is true of Trainer's sentence about checkpoint and data; "" if nothing."""
    base, data = sentence["base"], sentence["data"]
    known = "" if data in UNKNOWN_DATA else f" on {data}"
    if base and HUB_NAME.fullmatch(base):
        return f"This model is a fine-tuned version of [{base}](https://huggingface.co/{base}){known}.\n"
    return f"This model was trained{known}.\n" if known else ""


def merged(existing: str, data: Mapping[str, Any], given: Mapping[str, Any], part: str) -> str:
    """Returns the new card; keeps other text, and front matter not `given` and independent of the weights."""
    existing = true_part(existing) if TRAINER_LOG in existing else existing
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
    if "license" in given:  # name and link belong to another license
        data, kept = ({k: v for k, v in part.items() if k not in NAMED_LICENSE} for part in (data, kept))
    if TRAINER_LOG not in existing:
        kept = {name: value for name, value in kept.items() if name not in ("model-index", "metrics")}
    if (
        TRAINER_LOG in existing
        and isinstance(base := kept.get("base_model"), str)
        and not HUB_NAME.fullmatch(base)
    ):
        del kept["base_model"]  # Trainer writes the path of a folder that is gone
    if [item.get("src") for item in kept.get("widget") or []] == [EXAMPLE_NAME]:
        del kept["widget"]
    of_the_weights = {name: data[name] for name in OF_THE_WEIGHTS if name in data}
    tags = list(dict.fromkeys([*(kept.get("tags") or []), *data["tags"]]))
    values = {**data, **kept, **of_the_weights, **given, "tags": tags}
    return f"---\n{ModelCardData(**values, ignore_metadata_errors=True).to_yaml()}\n---\n{card.text.lstrip()}"


def scores_of_training(run: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the validation scores by which a run selected its weights; empty without validation data."""
    best, data = run.get("best") or {}, (run.get("arguments") or {}).get("val")
    if not (best and data):
        return {}
    protocol = "validation during training, used to select these weights"
    return {"data": data, "protocol": protocol, **best}


def title_of(path: Path) -> str | None:
    """Returns the title in a PNG's metadata, or "Example" without one; None if there is no image."""
    if not path.is_file():
        return None
    return read_title(path) or "Example"


def without_own_folders(value: Any) -> Any:
    """Shortens `/home/me/data/streets/val` to `streets/val`, also in `name=/home/...`: cards are public."""
    if isinstance(value, Mapping):
        return {name: without_own_folders(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_own_folders(item) for item in value]
    if isinstance(value, str):
        name, equals, path = value.rpartition("=")
        if os.path.isabs(path):
            return name + equals + "/".join(Path(path).parts[1:][-2:])
    return value


def read_settings(path: Path) -> dict[str, Any]:
    """Reads a JSON object; empty if there is no such file. Raises ValueError, with the path, if it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, RecursionError) as error:
        reason = error if path.stat().st_size else "it is empty"
        raise ValueError(f"{path} is damaged: {reason}. Copy it again, or remove it.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it does not hold a JSON object. Copy it again, or remove it.")
    return content


def read_text(path: Path) -> str:
    """Returns the text of a file, "" if it does not exist. Raises ValueError, with the path, if it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else ""
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error}). Copy it again, or remove it.") from error


def write_text(path: Path, text: str) -> None:
    """Writes a file atomically; does nothing if it already has this text."""
    if read_text(path) == text:
        return
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
