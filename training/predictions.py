"""Predictions for image files by command: masks, classes or objects."""

import traceback
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..processing.class_prediction import ClassPredictor
from ..processing.data.batches import default_workers
from ..processing.failures import concerns_every_file, reason, telling
from ..processing.file_pipeline import Outcome, run_files
from ..processing.prediction import Predictor
from ..processing.prediction_files import FilePredictor, Job, find_jobs
from ..processing.prediction_maps import MAPS
from ..processing.progress import progress
from .explaining import chosen_explanations
from .inference_options import check_task
from .models import CLASSIFIER, open_model, task_of_model
from .prediction_options import PredictArguments
from .processes import explained_loss_of_a_peer, quiet_unless_first
from .sharing import decided_by_first, gathered, name_of, open_accelerator, share_of, tell_and_leave
from .stored_reading import rgb_reading, set_reading

CONTINUE = "Run the command again with --skip-existing for the other images."


def predict(arguments: PredictArguments) -> list[str]:
    """Predicts all images, in any number of processes, and writes the results.

    Returns:
        Which files could not be predicted, and why; the same in every process. They have been printed.
    """
    accelerator = open_accelerator(arguments.cpu)
    quiet_unless_first(accelerator)
    with explained_loss_of_a_peer(accelerator, CONTINUE):
        jobs, failures = decided_by_first(accelerator, lambda: found_jobs(arguments))
        task = task_of_model(arguments.model)
        check_task(arguments, task)
        predictor = PREDICTORS[task](arguments, accelerator.device)
        earlier: dict[Job, Any] = {}
        if arguments.skip_existing:
            earlier = decided_by_first(accelerator, lambda: predictor.earlier(jobs))
        run = FileRun(predictor, jobs, earlier, arguments, accelerator)
        failures += run.predict()
        if accelerator.is_main_process:
            print(run.summary())
        tell_and_leave(accelerator, failures)
    return failures


def found_jobs(arguments: PredictArguments) -> tuple[list[Job], list[str]]:
    """Finds the images, and the folders that cannot be listed, with the reasons."""
    failures: list[str] = []
    jobs = find_jobs(
        arguments.images,
        arguments.output,
        lambda error: failures.append(f"{error.filename}: {error.strerror}"),
    )
    return jobs, failures


def segmenter(arguments: PredictArguments, device: torch.device) -> FilePredictor:
    inference = arguments.inference()
    model, processor, _ = open_model(arguments.model)
    set_reading(arguments, model, processor)
    model.to(device)
    return Predictor(
        model,
        processor,
        inference,
        maps=[name for name in MAPS if getattr(arguments, name)],
        overlay=arguments.overlay,
        explanations=chosen_explanations(model, inference, arguments.explain, arguments.grad_cam),
    )


def classifier(arguments: PredictArguments, device: torch.device) -> FilePredictor:
    model, processor, _ = open_model(arguments.model, CLASSIFIER)
    model.to(device)
    reading = rgb_reading(arguments, arguments.model, model)
    return ClassPredictor(model, processor, Path(arguments.output), reading)


def detector(arguments: PredictArguments, device: torch.device) -> FilePredictor:
    from ..processing.object_prediction import ObjectPredictor
    from .detection import DETECTOR

    model, processor, _ = open_model(arguments.model, DETECTOR)
    model.to(device)
    return ObjectPredictor(
        model,
        processor,
        Path(arguments.output),
        rgb_reading(arguments, arguments.model, model),
        threshold=arguments.threshold,
        overlay=arguments.overlay,
    )


# What a model does -> how it is opened for prediction.
PREDICTORS = {"segmentation": segmenter, "classification": classifier, "detection": detector}


class FileRun:
    """Predicts the share of this process, and joins the results of all processes.

    Args:
        predictor: What is done with each image.
        jobs: All images, the same list in every process.
        earlier: Those that are skipped because an earlier run has written their results, with their records.
        arguments: Options of the command.
        accelerator: The processes.
    """

    def __init__(
        self,
        predictor: FilePredictor,
        jobs: list[Job],
        earlier: dict[Job, Any],
        arguments: PredictArguments,
        accelerator: Accelerator,
    ) -> None:
        self.predictor, self.jobs, self.earlier = predictor, jobs, earlier
        self.arguments, self.accelerator = arguments, accelerator
        self.share = share_of([job for job in jobs if job not in earlier], accelerator)
        self.records: dict[Job, Any] = {}
        self.failures: dict[Job, str] = {}

    def predict(self) -> list[str]:
        """Predicts the images; returns which could not be predicted, and why, of all processes.

        Raises OSError if no further file can be written, because the disk is full or read-only.
        """
        workers = self.arguments.workers
        try:
            with (
                telling(self.state),
                progress(
                    total=len(self.share),
                    unit="image",
                    disable=len(self.share) == 1 or not self.accelerator.is_main_process,
                ) as self.bar,
            ):
                run_files(
                    self.predictor, self.share, self.note, default_workers() if workers is None else workers
                )
                self.join()
        except BaseException:
            is_alone = self.accelerator.num_processes == 1
            self.finish(None if is_alone else self.accelerator.process_index)
            raise
        if self.accelerator.is_main_process:
            self.finish()
        return list(self.failures.values())

    def note(self, outcome: Outcome) -> None:
        """Keeps what became of one image. Raises its error if it concerns every file."""
        if outcome.error is None:
            self.records[outcome.job] = outcome.record
        else:
            if concerns_every_file(outcome.error):
                raise outcome.error
            if self.arguments.traceback:
                traceback.print_exception(outcome.error)
            self.failures[outcome.job] = reason(outcome.error, str(outcome.job.source))
        self.bar.update()

    def join(self) -> None:
        """Collects what became of the images of all processes, in the order of the images."""
        numbers = {job: number for number, job in enumerate(self.jobs)}
        mine = [
            (numbers[job], (job, self.records.get(job), self.failures.get(job)))
            for job in (*self.records, *self.failures)
        ]
        everything = gathered(self.accelerator, mine)
        self.records = {job: record for job, record, failure in everything if failure is None}
        self.failures = {job: failure for job, _, failure in everything if failure is not None}

    def finish(self, part: int | None = None) -> None:
        """Writes what all images share; `part` as in `FilePredictor.finish`."""
        known = self.records if part is not None else self.earlier | self.records
        self.predictor.finish([known[job] for job in self.jobs if job in known], part)

    def state(self) -> str:
        """What is done, at an interruption."""
        failed = "".join(f"\n{message}" for message in self.failures.values())
        return (
            f"{name_of(self.accelerator)}{len(self.records)} of {len(self.share)} images are {self.predictor.done}; the results in "
            f"{self.arguments.output} are complete. {CONTINUE}{failed}"
        )

    def summary(self) -> str:
        """What was done."""
        skipped = f", {len(self.earlier)} skipped because their results exist" if self.earlier else ""
        place = f"; the results are in {self.arguments.output}" if self.records or self.earlier else ""
        return f"{len(self.records)} of {len(self.jobs)} images {self.predictor.done}{skipped}{place}"
