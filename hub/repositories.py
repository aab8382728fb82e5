"""Self-contained Hub repositories: a model's weights and settings, with the code that they need beside them.

Every save of a model or image processor of this package comes through `save` (see `registration.py`), also those that Trainer
makes. The folder gains the source files, flat, and an `auto_map`, so that transformers' Auto classes open it with
`trust_remote_code=True` where contextseg is not installed, and a model card.

A save is completed in a hidden folder inside the target and moved into place file by file, code first and `config.json`
last: whatever fails meanwhile, no file is half-written and no configuration points to code that is not there.
"""

import importlib
import json
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RemoteEntryNotFoundError
from transformers import AutoBackbone, AutoModel, PreTrainedModel
from transformers.image_processing_base import ImageProcessingMixin
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME

from ..modeling.auto_classes import MODELS
from ..modeling.pretrained import ContextsegPreTrainedModel
from .backbone_export import custom_backbone_file
from .card_data import EXAMPLE_NAME, card_tags
from .errors import explained
from .flattening import flatten
from .model_card import CARD_NAME, RECORDS, read_settings, write_model_card, write_text

logger = logging.getLogger(__name__)

PACKAGE = __name__.partition(".")[0]
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
COMMIT_OPTIONS = ("commit_message", "commit_description", "create_pr", "private", "revision", "tags", "token")


# -- repositories ----------------------------------------------------------------------------------------------------


def add_code(folder: Path) -> bool:
    """Writes the code of the folder's model and image processor, then the `auto_map` that names it; whether any was ours."""
    is_ours = False
    for name, classes_of in ((CONFIG_NAME, model_classes), (IMAGE_PROCESSOR_NAME, processor_classes)):
        settings = read_settings(folder / name)
        classes = classes_of(settings)
        if classes:
            modules = [
                cls.__module__
                for found in classes.values()
                for cls in (found.values() if isinstance(found, dict) else [found])
            ]
            for file, source in {**flatten(modules), **custom_backbone_file(settings, folder)}.items():
                write_text(folder / file, source)
            settings["auto_map"] = {auto_class: reference(found) for auto_class, found in classes.items()}
        elif any(not (folder / file).is_file() for file in code_files(settings)):
            del settings["auto_map"]  # from an earlier life: it must not stay without its code
        else:
            continue
        write_text(folder / name, json.dumps(settings, indent=2, sort_keys=True) + "\n")
        is_ours |= bool(classes)
    return is_ours


def model_classes(config: dict[str, Any]) -> dict[str, type]:
    """Auto class -> class of this package, for all that open the weights which this configuration describes.

    Features can be had from every model's weights; a head only by the class that was saved.
    """
    name = (config.get("architectures") or [""])[0]
    for config_class, models in MODELS.items():
        if any(model.__name__ == name for model in models.values()):
            opening = {
                auto_class.__name__: model
                for auto_class, model in models.items()
                if model.__name__ == name or auto_class in (AutoModel, AutoBackbone)
            }
            return {"AutoConfig": config_class, **opening}
    return {}


def processor_classes(settings: dict[str, Any]) -> dict[str, dict[str, type]]:
    """The same for a preprocessor_config.json: one class for each backend."""
    name = settings.get("image_processor_type", "")
    package = importlib.import_module(PACKAGE)
    if not name or name not in package.__all__:
        return {}
    return {
        "AutoImageProcessor": {"torchvision": getattr(package, name), "pil": getattr(package, f"{name}Pil")}
    }


def reference(found: type | dict[str, type]) -> str | dict[str, str]:
    """`file.Class`, as an `auto_map` writes it."""
    if isinstance(found, dict):
        return {backend: reference(cls) for backend, cls in found.items()}
    return f"{found.__module__.rpartition('.')[2]}.{found.__name__}"


def code_files(settings: dict[str, Any]) -> list[str]:
    """The files of its own repository that an `auto_map` names."""
    references = []
    for entry in settings.get("auto_map", {}).values():
        references += (
            entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else [entry]
        )
    return [f"{entry.partition('.')[0]}.py" for entry in references if entry and "--" not in entry]


# -- saving and pushing ----------------------------------------------------------------------------------------------


def save(
    saved: PreTrainedModel | ImageProcessingMixin,
    write: Callable[..., Any],
    folder: str | os.PathLike,
    *,
    push_to_hub: bool = False,
    repo_id: str | None = None,
    **options: Any,
) -> None:
    """`save_pretrained` of a model or image processor: `write` is transformers' own, the rest makes a repository of it.

    The code and card are completed for all that lies in the folder, because Trainer copies a checkpoint's
    configuration there and saves only the processor anew.
    """
    folder = Path(folder)
    with staged(folder) as staging:
        write(staging, **options)
        if not add_code(staging):
            logger.warning(
                "%s is no class of %s: %s holds no code for it.", type(saved).__name__, PACKAGE, folder
            )
    add_code(folder)
    complete_card(folder)
    if isinstance(saved, ContextsegPreTrainedModel):
        saved.add_model_tags(
            card_tags(saved.config.to_dict())
        )  # Trainer writes a card of its own, with these
    if push_to_hub:
        push(saved, repo_id or folder.name, **options)


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A hidden folder inside `folder`, from which finished files move into it: code first, config.json last."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".saving-", dir=folder) as hidden:
        yield Path(hidden)
        files = sorted(
            Path(hidden).iterdir(),
            key=lambda path: (path.name == CONFIG_NAME, path.suffix != ".py", path.name),
        )
        for path in files:
            os.replace(path, folder / path.name)
        remove_old_weights(folder, {path.name for path in files})


def remove_old_weights(folder: Path, written: set[str]) -> None:
    for file in outdated_weights([path.name for path in folder.iterdir()], written):
        (folder / file).unlink()


def outdated_weights(present: Iterable[str], written: Collection[str]) -> list[str]:
    """After new weights: those of an earlier save in more or fewer files, which would be read in their place."""
    if not any(is_weights(file) for file in written):
        return []
    return [file for file in present if is_weights(file) and file not in written]


def is_weights(file: str) -> bool:
    return any(fnmatch(file, pattern) for pattern in WEIGHTS)


def push(saved: PreTrainedModel | ImageProcessingMixin, repo_id: str, **options: Any) -> CommitInfo:
    """`push_to_hub` of a model or image processor: takes what `upload` takes, the rest goes to `save_pretrained`."""
    commit = {name: options.pop(name) for name in COMMIT_OPTIONS if name in options}
    commit.setdefault("commit_message", f"Upload {type(saved).__name__}")
    with TemporaryDirectory() as folder:
        saved.save_pretrained(folder, **options)
        return upload(Path(folder), repo_id, **commit)


def upload(
    folder: Path,
    repo_id: str,
    *,
    token: str | bool | None = None,
    private: bool | None = None,
    revision: str | None = None,
    tags: str | Sequence[str] | None = None,
    **commit: Any,
) -> CommitInfo:
    """The folder's files as one commit on top of the one that was read. What people wrote on a model card there is kept.

    Raises `HubError`, with nothing committed, where the Hub refuses, fails, or was pushed to by somebody else meanwhile.
    """
    api = HfApi(token=token)
    files = {path.name: path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")}
    with explained(repo_id, has_token=isinstance(token, str)), TemporaryDirectory() as name:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision and not commit.get("create_pr"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        head, draft = api.model_info(repo_id, revision=revision), Path(name)
        present = [sibling.rfilename for sibling in head.siblings or []]
        collect_card_sources(api, repo_id, head.sha, files, draft)
        complete_card(draft, repository=repo_id, tags=[tags] if isinstance(tags, str) else tags or [])
        if (draft / CARD_NAME).exists():
            files[CARD_NAME] = draft / CARD_NAME
        operations = [CommitOperationAdd(file, path) for file, path in sorted(files.items())]
        operations += [CommitOperationDelete(file) for file in outdated(present, files)]
        return api.create_commit(repo_id, operations, revision=revision, parent_commit=head.sha, **commit)


def outdated(present: Collection[str], files: Collection[str]) -> list[str]:
    """Of the files on the Hub: weights, scores and recipe that do not belong to the new weights."""
    if not any(is_weights(file) for file in files):
        return []
    records = [file for file in RECORDS if file in present and file not in files]
    return outdated_weights(present, files) + records


def collect_card_sources(
    api: HfApi, repo_id: str, revision: str | None, files: dict[str, Path], draft: Path
) -> None:
    """Copies what the card is written from into `draft`: from the files to upload, or else from the Hub.

    The card itself comes from the Hub first; scores and recipe only without new weights, for which they would not hold.
    """
    local = {file: path for file, path in files.items() if file != CARD_NAME}
    has_weights = any(is_weights(file) for file in files)
    for file in (CARD_NAME, CONFIG_NAME, IMAGE_PROCESSOR_NAME, EXAMPLE_NAME, *RECORDS):
        source = local.get(file)
        if source is None and not (has_weights and file in RECORDS):
            source = downloaded(api, repo_id, revision, file)
        source = source or files.get(file)
        if source is not None:
            (draft / file).write_bytes(Path(source).read_bytes())


def downloaded(api: HfApi, repo_id: str, revision: str | None, file: str) -> str | None:
    try:
        return api.hf_hub_download(repo_id, file, revision=revision)
    except RemoteEntryNotFoundError:
        return None


def complete_card(folder: Path, **options: Any) -> None:
    """The model card, where the folder holds a model of this package."""
    if model_classes(read_settings(folder / CONFIG_NAME)):
        write_model_card(folder, **options)
