"""The folder of a run: checkpoints, `run.json`, `log.jsonl` and the trackers' files."""

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import BaseImageProcessor

from ...processing.metrics import percent
from .loop import Meter, Training
from .records import Log, environment, write_json
from .scoring import score, whole_images

if TYPE_CHECKING:
    from ..train import TrainArguments


class RunFolder:
    """Evaluates, saves and records a run."""

    def __init__(
        self,
        arguments: "TrainArguments",
        training: Training,
        processor: BaseImageProcessor,
        val_data: Dataset | None,
    ) -> None:
        self.arguments, self.training, self.processor = arguments, training, processor
        self.accelerator = training.accelerator
        self.path = Path(arguments.output)
        self.log = Log(self.path / "log.jsonl")
        self.environment = environment()
        self.classes = list(training.plain_model.config.id2label.values())
        self.ignore_index = training.plain_model.config.semantic_loss_ignore_index
        self.images = None
        if val_data is not None:
            self.images = whole_images(val_data, processor, self.accelerator, arguments.workers)
        self.begin()

    def begin(self) -> None:
        if self.accelerator.is_main_process:
            self.path.mkdir(parents=True, exist_ok=True)
            self.log.cut_after(self.training.step)
            self.write_record("running")
        options = {"tensorboard": {"purge_step": self.training.step + 1}} if self.arguments.resume else {}
        self.accelerator.init_trackers("tensorboard", init_kwargs=options)

    def checkpoint(self, meter: Meter, *, stopping: bool) -> None:
        """Evaluates, unless the run is being stopped, and saves `last/` and, when it is the best so far, `best/`."""
        training, is_best = self.training, False
        if self.images is not None and not stopping:
            is_best = self.evaluate(meter)
        training.save(self.path / "last", self.processor, with_state=True)
        if is_best:
            training.save(self.path / "best", self.processor, with_state=False)
        if self.accelerator.is_main_process:
            self.write_record("stopped" if stopping else "running")

    def evaluate(self, meter: Meter) -> bool:
        """Scores the model and tells in one line; True when it is the best so far."""
        training, started = self.training, time.perf_counter()
        images = tqdm(self.images, desc="evaluating", unit="image", leave=False, disable=meter.bar.disable)
        # A compiled model would be compiled again for every size of image.
        with training.published_weights(), torch.compiler.set_stance("force_eager"):
            scores = score(
                training.plain_model,
                self.processor,
                images,
                self.accelerator,
                class_names=self.classes,
                ignore_index=self.ignore_index,
            )
        seconds = time.perf_counter() - started
        training.scores = {"step": training.step, **scores}
        best = training.best.get("mean_iou", -math.inf)
        is_best = scores["mean_iou"] > best or not training.best
        if is_best:
            training.best = training.scores
        means = {name: scores[name] for name in ("mean_iou", "mean_accuracy", "pixel_accuracy")}
        meter.report(means)
        if self.accelerator.is_main_process:
            meter.bar.write(
                f"step {training.step}: mIoU {percent(scores['mean_iou'])} %, "
                f"pixel accuracy {percent(scores['pixel_accuracy'])} % ({seconds:.1f} s)"
                + (", the best so far" if is_best else "")
            )
        return is_best

    def write_record(self, status: str) -> None:
        training = self.training
        write_json(
            self.path / "run.json",
            {
                "status": status,
                "arguments": asdict(self.arguments) | {"resume": False},
                "seed": self.arguments.seed,
                "steps_done": training.step,
                "seconds": round(training.seconds, 1),
                "scores": training.scores,
                "best": training.best,
                **self.environment,
            },
        )

    def close(self, meter: Meter, stopped_by: int | None) -> int:
        """Says what the run came to; the exit code."""
        self.accelerator.end_training()
        meter.bar.close()
        if not self.accelerator.is_main_process:
            return 0 if stopped_by is None else 128 + stopped_by
        if stopped_by is not None:
            print(
                f"stopped at step {self.training.step} and saved; continue with --output {self.path} --resume"
            )
            return 128 + stopped_by
        self.write_record("finished")
        print(self.summary())
        return 0

    def summary(self) -> str:
        lines = [f"{self.training.step} steps in {self.training.seconds / 60:.1f} minutes"]
        if best := self.training.best:
            lines.append(
                f"best mIoU {percent(best['mean_iou'])} % at step {best['step']}: {self.path / 'best'}"
            )
            lines.append(f"next: contextseg-evaluate {self.path} --data {self.arguments.val}")
        lines.append(f"next: contextseg-predict {self.path} photo.jpg --output masks/")
        return "\n".join(lines)
