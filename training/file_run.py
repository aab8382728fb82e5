"""One run over many files in one or several processes, each of which does a share of them."""

import traceback
from functools import partial
from typing import Any

from accelerate import Accelerator

from ..processing.data.batches import default_workers
from ..processing.failures import concerns_every_file, reason, telling
from ..processing.file_pipeline import Outcome, run_files
from ..processing.prediction_files import FilePredictor, Job
from ..processing.progress import progress
from .prediction_options import PredictArguments
from .processes import is_loss_of_a_peer
from .sharing import decided_by_first, gathered, is_divided, name_of, predicted_by_all, share_of

CONTINUE = "Run the command again with --skip-existing for the others."
RASTERS_CONTINUE = f"{CONTINUE[:-1]}; a large raster goes on where it stopped."


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
        left = [job for job in jobs if job not in earlier]
        self.divided = decided_by_first(accelerator, lambda: self.large(left))
        self.share = share_of([job for job in left if job not in self.divided], accelerator)
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
                    unit=self.predictor.unit,
                    disable=len(self.share) <= 1,
                ) as self.bar,
            ):
                run_files(
                    self.predictor, self.share, self.note, default_workers() if workers is None else workers
                )
                for job in self.divided:
                    self.predict_together(job)
                self.join()
        except BaseException:
            is_alone = self.accelerator.num_processes == 1
            self.finish(None if is_alone else self.accelerator.process_index)
            raise
        if self.accelerator.is_main_process:
            self.finish()
        return list(self.failures.values())

    def large(self, jobs: list[Job]) -> list[Job]:
        """The images that are divided among processes, rather than given to one of them."""
        if self.accelerator.num_processes == 1:
            return []
        return [job for job in jobs if is_divided(self.num_parts(job), self.accelerator)]

    def num_parts(self, job: Job) -> int:
        try:
            image = self.predictor.parts_of(job)
        except Exception:  # reported when the image is predicted
            return 1
        return 1 if image is None else image.num_parts

    def predict_together(self, job: Job) -> None:
        """Predicts one image in all processes, each of which does neighboring parts; the first notes the outcome."""
        failure = self.failure_of(job)
        if self.accelerator.is_main_process:
            if failure is None:
                self.records[job] = None
            else:
                self.failures[job] = failure

    def failure_of(self, job: Job) -> str | None:
        """Predicts one image in all processes; returns why it failed, the same in every process, or None."""
        failure = predicted_by_all(
            self.accelerator, lambda: self.predictor.parts_of(job), partial(self.told, job)
        )
        if failure is not None:
            return failure
        try:
            decided_by_first(self.accelerator, lambda: self.predictor.parts_of(job).write())
        except Exception as error:
            if is_loss_of_a_peer(error):
                raise
            return self.told(job, error)
        return None

    def note(self, outcome: Outcome) -> None:
        """Keeps what became of one image. Raises its error if it concerns every file."""
        if outcome.error is None:
            self.records[outcome.job] = outcome.record
        else:
            self.failures[outcome.job] = self.told(outcome.job, outcome.error)
        self.bar.update()

    def told(self, job: Job, error: Exception) -> str:
        """Returns why an image failed, and prints where with --traceback. Raises an error that concerns every file."""
        if concerns_every_file(error):
            raise error
        if self.arguments.traceback:
            traceback.print_exception(error)
        return reason(error, str(job.source))

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
        advice = RASTERS_CONTINUE if any(job.is_raster for job in self.jobs) else CONTINUE
        return (
            f"{name_of(self.accelerator)}{len(self.records)} of {len(self.share)} {self.predictor.unit}s are {self.predictor.done}; the results in "
            f"{self.arguments.output} are complete. {advice}{failed}"
        )

    def summary(self) -> str:
        """What was done."""
        skipped = f", {len(self.earlier)} skipped because their results exist" if self.earlier else ""
        place = f"; the results are in {self.arguments.output}" if self.records or self.earlier else ""
        return f"{len(self.records)} of {len(self.jobs)} {self.predictor.unit}s {self.predictor.done}{skipped}{place}"
