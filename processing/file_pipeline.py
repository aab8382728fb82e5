"""Runs a predictor over many files: threads read ahead of the model and write behind it.

The model stays in the calling thread. Results are delivered in the order of the files, whatever thread is first.
"""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from .prediction_files import PIXELS_AT_ONCE, FilePredictor, Job

AHEAD = (
    2  # images per worker that are being read or wait for the model; the same number may wait to be written
)


@dataclass
class Outcome:
    """What became of one file: the record that `FilePredictor.write` returned, or the error."""

    job: Job
    record: Any = None
    error: Exception | None = None


@dataclass
class Stage:
    """One file on its way: its current step, which another thread may be doing."""

    job: Job
    pixels: int
    step: Future


def run_files(
    predictor: FilePredictor, jobs: Sequence[Job], deliver: Callable[[Outcome], None], workers: int
) -> None:
    """Predicts files and delivers the outcome of each, in the order of `jobs`.

    Results are the same for any number of workers. When an exception ends the work, files that are being written
    are finished and delivered first.

    Args:
        predictor: Its `load` and `write` are called in threads if there are workers.
        jobs: The files.
        deliver: Called in this thread with each outcome. What it raises ends the work.
        workers: Threads that read ahead and write behind; 0 for none.
    """
    if workers:
        Overlap(predictor, deliver, workers).run(jobs)
        return
    for job in jobs:
        step: Future = Future()
        settle(step, predictor.run, job)
        deliver(outcome(job, step))


class Overlap:
    """Reading, the model and writing at the same time; see `run_files`."""

    def __init__(self, predictor: FilePredictor, deliver: Callable[[Outcome], None], workers: int) -> None:
        self.predictor, self.deliver, self.limit = predictor, deliver, AHEAD * workers
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix="files")
        self.ahead: deque[Stage] = deque()  # being read, or waiting for the model
        self.behind: deque[Stage] = deque()  # being written, or failed
        # Records of files that are written and not delivered yet. Threads note them, because an interruption of this
        # thread can come between any two of its steps.
        self.written: dict[Job, Any] = {}

    def run(self, jobs: Sequence[Job]) -> None:
        left = deque(jobs)
        try:
            while left or self.ahead or self.behind:
                self.read_ahead(left)
                if self.ahead:
                    self.predict_next()
                self.collect()
        finally:
            self.pool.shutdown(cancel_futures=True)
            for job in jobs:
                if job in self.written:
                    self.deliver(Outcome(job, self.written.pop(job)))

    def read_ahead(self, left: deque[Job]) -> None:
        """Starts to read the next files, as far as there is room for their pixels."""
        while left and len(self.ahead) < self.limit:
            pixels = self.predictor.pixels_of(left[0])
            held = [stage.pixels for stage in (*self.ahead, *self.behind)]
            if held and sum(held) + pixels > PIXELS_AT_ONCE:
                return
            job = left.popleft()
            self.ahead.append(Stage(job, pixels, self.pool.submit(self.predictor.load, job)))

    def predict_next(self) -> None:
        """Applies the model to the next image, and starts to write the result."""
        stage = self.ahead.popleft()
        predicted: Future = Future()
        settle(predicted, lambda: self.predictor.predict(stage.job, stage.step.result()))
        failed = predicted.exception() is not None
        stage.step = predicted if failed else self.pool.submit(self.write, stage.job, predicted.result())
        self.behind.append(stage)

    def write(self, job: Job, predicted: Any) -> Any:
        """Writes the results of one image, in a thread."""
        record = self.predictor.write(job, predicted)
        self.written[job] = record
        return record

    def collect(self) -> None:
        """Delivers what is finished; waits for the oldest if too many are unfinished, or nothing else is to do."""
        while self.behind:
            is_full = len(self.behind) > self.limit or not self.ahead
            if not is_full and not self.behind[0].step.done():
                return
            self.behind[0].step.exception()  # waits
            stage = self.behind.popleft()
            self.written.pop(stage.job, None)
            self.deliver(outcome(stage.job, stage.step))
            if not self.ahead:
                return  # there may be room to read ahead now


def settle(step: Future, function: Callable[..., Any], *arguments: Any) -> None:
    """Calls a function in this thread, and stores its result or its error, but not an interruption."""
    try:
        step.set_result(function(*arguments))
    except Exception as error:
        step.set_exception(error)


def outcome(job: Job, step: Future) -> Outcome:
    """The outcome of a finished step."""
    error = step.exception()
    return Outcome(job, error=error) if error else Outcome(job, step.result())
