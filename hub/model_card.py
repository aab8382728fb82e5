"""The model card (README.md) of a repository, written from what lies in the folder: settings, processor, scores.

Only the part between our two marker lines is ever written again; what people write around it stays, and a card without
the markers is theirs. Scores come from `evaluation.json`, all about the training from `run.json`, as the scripts leave them.
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from PIL import Image
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME
from yaml import YAMLError

from .card_data import EXAMPLE_NAME, front_matter
from .card_sections import sections

logger = logging.getLogger(__name__)

CARD_NAME = "README.md"
SCORES_NAME, RUN_NAME = RECORDS = ("evaluation.json", "run.json")
BEGIN = "<!-- contextseg writes this part again with every save; what stands outside it is kept -->"
END = "<!-- end of contextseg's part -->"
# transformers' own drafts: an empty form, which we replace, and Trainer's log of a training, which we keep and complete.
EMPTY_FORM = "This model card has been automatically generated."
TRAINER_LOG = "generated automatically according to the information the Trainer had access to"
# Front matter that follows from the weights: an older card's values would not hold for new ones.
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
    """Writes the README.md of a folder that `save_pretrained` filled, or our part of it; a card without it is left alone.

    repository: the name that the lines of use give to `from_pretrained`; "." is the folder itself.
    scores, run: contents of `evaluation.json` and `run.json`, by default those in the folder.
    license, tags, metadata: further front matter, such as `widget`; what a card has and is not named here, it keeps. Without
        `license` a new card has the run's, or that of the checkpoint the weights start from where it is known, or none.
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
    record = None if not run and TRAINER_LOG in existing else run  # which tells of the training itself
    body = sections(config, processor, scores, record, repository, example)
    try:
        card = merged(existing, data, given, "\n\n".join([BEGIN, *body, END]))
    except (ValueError, YAMLError) as error:  # a save must not fail because a person's front matter does
        logger.warning("%s was left as it is, because its front matter cannot be read: %s", path, error)
        return
    write_text(path, card)


def ask_for_license(folder: Path) -> None:
    """A log line where the card of a folder that becomes public, one that we wrote, names no license."""
    card = read_text(folder / CARD_NAME)
    if BEGIN in card and ModelCard(card).data.license is None:
        logger.warning(
            "the model card names no license for these weights. Name the one that you give them: license=... of push_to_hub "
            "and save_pretrained, --license of the commands, or `license:` at the top of the card."
        )


def merged(existing: str, data: Mapping[str, Any], given: Mapping[str, Any], part: str) -> str:
    """The card's new text: its own words stay, and its front matter where not `given` nor of the weights."""
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
    if "license" in given:  # the name and link are those of another license
        data, kept = ({k: v for k, v in part.items() if k not in NAMED_LICENSE} for part in (data, kept))
    if TRAINER_LOG not in existing:
        kept = {name: value for name, value in kept.items() if name not in ("model-index", "metrics")}
    if [item.get("src") for item in kept.get("widget") or []] == [EXAMPLE_NAME]:
        del kept["widget"]
    of_the_weights = {name: data[name] for name in OF_THE_WEIGHTS if name in data}
    tags = list(dict.fromkeys([*(kept.get("tags") or []), *data["tags"]]))
    values = {**data, **kept, **of_the_weights, **given, "tags": tags}
    return f"---\n{ModelCardData(**values, ignore_metadata_errors=True).to_yaml()}\n---\n{card.text.lstrip()}"


def scores_of_training(run: Mapping[str, Any]) -> dict[str, Any]:
    """The scores by which a run chose its weights; nothing where it had no validation data."""
    best, data = run.get("best") or {}, (run.get("arguments") or {}).get("val")
    if not (best and data):
        return {}
    protocol = "validation during training, by which these weights were chosen"
    return {"data": data, "protocol": protocol, **best}


def title_of(picture: Path) -> str | None:
    """What a PNG says that it shows; None where there is no picture."""
    if not picture.is_file():
        return None
    with Image.open(picture) as image:
        return image.info.get("Title", "Example")


def without_own_folders(value: Any) -> Any:
    """The same settings with `/home/me/data/streets/val` as `streets/val`, also in `name=/home/...`: a card is public."""
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
    text = read_text(path)
    return json.loads(text) if text else {}


def read_text(path: Path) -> str:
    """The text of a file, "" where there is none."""
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def write_text(path: Path, text: str) -> None:
    """Under a temporary name first, and not at all when the file says so already."""
    if read_text(path) == text:
        return
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
