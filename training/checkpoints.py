"""Checkpoints of a run, written atomically: `best/` and `last/` are always complete.

A run folder holds `best/` and `last/`, both complete `from_pretrained` folders; `last/` also holds the
training state. After a crash there may also be `last.writing`, which is never read, and `last.previous`,
which is used while `last` is missing; resuming removes them. Files are flushed to disk before the rename, so
a power cut does not leave empty files.
"""

import os
import random
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError

from ..processing.atomic_write import MEGABYTE
from .command_line import CommandError
from .model_names import check_path

STATE_FILE = "training_state.pt"
CHECKPOINTS = ("best", "last")
# What zipfile and pickle raise, besides errors of their own, for files with wrong bytes.
DAMAGE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


class CheckpointError(CommandError):
    """A checkpoint could not be written or read; the message says what to do."""


def write_folder(target: Path, write: Callable[[Path], None], *, expected_bytes: int = 0) -> None:
    """Replaces the folder `target` with a new one atomically: if anything fails, the existing folder stays.

    Args:
        target: Folder to create or replace.
        write: Called with the path of an empty temporary folder, which it fills.
        expected_bytes: Size of the new folder, checked against the free space before anything is written.

    Raises:
        CheckpointError: If there is not enough space, or if writing fails.
    """
    temporary = beside(target, "writing")
    shutil.rmtree(temporary, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    check_space(target, expected_bytes)
    temporary.mkdir()
    try:
        write(temporary)
        for file in filter(Path.is_file, temporary.rglob("*")):
            flush_to_disk(file)
        flush_to_disk(temporary)
    except (OSError, RuntimeError, SafetensorError) as error:
        free = shutil.disk_usage(target.parent).free
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"could not write {target} ({error}); {free // MEGABYTE} MB are free. {kept(target)}"
        ) from error
    replace_folder(temporary, target)


def check_space(target: Path, expected_bytes: int) -> None:
    """Raises CheckpointError unless the disk of `target` has `expected_bytes` free."""
    free = shutil.disk_usage(target.parent).free
    if free < expected_bytes:
        raise CheckpointError(
            f"{target} needs about {expected_bytes // MEGABYTE} MB, but only {free // MEGABYTE} MB are free. "
            f"{kept(target)}"
        )


def kept(target: Path) -> str:
    """The part of an error message that says which checkpoint remains and how to continue."""
    if newest(target.with_name("last")).exists():
        return "The previous checkpoint is intact. Free some space, then continue with --resume."
    return "There is no earlier checkpoint. Free some space, then start again."


def replace_folder(source: Path, target: Path) -> None:
    """Renames `source` to `target`. Between the two renames, `newest` finds the old folder."""
    previous = beside(target, "previous")
    shutil.rmtree(previous, ignore_errors=True)
    if target.exists():
        target.rename(previous)
    source.rename(target)
    flush_to_disk(target.parent)  # the rename must be on disk before the old folder is deleted
    shutil.rmtree(previous, ignore_errors=True)


def beside(target: Path, what: str) -> Path:
    return target.with_name(f"{target.name}.{what}")


def flush_to_disk(path: Path) -> None:
    """Flushes a file's content, or a folder's entries, to disk, so that they survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def newest(target: Path) -> Path:
    """Returns `target`, or the folder that it was about to replace when a crash came between two renames."""
    previous = beside(target, "previous")
    return previous if previous.exists() and not target.exists() else target


def clear_leftovers(run: Path) -> None:
    """Completes or undoes the interrupted write of a process that died.

    Only the process that writes to the run may call it.
    """
    for target in (run / name for name in CHECKPOINTS):
        if newest(target) != target:
            newest(target).rename(target)
        for what in ("writing", "previous"):
            shutil.rmtree(beside(target, what), ignore_errors=True)


def model_folder(name: str) -> str:
    """Returns the folder or Hub name to load: of a run folder, `best/`, or `last/` if there is no `best/`.

    Args:
        name: A run folder, a folder written by `save_pretrained`, or a name on the Hub.

    Raises:
        ValueError: If `name` is a folder without a model, a run whose checkpoint is incomplete, or a path that does
            not exist.
    """
    folder = Path(name)
    for checkpoint in (newest(folder / checkpoint) for checkpoint in CHECKPOINTS):
        if (checkpoint / "config.json").is_file():
            return str(checkpoint)
        if checkpoint.is_dir() and not (folder / "config.json").is_file():
            raise ValueError(
                f"{checkpoint} lacks its config.json. Copy it again from where it was intact, or give another checkpoint, such "
                f"as {folder / 'last'}."
            )
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} has no config.json, no best/ and no last/. "
            "Give the output folder of contextseg-train, a folder written by save_pretrained, or a Hub name."
        )
    check_path(name)
    return name


def random_states() -> dict[str, Any]:
    """Returns the state of every random number generator that a training step may use."""
    name, keys, *rest = np.random.get_state()
    states = {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


def gathered_random_states(accelerator: Accelerator) -> list[dict[str, Any]]:
    """Returns the random states of all processes, by rank."""
    if accelerator.num_processes == 1:
        return [random_states()]
    states: list[dict[str, Any]] = [{}] * accelerator.num_processes
    torch.distributed.all_gather_object(states, random_states())
    return states


def has_checkpoint(run: Path) -> bool:
    return (newest(run / "last") / STATE_FILE).is_file()


def load_state(checkpoint: Path) -> dict[str, Any]:
    """Loads the training state of a checkpoint; unpickles tensors and plain values only, never code.

    Raises:
        CheckpointError: If the state is missing or damaged.
    """
    path = newest(checkpoint) / STATE_FILE
    if not path.is_file():
        raise CheckpointError(f"there is no {path} to resume from. Leave out --resume to start a new run.")
    check_intact(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, *DAMAGE) as error:
        raise CheckpointError(damaged_state(path, " ".join(str(error).split())[:200])) from error


def check_intact(path: Path) -> None:
    """Raises CheckpointError if a file of `torch.save` is damaged, which `torch.load` may not notice."""
    try:
        with zipfile.ZipFile(path) as records:
            damaged = records.testzip()  # reads everything and compares checksums
    except (zipfile.BadZipFile, *DAMAGE) as error:
        damaged = " ".join(str(error).split())[:200]
    if damaged is None:
        return
    raise CheckpointError(damaged_state(path, damaged))


def damaged_state(path: Path, problem: str) -> str:
    """Returns the message for a damaged training state, which says what to continue from."""
    previous, weights = beside(path.parent, "previous"), path.parent.with_name("best")
    older = (
        f"Move {path.parent} away and rename {previous} to {path.parent.name}, then continue with --resume"
    )
    return (
        f"{path} is damaged ({problem}). It was complete when it was written, so check the disk, or how the file was "
        "copied. " + (f"{older}." if previous.exists() else f"Start a new run with --init-from {weights}.")
    )
