"""Records of a run: `run.json` (arguments, environment, scores) and `log.jsonl` (curves)."""

import json
import logging
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ..processing.atomic_write import atomic_write
from ..processing.metrics import without_nan

logger = logging.getLogger(__name__)

PACKAGES = ("contextseg", "torch", "torchvision", "transformers", "accelerate", "numpy", "pillow")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file atomically; NaN becomes null."""
    write_whole(path, json.dumps(without_nan(dict(content)), indent=1, allow_nan=False) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Writes a text file atomically, so that neither a full disk nor a power cut leaves half a file."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object. Raises ValueError, with its path, if it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        reason = str(error) if path.stat().st_size else "it is empty"
        raise ValueError(f"{path} is damaged: {reason}. Copy it again from where it was intact.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it does not hold a JSON object. Copy it again.")
    return content


class Log:
    """`log.jsonl`: one JSON object per line, each with a `step`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, **values: float) -> None:
        """Appends an entry; one of the values is `step`."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(without_nan(values)) + "\n")

    def cut_after(self, step: int) -> None:
        """Removes entries after `step`, which a resumed run repeats, and damaged lines."""
        if self.path.exists():
            lines = [json.dumps(entry) for entry in read_log(self.path) if entry["step"] <= step]
            write_whole(self.path, "".join(line + "\n" for line in lines))


def read_log(path: Path) -> list[dict[str, Any]]:
    """Returns the entries of a `log.jsonl`; leaves out damaged lines, with a warning.

    An incomplete last line, as a killed run leaves it, is left out without one.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    entries = [entry_of(line) for line in lines]
    if None in entries[:-1]:
        logger.warning("%s: %d damaged lines are left out", path, entries.count(None))
    return [entry for entry in entries if entry is not None]


def entry_of(line: str) -> dict[str, Any] | None:
    """Returns the entry in a line of `log.jsonl`; None if the line is damaged."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = entry.get("step") if isinstance(entry, dict) else None
    return entry if isinstance(step, int) and not isinstance(step, bool) else None


def environment() -> dict[str, Any]:
    """Returns versions, hardware and the commit of the repository."""
    return {"versions": versions(), "hardware": hardware(), "git_commit": git_commit()}


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "system": platform.platform(),
    }


def processor_name() -> str:
    """Returns the model name of the processor: from /proc/cpuinfo on Linux, elsewhere from `platform`."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def git_commit() -> str | None:
    """Returns the commit of the repository that tracks this file, with "+changes" if files are modified; None
    without one.
    """
    here = Path(__file__).resolve()
    try:
        if git(here.parent, "ls-files", here.name) != here.name:
            return None
        changed = git(here.parent, "status", "--porcelain", "--untracked-files=no")
        return git(here.parent, "rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def git(folder: Path, *command: str) -> str:
    done = subprocess.run(
        ["git", *command], cwd=folder, capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()
