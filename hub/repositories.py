"""Self-contained Hub repositories: a model's weights and settings, with the code that they need beside them.

Every save of a model or image processor of this package comes through `save` (see `registration.py`), also those that Trainer
makes. The folder gains the source files, flat, and an `auto_map`, so that transformers' Auto classes open it with
`trust_remote_code=True` where contextseg is not installed, and a model card.

A save is completed in a hidden folder inside the target and moved into place file by file, code first and `config.json`
last: whatever fails meanwhile, no file is half-written and no configuration points to code that is not there.
"""

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
from transformers import PreTrainedModel
from transformers.image_processing_base import ImageProcessingMixin
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME

from ..modeling.pretrained import ContextsegPreTrainedModel
from .card_data import EXAMPLE_NAME, card_tags
from .errors import explained
from .model_card import CARD_NAME, RECORDS, ask_for_license, read_settings, read_text, write_model_card
from .repository_code import (
    PACKAGE,
    code_files,
    model_classes,
    model_code,
    processor_classes,
    processor_code,
    reference,
)

logger = logging.getLogger(__name__)

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
COMMIT_OPTIONS = ("commit_message", "commit_description", "create_pr", "private", "revision", "tags", "token")


# -- code --------------------------------------------------------------------------------------------------------------


def add_code(staging: Path, folder: Path) -> set[str]:
    """Completes what is about to move from `staging` into `folder`: code, and the `auto_map` that names it.

    Settings that lie in the folder already are completed as well, because Trainer copies a checkpoint's configuration there
    and saves only the processor anew. What the folder holds already is not written again.

    Returns the names of the code files that the settings in `staging` need; none if they describe no class of ours.
    """
    needed: set[str] = set()
    for name, classes_of, code_of in (
        (CONFIG_NAME, model_classes, model_code),
        (IMAGE_PROCESSOR_NAME, processor_classes, processor_code),
    ):
        is_new = (staging / name).is_file()
        settings = read_settings((staging if is_new else folder) / name)
        classes, files = classes_of(settings), code_of(settings, folder)
        needed |= files.keys() if is_new else set()
        if classes:
            settings["auto_map"] = {auto_class: reference(found) for auto_class, found in classes.items()}
        elif any(
            not ((staging / file).is_file() or (folder / file).is_file()) for file in code_files(settings)
        ):
            del settings["auto_map"]  # from an earlier life: it must not stay without its code
        else:
            continue
        files[name] = json.dumps(settings, indent=2, sort_keys=True) + "\n"
        for file, text in files.items():
            (staging / file).unlink(missing_ok=True)
            if read_text(folder / file) != text:
                (staging / file).write_text(text, encoding="utf-8")
    return needed


# -- saving and pushing ----------------------------------------------------------------------------------------------


def save(
    saved: PreTrainedModel | ImageProcessingMixin,
    write: Callable[..., Any],
    folder: str | os.PathLike,
    *,
    license: str | None = None,
    push_to_hub: bool = False,
    repo_id: str | None = None,
    **options: Any,
) -> None:
    """`save_pretrained` of a model or image processor: `write` is transformers' own, the rest makes a repository of it.

    license: of the weights, in the Hub's spelling, for the model card.
    push_to_hub, repo_id: whether to upload what was saved, and to which repository; by default it is called as the folder.
    options: what `upload` takes, and for `write`.
    """
    folder = Path(folder)
    commit = commit_options(saved, options)
    with staged(folder) as staging:
        write(staging, **options)
        files = {path.name for path in staging.iterdir()}
        code = add_code(staging, folder)
    if not code:
        logger.warning(
            "%s is no class of %s: %s holds no code for it.", type(saved).__name__, PACKAGE, folder
        )
    complete_card(folder, license=license)
    if isinstance(saved, ContextsegPreTrainedModel):
        saved.add_model_tags(card_tags(saved.config.to_dict()))  # for the card that Trainer writes
    if push_to_hub:
        files |= {*code, CARD_NAME}
        upload(folder, repo_id or folder.name, files=files, license=license, **commit)


def commit_options(saved: object, options: dict[str, Any]) -> dict[str, Any]:
    """Takes out of `options` what `upload` takes."""
    commit = {name: options.pop(name) for name in COMMIT_OPTIONS if name in options}
    return {"commit_message": f"Upload {type(saved).__name__}", **commit}


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


def push(
    saved: PreTrainedModel | ImageProcessingMixin, repo_id: str, *, license: str | None = None, **options: Any
) -> CommitInfo:
    """`push_to_hub` of a model or image processor: takes what `upload` takes, the rest goes to `save_pretrained`."""
    commit = commit_options(saved, options)
    with TemporaryDirectory() as folder:
        saved.save_pretrained(folder, license=license, **options)
        return upload(Path(folder), repo_id, license=license, **commit)


def upload(
    folder: Path,
    repo_id: str,
    *,
    files: Collection[str] | None = None,
    license: str | None = None,
    token: str | bool | None = None,
    private: bool | None = None,
    revision: str | None = None,
    tags: str | Sequence[str] | None = None,
    **commit: Any,
) -> CommitInfo:
    """The folder's files as one commit on top of the one that was read. What people wrote on a model card there is kept.

    files: names of those to upload; by default all.
    license: of the weights, for the model card; by default the one that the card has.

    Raises `HubError`, with nothing committed, where the Hub refuses, fails, or was pushed to by somebody else meanwhile.
    """
    api = HfApi(token=token)
    local = {path.name: path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")}
    if files is not None:
        local = {name: path for name, path in local.items() if name in files}
    with explained(repo_id, has_token=isinstance(token, str)), TemporaryDirectory() as name:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision and not commit.get("create_pr"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        head, draft = api.model_info(repo_id, revision=revision), Path(name)
        present = [sibling.rfilename for sibling in head.siblings or []]
        collect_card_sources(api, repo_id, head.sha, local, draft)
        tags = [tags] if isinstance(tags, str) else tags or []
        complete_card(draft, repository=repo_id, license=license, tags=tags)
        if (draft / CARD_NAME).exists():
            ask_for_license(draft)
            local[CARD_NAME] = draft / CARD_NAME
        operations = [CommitOperationAdd(file, path) for file, path in sorted(local.items())]
        operations += [CommitOperationDelete(file) for file in outdated(present, local)]
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
