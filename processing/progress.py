"""Progress of long work: a bar on a terminal; in files and pipes, where a bar is control characters, plain lines."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from threading import Event
from typing import Any, Self

from tqdm import tqdm

INTERVAL = 30.0  # seconds between two plain lines
HIDDEN = Event()  # set by `hide_progress`


class PlainProgress:
    """Plain lines such as "evaluating: 120 of 500 images, 0.5 minutes, 1.6 minutes left", every 30 seconds.

    Implements what we use of `tqdm`: iteration, `update`, `set_postfix_str`, `write`, `close`, and use in `with`.

    Args:
        items: What to iterate over. Default: nothing, for use with `update`.
        total: Number of items. Default: the length of `items`, if it has one.
        unit: Name of one item, such as "image".
        desc: What is being done. Default: nothing.
        initial: Number of items done before. Default: 0.
        disable: Write no lines.
    """

    def __init__(
        self,
        items: Iterable[Any] = (),
        *,
        total: int | None = None,
        unit: str = "item",
        desc: str = "",
        initial: int = 0,
        disable: bool = False,
    ) -> None:
        self.items, self.unit, self.desc, self.disable = items, unit, desc, disable
        self.total = total if total is not None else len(items) if hasattr(items, "__len__") else None
        self.initial = self.n = initial
        self.postfix = ""
        self.started = self.shown = time.monotonic()

    def __iter__(self) -> Iterator[Any]:
        for item in self.items:
            yield item
            self.update()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def update(self, count: int = 1) -> None:
        """Counts items, and writes a line if the last one is long ago."""
        self.n += count
        now = time.monotonic()
        if not self.disable and now - self.shown >= INTERVAL:
            self.shown = now
            print(self.line(now - self.started), file=sys.stderr, flush=True)  # noqa: T201

    def line(self, seconds: float) -> str:
        """The state after this many seconds."""
        of_all = f" of {self.total}" if self.total else ""
        parts = [f"{self.n}{of_all} {plural(self.unit)}", f"{seconds / 60:.1f} minutes"]
        if self.total and self.n > self.initial:
            left = (self.total - self.n) * seconds / (self.n - self.initial)
            parts.append(f"{left / 60:.1f} minutes left")
        parts += [self.postfix] * bool(self.postfix)
        return f"{self.desc}: " * bool(self.desc) + ", ".join(parts)

    def set_postfix_str(self, text: str) -> None:
        """Sets what the next lines end with."""
        self.postfix = text

    def write(self, text: str) -> None:
        """Writes a line to the standard output."""
        print(text, flush=True)  # noqa: T201

    def close(self) -> None:
        """Does nothing: lines need no end."""


def progress(items: Iterable[Any] | None = None, **options: Any) -> "tqdm | PlainProgress":
    """A progress bar of `tqdm` if the standard error is a terminal, else plain lines.

    The time left counts everything since the start, such as evaluations between training steps.

    Args:
        items: What to iterate over, or None for use with `update`.
        **options: `total`, `unit`, `desc`, `initial` and `disable`, as in `tqdm`.
    """
    options["disable"] = options.get("disable", False) or HIDDEN.is_set()
    if sys.stderr.isatty():
        return tqdm(
            items, **options, smoothing=0, dynamic_ncols=True, mininterval=0.5, leave="desc" not in options
        )
    return PlainProgress(items or (), **options)


def hide_progress() -> None:
    """Disables all progress of this process from now on: another process shows its own."""
    HIDDEN.set()


def hide_other_bars() -> None:
    """Disables the progress bars of the libraries below us, unless the standard error is a terminal."""
    if sys.stderr.isatty():
        return
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # read when `datasets` is imported
    if not are_progress_bars_disabled():
        disable_progress_bars()
    disable_progress_bar()


def plural(noun: str) -> str:
    """ "image" -> "images", "batch" -> "batches"."""
    return f"{noun}es" if noun.endswith("ch") else f"{noun}s"
