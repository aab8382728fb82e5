"""Trainings in processes of their own, and what can befall them there.

The processes are forked from one that has imported everything and done nothing else, so that each begins at once.
"""

import multiprocessing
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from contextseg.scripts.train import main

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["contextseg.training.segmentation", "contextseg.training.run_folder"])
REMOVALS = ("os.remove", "os.rmdir", "shutil.rmtree")
CHANGES = ("open", "os.rename", "os.mkdir", *REMOVALS)


@dataclass
class Trouble:
    """What happens, and when: just before the process's n-th change of its run folder, or that many seconds after the n-th
    entry of its log."""

    action: Callable[[], None]
    at_change: int = 0
    at_entry: int = 0
    delay: float = 0.0


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def press_control_c() -> None:
    os.killpg(0, signal.SIGINT)


def fill_the_disk() -> None:
    """No file can grow beyond this, which is less than the state of training and more than the rest."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, resource.RLIM_INFINITY))


def fill_the_disk_to_the_last_byte() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))


def kill_a_worker() -> None:
    """The first one: those of an evaluation, which are younger, may be about to end."""
    min(multiprocessing.active_children(), key=lambda worker: worker.pid).kill()


@dataclass
class Spoil:
    """Gives a file other content."""

    file: Path
    content: bytes | np.ndarray

    def __call__(self) -> None:
        if isinstance(self.content, bytes):
            self.file.write_bytes(self.content)
        else:
            Image.fromarray(self.content).save(self.file)


def train_in_a_process(
    arguments: list[str], run: Path, trouble: Trouble | None = None, seconds: int = 90
) -> tuple[int, str, int]:
    """The exit code (negative: a signal's number), what was printed, and how many changes of the run folder there were."""
    printed, to_print = CONTEXT.Pipe(duplex=False)  # not a file, which a full disk would not take either
    changes = CONTEXT.Value("i", 0)
    process = CONTEXT.Process(target=train, args=(arguments, run, to_print, changes, trouble))
    process.start()
    process.join(seconds)
    os.set_blocking(printed.fileno(), False)
    text = os.read(printed.fileno(), 1 << 20).decode()
    if process.exitcode is None:
        os.killpg(process.pid, signal.SIGKILL)
    assert process.exitcode is not None, f"the training hangs: {text}"
    return process.exitcode, text, changes.value


def train(arguments, run, to_print, changes, trouble):  # runs in the new process
    # Of workers, as in a process that was not forked itself.
    multiprocessing.set_start_method("fork", force=True)
    os.setsid()  # a process group of its own, for Ctrl-C
    for stream in (1, 2):
        os.dup2(to_print.fileno(), stream)
    sys.addaudithook(watch(run, changes, trouble))
    sys.exit(main(arguments))


def watch(run, changes, trouble):
    trainer, entries = os.getpid(), 0

    def hook(event, arguments):
        nonlocal entries
        if event not in CHANGES or os.getpid() != trainer:
            return
        if event in REMOVALS or str(arguments[0]).startswith(str(run)):
            changes.value += 1
            if trouble and changes.value == trouble.at_change:
                trouble.action()
        if event == "open" and str(arguments[0]).endswith("log.jsonl") and arguments[1] == "a":
            entries += 1
            if trouble and entries == trouble.at_entry:
                threading.Timer(trouble.delay, trouble.action).start() if trouble.delay else trouble.action()

    return hook
