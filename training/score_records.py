"""Scores of the images that are done, kept in files while an evaluation runs, so that a stopped one goes on."""

import shutil
import time
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..processing.atomic_write import atomic_write
from ..processing.boundary_metrics import BoundaryScore
from ..processing.metrics import ConfusionMatrix
from ..processing.rasters.work_records import as_text

SECONDS = 10.0  # between two writes


class ScoreRecords:
    """The counts of images and their indices, in one file for each process.

    Args:
        folder: The folder of the files, made when there is something to write; None to keep nothing.
        metrics: The scores of this process, which are added to from outside.
        rank: The index of this process.

    Attributes:
        done: Indices of the images that are in the counts.
    """

    def __init__(
        self, folder: Path | None, metrics: Sequence[ConfusionMatrix | BoundaryScore], rank: int
    ) -> None:
        self.folder, self.metrics, self.name = folder, metrics, f"scores-{rank}.safetensors"
        self.done: list[int] = []
        self.whole = 0, self.counts()  # the number of images, and their counts: never of a part of an image
        self.written = time.monotonic()

    def restore(self) -> list[int]:
        """Adds what processes of a stopped evaluation have written; the first process calls this before all others.

        Returns:
            The indices of the images that are scored.
        """
        if self.folder is None:
            return []
        paths = sorted(self.folder.glob("scores-*.safetensors"), key=lambda path: path.name != self.name)
        for path in paths:
            counts = load_file(path)
            done = counts.pop("done").tolist()
            if not set(done) & set(self.done):  # else its counts went into the first file before a stop
                self.done += done
                for metric in self.metrics:
                    metric.counts = metric.counts + counts[type(metric).__name__].to(metric.counts.device)
        self.whole = len(self.done), self.counts()
        if self.done:
            self.write()
        for path in paths:
            if path.name != self.name:
                path.unlink()
        return list(self.done)

    def note(self, index: int, at_once: bool = False) -> None:
        """Notes that an image is in the counts, and writes them if the last time is long ago, or `at_once`."""
        self.done.append(index)
        self.whole = len(self.done), self.counts()
        if at_once or time.monotonic() - self.written > SECONDS:
            self.write()

    def write(self) -> None:
        """Writes the counts. Raises OSError if the file cannot be written."""
        if self.folder is None or not self.whole[0]:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        number, counts = self.whole
        values = {name: count.cpu().contiguous() for name, count in counts.items()}
        values["done"] = torch.tensor(self.done[:number], dtype=torch.int64)
        with atomic_write(self.folder / self.name) as temporary:
            save_file(values, temporary)
        self.written = time.monotonic()

    def counts(self) -> dict[str, Tensor]:
        """The counts of all scores; updates replace these tensors, and never change them."""
        return {type(metric).__name__: metric.counts for metric in self.metrics}

    def remove(self) -> None:
        """Removes all files, when the evaluation is complete; the first process calls this after all others."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def evaluation_key(data: Any, settings: dict[str, Any]) -> str | None:
    """Returns a name for an evaluation, which is the same for the same files and settings.

    Args:
        data: The data set.
        settings: All else that the scores depend on.

    Returns:
        The name, or None if images or masks are not files, so that nothing tells whether they have changed.
    """
    pairing = getattr(data, "pairing", None)
    sources = [] if pairing is None else [source for pair in pairing.pairs for source in pair[:2]]
    return key_of(sources, settings)


def key_of(sources: Sequence[Any], settings: dict[str, Any]) -> str | None:
    """Returns what `evaluation_key` returns for data in these files."""
    if not sources or not all(isinstance(source, str | Path) for source in sources):
        return None
    return blake2b(as_text([settings, list(map(state_of, sources))]).encode(), digest_size=6).hexdigest()


def state_of(source: str | Path) -> list[Any]:
    """Path, size and time of a file; the path alone if there is none."""
    try:
        state = Path(source).stat()
    except OSError:
        return [str(source)]
    return [str(source), state.st_size, state.st_mtime_ns]
