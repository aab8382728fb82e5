"""Self-contained Hub repositories: weights and configuration of a model, with the code that they need.

Every save of a model or image processor of this package, also by Trainer, calls `save`
(see `registration.py`). It adds the source files, flat, an `auto_map`, so that transformers' Auto classes can
load the folder with `trust_remote_code=True` if contextseg is not installed, and a model card.

A save is completed in a hidden folder inside the target and moved into place file by file, code first and
`config.json` last: if anything fails, no file is half-written and no configuration points to missing code.
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
from .card_data import EXAMPLE_NAME, HANDLER_NAME, PREDICTION_NAME, card_tags
from .errors import explained
from .model_card import (
    CARD_NAME,
    RECORDS,
    TRAINER_LOG,
    ask_for_license,
    read_settings,
    read_text,
    true_part,
    write_model_card,
    write_text,
)
from .repository_code import (
    PACKAGE,
    code_files,
    model_classes,
    model_code,
    processor_classes,
    processor_code,
    reference,
)

OF_ONE_WEIGHTS = (*RECORDS, PREDICTION_NAME)  # files that do not apply to other weights
logger = logging.getLogger(__name__)

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
COMMIT_OPTIONS = ("commit_message", "commit_description", "create_pr", "private", "revision", "tags", "token")


# -- code --------------------------------------------------------------------------------------------------------------


def add_code(staging: Path, folder: Path) -> set[str]:
    """Adds code, and the `auto_map` that refers to it, to files in `staging` that will be moved to `folder`.

    Configurations that are already in the folder get their code as well, because Trainer copies a
    checkpoint's configuration there and saves only the processor again. Files that the folder already has are
    not written again.

    Returns the names of the code files that configurations in `staging` need; empty if they are not of a
    class of ours.
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
            del settings["auto_map"]  # of an earlier save, whose code is gone
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
) -> list[str] | None:
    """Implements `save_pretrained` of models and image processors: `write`, then code and model card.

    Args:
        saved: Model or image processor.
        write: transformers' own `save_pretrained`, which takes a folder and `options`.
        folder: Folder to save to.
        license: License of the weights, in the Hub's spelling, for the model card.
        push_to_hub: Whether to upload what was saved.
        repo_id: Repository to upload to; by default the name of the folder.
        **options: Options of `upload`, and those of `write`.

    Returns:
        What `write` returned: the paths of its files, or None.
    """
    folder = Path(folder)
    commit = commit_options(saved, options)
    with staged(folder) as staging:
        written = write(staging, **options)
        files = {path.name for path in staging.iterdir()}
        code = add_code(staging, folder)
    if not code:
        logger.warning(
            "%s is not a class of %s: %s has no code for it.", type(saved).__name__, PACKAGE, folder
        )
    complete_card(folder, license=license)
    if isinstance(saved, ContextsegPreTrainedModel):
        saved.add_model_tags(card_tags(saved.config.to_dict()))  # for the card that Trainer writes
    if push_to_hub:
        files |= {*code, CARD_NAME}
        upload(folder, repo_id or folder.name, files=files, license=license, **commit)
    return written and [str(folder / Path(file).name) for file in written]


def commit_options(saved: object, options: dict[str, Any]) -> dict[str, Any]:
    """Takes out of `options` what `upload` takes."""
    commit = {name: options.pop(name) for name in COMMIT_OPTIONS if name in options}
    return {"commit_message": f"Upload {type(saved).__name__}", **commit}


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Yields a hidden folder in `folder`, then moves its files to `folder`, code first, config.json last."""
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
    """Returns weight files of an earlier save in more or fewer shards, which would be loaded instead."""
    if not any(is_weights(file) for file in written):
        return []
    return [file for file in present if is_weights(file) and file not in written]


def is_weights(file: str) -> bool:
    return any(fnmatch(file, pattern) for pattern in WEIGHTS)


def push(
    saved: PreTrainedModel | ImageProcessingMixin, repo_id: str, *, license: str | None = None, **options: Any
) -> CommitInfo:
    """Implements `push_to_hub` of models and image processors.

    Args:
        saved: Model or image processor.
        repo_id: Repository on the Hub.
        license: License of the weights, in the Hub's spelling, for the model card.
        **options: Options of `upload`; all others are passed to `save_pretrained`.

    Raises:
        HubError: If the upload fails, as `upload` does.
    """
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
    """Uploads the files of a folder as one commit. Text that was added to the model card on the Hub is kept.

    Args:
        folder: Folder to upload, without subfolders and hidden files.
        repo_id: Repository on the Hub; created if missing.
        files: Names of the files to upload; by default all.
        license: License of the weights for the model card; by default that of the card.
        token: Token with write access; by default that of the login.
        private: Whether a new repository is private.
        revision: Branch to commit to; created if missing.
        tags: Further tags for the model card.
        **commit: Options of `huggingface_hub.HfApi.create_commit`, such as `commit_message`.

    Raises:
        HubError: If the Hub rejects the upload or fails, or somebody else pushed meanwhile. Nothing is
            committed then.
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
    """Returns files on the Hub that do not belong to the new weights: old weights, scores, run, prediction."""
    if not any(is_weights(file) for file in files):
        return []
    records = [file for file in OF_ONE_WEIGHTS if file in present and file not in files]
    return outdated_weights(present, files) + records


def collect_card_sources(
    api: HfApi, repo_id: str, revision: str | None, files: dict[str, Path], draft: Path
) -> None:
    """Copies the files that the card is written from to `draft`: those to upload, or else those on the Hub.

    The card itself comes from the Hub if there is one. Scores and record of the run are taken from the Hub
    only if no weights are uploaded, because they do not apply to new weights.
    """
    local = {file: path for file, path in files.items() if file != CARD_NAME}
    has_weights = any(is_weights(file) for file in files)
    for file in (CARD_NAME, CONFIG_NAME, IMAGE_PROCESSOR_NAME, EXAMPLE_NAME, HANDLER_NAME, *OF_ONE_WEIGHTS):
        source = local.get(file)
        if source is None and not (has_weights and file in OF_ONE_WEIGHTS):
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
    """Writes the model card if the folder has a model of this package; else corrects Trainer's, if there is one."""
    if model_classes(read_settings(folder / CONFIG_NAME)):
        write_model_card(folder, **options)
    elif TRAINER_LOG in (card := read_text(folder / CARD_NAME)):
        write_text(folder / CARD_NAME, true_part(card))
