"""The output folder of a run: checkpoints, `run.json`, `log.jsonl` and tracker files."""

import logging
import math
import os
import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset
from transformers import BaseImageProcessor

from ..processing.atomic_write import atomic_write
from ..processing.data.pairing import listed
from ..processing.progress import progress
from .checkpoints import clear_leftovers
from .loop import Meter, Schedule, Training
from .origin import origin
from .plots import CurvePlot
from .processes import share_buffers, whole_weights
from .publishing import ExportArguments, export
from .records import Log, environment, write_json
from .stopping import EvaluationStopped, StopSignal
from .tasks import Task
from .validation_pictures import log_details

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None

if TYPE_CHECKING:
    from .options import TrainArguments


logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"


class RunFolder:
    """Evaluates and saves a run, and writes its records."""

    def __init__(
        self,
        arguments: "TrainArguments",
        task: Task,
        training: Training,
        processor: BaseImageProcessor,
        val_data: Dataset | None,
        stop: StopSignal,
    ) -> None:
        self.stop = stop
        self.arguments, self.task, self.training, self.processor = arguments, task, training, processor
        self.accelerator = training.accelerator
        self.path = Path(arguments.output)
        self.log = Log(self.path / "log.jsonl")
        self.environment = environment()
        self.origin = origin(arguments, self.accelerator.num_processes)
        self.curves = CurvePlot(self.log.path, task.best_by, task.best_by_name)
        self.images = None
        if val_data is not None:
            self.images = task.evaluation_images(val_data, processor, self.accelerator)
        self.begin()

    def begin(self) -> None:
        """Creates and locks the folder, cleans up after a crash, and starts the trackers."""
        self.accelerator.wait_for_everyone()  # until all have read what the main process cleans up
        if self.accelerator.is_main_process:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock = lock(self.path)
            clear_leftovers(self.path)
            self.log.cut_after(self.training.step)
            self.write_record("running")
        options = {"tensorboard": {"purge_step": self.training.step + 1}} if self.arguments.resume else {}
        self.accelerator.init_trackers("tensorboard", init_kwargs=options)

    def catch_up(self, meter: Meter, schedule: Schedule) -> bool:
        """Runs the evaluation that was due when the run was stopped; returns whether it is to stop again."""
        step, evaluated = self.training.step, self.training.scores.get("step", 0)
        if self.images is not None and schedule.has_checkpoint(step) and evaluated != step:
            return self.checkpoint(meter, stopping=False)
        return False

    def checkpoint(self, meter: Meter, *, stopping: bool) -> bool:
        """Evaluates, unless the run is being stopped; saves `last/` and, if it is the best so far, `best/`.

        `best/` is written first: a run killed between the two resumes before this evaluation and repeats it.

        Returns:
            Whether the run is being stopped, which may have happened during the evaluation.
        """
        training, is_best = self.training, False
        if self.images is not None and not stopping:
            unreadable = training.unreadable.times.copy()
            try:
                is_best = self.evaluate(meter)
            except EvaluationStopped:
                stopping, training.unreadable.times = True, unreadable
        training.count_seconds()
        training.unreadable.collect(self.accelerator)
        if training.unreadable.times and not stopping:
            meter.report({"unreadable": training.unreadable.times.total()})
        if is_best:
            training.save(self.path / "best", self.processor, with_state=False)
        training.save(self.path / "last", self.processor, with_state=True)
        if self.accelerator.is_main_process:
            self.write_record("stopped" if stopping else "running")
            self.curves.draw()
        return stopping

    def evaluate(self, meter: Meter) -> bool:
        """Scores the model and prints one line; returns whether it is the best so far."""
        training, started = self.training, time.perf_counter()
        images = progress(self.images, desc="evaluating", unit=self.task.sample, disable=meter.bar.disable)
        # A compiled model would be recompiled for every image size.
        with (
            training.published_weights(),
            whole_weights(self.accelerator, training.plain_model),
            torch.compiler.set_stance("force_eager"),
        ):
            readable = self.stop.watching(training.unreadable.filter(images), self.accelerator)
            share_buffers(self.accelerator, training.plain_model)
            scores = self.task.score(training.plain_model, readable, self.accelerator)
        seconds = time.perf_counter() - started
        if not training.scores:
            warn_of_absent_classes(self.arguments.val, scores)
        training.scores = {"step": training.step, **scores}
        is_best = scores[self.task.best_by] > training.best.get(self.task.best_by, -math.inf)  # NaN never is
        training.evaluations_since_best = 0 if is_best else training.evaluations_since_best + 1
        if is_best:
            training.best = training.scores
        meter.report({name: scores[name] for name in self.task.logged})
        if self.accelerator.is_main_process:
            keep_pictures(self.task if is_best else None, self.path)
            log_details(self.accelerator, self.task.pictures, self.task.class_score, training.scores)
            meter.bar.write(
                f"step {training.step}: {self.task.summary(scores)} ({seconds:.1f} s)"
                + (", the best so far" if is_best else "")
            )
        return is_best

    def write_record(self, status: str) -> None:
        """Writes `run.json`; `status` is "running", "stopped" or "finished"."""
        training = self.training
        write_json(
            self.path / "run.json",
            {
                "status": status,
                **{**self.origin, **self.task.record()},
                "arguments": {"task": self.arguments.task, **asdict(self.arguments), "resume": False},
                "seed": self.arguments.seed,
                "processes": self.accelerator.num_processes,
                "steps_done": training.step,
                "seconds": round(training.seconds, 1),
                "scores": training.scores,
                "best": training.best,
                "evaluations_since_best": training.evaluations_since_best,
                "unreadable": dict(training.unreadable.times),
                **self.environment,
            },
        )

    def close(self, meter: Meter, schedule: Schedule, stopped_by: int | None) -> int:
        """Ends the run: prints its summary and uploads the model, if requested. Returns the exit code."""
        self.accelerator.end_training()
        meter.bar.close()
        if not self.accelerator.is_main_process:
            return 0 if stopped_by is None else 128 + stopped_by
        self.training.count_seconds()
        if stopped_by is None:
            self.write_record("finished")
        self.curves.draw(at_once=True)
        os.close(self.lock)
        if stopped_by is None:
            print(summary(self, schedule))
            self.push()
            return 0
        print(f"stopped at step {self.training.step} and saved; continue with --output {self.path} --resume")
        return 128 + stopped_by

    def push(self) -> None:
        """Uploads the model, if requested. If that fails, the error says how to retry; the run is complete."""
        if self.arguments.push:
            export(ExportArguments(str(self.path), push=self.arguments.push))


def summary(run: RunFolder, schedule: Schedule) -> str:
    """Returns steps of a run, time, best score and the next commands."""
    lines = [f"{run.training.step} steps in {run.training.seconds / 60:.1f} minutes"]
    if schedule.has_stalled(run.training) and run.training.step < schedule.steps:
        count = run.training.evaluations_since_best
        lines[0] += f", stopped early of {schedule.steps}: no better score in {count} evaluations"
    if run.training.unreadable.times:
        lines.append(run.training.unreadable.summary())
    best = run.training.best
    if best:
        lines.append(f"best {run.task.headline(best)} at step {best['step']}: {run.path / 'best'}")
    commands = [command for command in run.task.next_commands if best or "{val}" not in command]
    lines += [f"next: {command.format(run=run.path, val=run.arguments.val)}" for command in commands]
    return "\n".join(lines)


def keep_pictures(task: Task | None, run: Path) -> None:
    """Writes the pictures of an evaluation to the run's folder, if the task keeps them."""
    if task and task.picture_file and (image := task.pictures.image()):
        with atomic_write(run / task.picture_file) as temporary:
            image.save(temporary, format="PNG")


def warn_of_absent_classes(data: str, scores: dict[str, Any]) -> None:
    """Warns of classes without validation data: their scores are NaN and left out of the means."""
    rows = scores["per_class"]
    absent = [
        row["name"] for row in rows if not row.get("support", row.get("images", row.get("truth_cases", 1)))
    ]
    if absent:
        logger.warning("%s contains none of %d classes: %s", data, len(absent), listed(absent))


def lock(run: Path) -> int:
    """Locks a run folder for this process, until the process ends or closes the returned descriptor.

    Record locks are not inherited by data loader processes, which may outlive a killed training by seconds.

    Raises:
        ValueError: If another process holds the lock.
    """
    descriptor = os.open(run / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if fcntl is None:
            raise OSError("this system has no record locks")
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        holder = os.read(descriptor, 1000).decode() or "another process"
        os.close(descriptor)
        raise ValueError(
            f"{holder} is writing to {run}. Wait for it, stop it, or choose another --output."
        ) from None
    except OSError as error:
        logger.warning("%s cannot be locked (%s): make sure that no other run writes to it", run, error)
    os.truncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {platform.node()}".encode())
    return descriptor
