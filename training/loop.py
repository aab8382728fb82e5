"""The training loop: optimizer steps, evaluation, checkpoints and stopping.

Resuming is exact on one device: everything that a step depends on is in `Training.state`, or is a function of
the seed and the step number (batches, learning rate).
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers import BaseImageProcessor, PreTrainedModel

from ..processing.data.unreadable import UnreadableImages
from ..processing.progress import progress
from .checkpoints import STATE_FILE, gathered_random_states, set_random_states, write_folder
from .command_line import CommandError
from .deepspeed_state import remove_other_engines, restore_engine, save_engine, uses_deepspeed
from .gathered_state import gathered_state, gathered_weights, restore_state, restore_weights
from .model_files import first_not_finite
from .optim import ModelEma, learning_rate_factor, set_learning_rate
from .records import Log
from .state_checks import (
    NonFiniteWeightsError,
    check_weights_to_save,
    intact_checkpoint,
    largest_weight,
    not_finite,
)
from .stopping import StopSignal
from .trained_part import without_lora

PROGRESS = ("step", "seconds", "scores", "best", "evaluations_since_best")


class NonFiniteLossError(CommandError):
    """The loss became infinite or NaN; the message names the samples."""


@dataclass
class Schedule:
    """Length, learning rate and intervals of a run; all numbers of steps are optimizer steps."""

    steps: int
    warmup_steps: int
    shape: str
    accumulation: int = 1
    clip_norm: float | None = None
    eval_interval: int = 100
    log_interval: int = 10
    cooldown_steps: int = 0
    floor: float = 0.0  # factor of the learning rate at the end of the schedule
    power: float = 1.0  # exponent of the shape
    milestones: tuple[int, ...] = ()  # steps at which the learning rate drops to a tenth
    patience: int | None = None  # evaluations without a better score after which the run ends

    def has_checkpoint(self, step: int) -> bool:
        """Whether the run is evaluated and saved after this many steps."""
        return step > 0 and (step % self.eval_interval == 0 or step == self.steps)

    def is_over(self, training: "Training") -> bool:
        """Whether all steps are done, or too many evaluations have brought no better score."""
        return training.step >= self.steps or self.has_stalled(training)

    def has_stalled(self, training: "Training") -> bool:
        return self.patience is not None and training.evaluations_since_best >= self.patience

    def learning_rate_factor(self, step: int) -> float:
        """Factor of the learning rate at optimizer step `step`, counted from 0."""
        return learning_rate_factor(
            step,
            steps=self.steps,
            warmup_steps=self.warmup_steps,
            schedule=self.shape,
            cooldown_steps=self.cooldown_steps,
            floor=self.floor,
            milestones=self.milestones,
            power=self.power,
        )


@dataclass
class Training:
    """State that changes during a run, with saving and restoring."""

    accelerator: Accelerator
    model: nn.Module  # as `accelerator.prepare` returned it
    optimizer: torch.optim.Optimizer
    run: Path  # the folder of the run
    count: Callable[[dict[str, Any]], float]  # size of the mean in a batch's loss, see `Task.count`
    average: ModelEma | None = None
    unreadable: UnreadableImages = field(default_factory=UnreadableImages)
    step: int = 0
    seconds: float = 0.0  # of the whole run, evaluations included
    clock: float = field(default_factory=time.perf_counter)  # when `seconds` was last counted
    scores: dict[str, Any] = field(default_factory=dict)  # of the latest evaluation
    best: dict[str, Any] = field(default_factory=dict)  # of the best one
    evaluations_since_best: int = 0

    @property
    def plain_model(self) -> PreTrainedModel:
        return self.accelerator.unwrap_model(self.model)

    def published_weights(self) -> AbstractContextManager:
        """Context manager in which the model has the weights to publish: with --ema, the averaged ones."""
        return self.average.in_place_of(self.plain_model) if self.average else nullcontext()

    def count_seconds(self) -> None:
        """Adds the time since the last call, or since the start, to `seconds`."""
        now = time.perf_counter()
        self.seconds, self.clock = self.seconds + now - self.clock, now

    def state(self) -> dict[str, Any]:
        """Returns the state for resuming, complete on the first process only. Call it on every process."""
        scaler = self.accelerator.scaler
        return {
            **self.optimizer_state(),
            "scaler": scaler.state_dict() if scaler else None,
            "average": self.average_state() if self.average else None,
            "random": gathered_random_states(self.accelerator),
            "unreadable": dict(self.unreadable.times),
            "progress": {name: getattr(self, name) for name in PROGRESS},
        }

    def optimizer_state(self) -> dict[str, Any]:
        if uses_deepspeed(self.accelerator):
            return {"engine": save_engine(self.model, self.run, self.step)}
        weights, optimizer = gathered_state(self.plain_model, self.optimizer)
        return {"model": weights, "optimizer": optimizer}

    def average_state(self) -> dict[str, Any]:
        with self.published_weights():
            return {"steps": self.average.steps, "weights": gathered_weights(self.plain_model)}

    def restore(self, state: dict[str, Any]) -> None:
        """Restores what `state` returned. Call it on every process."""
        if self.average:
            restore_weights(self.plain_model, state["average"]["weights"])
            self.average.begin(self.plain_model, steps=state["average"]["steps"])
        if "engine" in state:
            restore_engine(self.model, self.run, state["engine"])
        else:
            restore_state(self.plain_model, self.optimizer, state["model"], state["optimizer"])
        if state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.accelerator.is_main_process:
            self.unreadable.times.update(state.get("unreadable", {}))
        for name, value in state["progress"].items():
            setattr(self, name, value)
        if self.accelerator.process_index < len(state["random"]):
            set_random_states(state["random"][self.accelerator.process_index])

    def save(self, folder: Path, processor: BaseImageProcessor, *, with_state: bool) -> None:
        """Writes a checkpoint. Call it on every process.

        Args:
            folder: Folder to create or replace.
            processor: Image processor to save with the model.
            with_state: Also write the training state for resuming.
        """
        state = self.state() if with_state else None
        with self.published_weights():
            weights = without_lora(self.plain_model, gathered_weights(self.plain_model))

            def write(temporary: Path) -> None:
                if state is not None:
                    torch.save(state, temporary / STATE_FILE)
                self.plain_model.save_pretrained(temporary, state_dict=weights)
                processor.save_pretrained(temporary)

            if self.accelerator.is_main_process:
                averages = {} if state is None else state.get("optimizer", {}).get("state", {})
                check_weights_to_save(weights, averages, self.step, self.run)
                size = sum(tensor.nbytes for tensor in weights.values())
                write_folder(folder, write, expected_bytes=size * (4 if with_state else 1))
                if state is not None and "engine" in state:
                    remove_other_engines(self.run, state["engine"])
        self.accelerator.wait_for_everyone()


class Meter:
    """Reports loss, learning rate and images per second to the progress bar, `log.jsonl` and the trackers.

    Losses stay on the device until `flush`, so that logging does not synchronize the GPU at every step.
    """

    def __init__(self, training: Training, schedule: Schedule, log: Log) -> None:
        self.training, self.accelerator, self.log = training, training.accelerator, log
        self.losses: list[Tensor] = []
        self.names: list[list[str]] = []
        self.started = time.perf_counter()
        self.bar = progress(
            total=schedule.steps,
            initial=training.step,
            unit="step",
            disable=not self.accelerator.is_local_main_process,
        )

    def add(self, loss: Tensor, names: list[str]) -> None:
        """Records one step: its loss, a scalar on the device, and the names of its samples."""
        self.losses.append(loss)
        self.names.append(names)
        self.bar.update()

    def flush(self) -> None:
        """Reports the steps since the last call.

        Raises NonFiniteLossError if one of their losses is not finite, and NonFiniteWeightsError if a weight
        is not.
        """
        if not self.losses:
            return
        largest = largest_weight(self.training.plain_model).to(self.losses[0])
        own = torch.stack([*self.losses, largest])
        *losses, largest = self.accelerator.reduce(own, reduction="mean").tolist()
        if not all(map(math.isfinite, losses)):
            raise NonFiniteLossError(self.complaint(own[:-1]))
        if not math.isfinite(largest):
            name = first_not_finite(self.training.plain_model) or "a weight of another process"
            what = f"after step {self.training.step}, {name}"
            raise NonFiniteWeightsError(not_finite(what, self.training.run))
        images = sum(map(len, self.names)) * self.accelerator.num_processes
        values = {
            "loss": sum(losses) / len(losses),
            "learning_rate": self.training.optimizer.param_groups[0]["lr"],
            "images_per_second": images / (time.perf_counter() - self.started),
        }
        self.report(values)
        self.bar.set_postfix_str(
            f"loss {values['loss']:.4f}, learning rate {values['learning_rate']:.2e}, "
            f"{values['images_per_second']:.1f} images/s"
        )
        self.restart()

    def restart(self) -> None:
        """Resets losses and clock, so that time spent on evaluation does not count as training time."""
        self.losses, self.names, self.started = [], [], time.perf_counter()

    def report(self, values: dict[str, float]) -> None:
        """Writes values to `log.jsonl` and the trackers."""
        if self.accelerator.is_main_process:
            self.log.add(step=self.training.step, **values)
        self.accelerator.log(values, step=self.training.step)

    def complaint(self, losses: Tensor) -> str:
        """The error message for a non-finite loss, with the names of this process's samples in that step."""
        first = next((at for at, loss in enumerate(losses) if not loss.isfinite()), None)
        if first is None:
            return "the loss of another process is not finite; see the message of that process."
        step = self.training.step - len(losses) + first + 1
        before = "" if first == 0 else f" Or the step before overflowed: {', '.join(self.names[first - 1])}."
        return (
            f"the loss of step {step} is {losses[first].item()}. Its samples: {', '.join(self.names[first])}.{before} "
            "Check them with contextseg-check. If they are fine, lower --learning-rate, set --clip-norm 1, "
            f"or use --precision bf16 instead of fp16. {intact_checkpoint(self.training.run)}"
        )


def train_loop(
    training: Training,
    batches: Iterator[dict[str, Any]],
    schedule: Schedule,
    meter: Meter,
    stop: StopSignal,
    *,
    checkpoint: Callable[..., bool],
) -> bool:
    """Trains until the schedule is over or a stop signal arrives.

    Args:
        training: State of the run, updated in place.
        batches: Micro-batches of this process.
        schedule: Length and intervals of the run.
        meter: Receives the loss of every step.
        stop: Polled at every log interval.
        checkpoint: Called as `checkpoint(meter, stopping=...)`; evaluates and saves, and returns whether to stop.

    Returns:
        True at the end of the schedule, False after a stop signal.
    """
    log_interval = schedule.log_interval if training.accelerator.device.type == "cuda" else 1
    training.model.train()
    meter.restart()
    while not schedule.is_over(training):
        loss, names = optimizer_step(training, list(islice(batches, schedule.accumulation)), schedule)
        training.step += 1
        meter.add(loss, names)
        at_checkpoint = schedule.has_checkpoint(training.step)
        if not at_checkpoint and training.step % log_interval:
            continue
        meter.flush()
        stopping = stop.requested(training.accelerator)
        if at_checkpoint or stopping:
            stopping = checkpoint(meter, stopping=stopping)
            meter.restart()
        if stopping:
            return False
    return True


def optimizer_step(
    training: Training, batches: list[dict[str, Any]], schedule: Schedule
) -> tuple[Tensor, list[str]]:
    """Performs one optimizer step; returns its loss, a scalar on the device, and the sample names.

    The loss is the mean over the labels of the whole step, so it does not depend on how images are
    distributed over micro-batches and processes. (Batch norm, and losses that are not means, such as Dice,
    see one micro-batch.)
    """
    accelerator, names, losses = training.accelerator, [], []
    set_learning_rate(training.optimizer, schedule.learning_rate_factor(training.step))
    for batch, share in zip(batches, shares(training, batches), strict=True):
        training.unreadable.check(batch)
        names += batch.pop("name")
        batch = send_to_device(batch, accelerator.device, non_blocking=True)
        with accelerator.accumulate(training.model):
            loss = training.model(**batch).loss * share
            accelerator.backward(loss)
            if accelerator.sync_gradients and schedule.clip_norm:
                accelerator.clip_grad_norm_(training.model.parameters(), schedule.clip_norm)
            training.optimizer.step()
            training.optimizer.zero_grad()
        losses.append(loss.detach())
    # With fp16, a step whose gradients overflow is skipped.
    if training.average and not accelerator.optimizer_step_was_skipped:
        training.average.update(training.plain_model)
    return torch.stack(losses).mean(), names


def shares(training: Training, batches: list[dict[str, Any]]) -> Tensor:
    """Weight of each micro-batch in the loss of the step; 1 if all have the same number of labels."""
    accelerator = training.accelerator
    counts = torch.tensor([training.count(batch) for batch in batches], device=accelerator.device)
    mean = accelerator.reduce(counts.mean(), reduction="mean")
    return counts / mean.where(mean > 0, 1)
