import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cases import each
from PIL import Image

from contextseg.processing import file_pipeline
from contextseg.processing.file_pipeline import run_files
from contextseg.processing.prediction_files import FilePredictor, Job

SECONDS = 0.02


class Slow(FilePredictor):
    """Every step takes a while, the first images longer; images named in `bad` fail in that step."""

    done = "looked at"

    def __init__(self, bad=(), seconds=SECONDS):
        self.bad, self.seconds, self.held, self.most = dict(bad), seconds, 0, 0
        self.lock = threading.Lock()

    def step(self, job, name):
        time.sleep(self.seconds * (3 if job.name == "0" else 1))
        if self.bad.get(job.name) == name:
            raise ValueError(name)
        return f"{job.name} {threading.current_thread() is threading.main_thread()}"

    def load(self, job):
        with self.lock:
            self.held += 1
            self.most = max(self.most, self.held)
        return self.step(job, "load")

    def predict(self, job, loaded):
        assert loaded.startswith(f"{job.name} ")
        return self.step(job, "predict")

    def write(self, job, predicted):
        assert predicted == f"{job.name} True", "the model runs in another thread"
        with self.lock:
            self.held -= 1
        return self.step(job, "write")

    def targets(self, job):  # noqa: ARG002
        return []


def jobs_of(count, folder=Path("nowhere")):
    return [Job(folder / str(index), Path(), str(index)) for index in range(count)]


@each("workers", [0, 1, 3])
def test_outcomes_come_in_the_order_of_the_files_with_their_errors(workers):
    bad, outcomes = {"1": "load", "2": "write", "4": "predict"}, []
    run_files(Slow(bad), jobs_of(7), outcomes.append, workers)
    assert [outcome.job for outcome in outcomes] == jobs_of(7)
    assert {outcome.job.name: str(outcome.error) for outcome in outcomes if outcome.error} == bad


def test_reading_the_model_and_writing_overlap():
    """One after the other, they would take three times as long as the model alone, which is the goal here with two workers."""
    count, started = 40, time.perf_counter()
    run_files(Slow(), jobs_of(count), lambda _: None, 2)
    assert (time.perf_counter() - started) / (SECONDS * count) < 2


def test_large_images_wait_until_there_is_room_for_them(tmp_path, monkeypatch):
    for job in jobs_of(6, tmp_path):
        Image.new("L", (10, 10)).save(job.source, format="PNG")
    monkeypatch.setattr(file_pipeline, "PIXELS_AT_ONCE", 250)
    predictor = Slow(seconds=0.002)
    run_files(predictor, jobs_of(6, tmp_path), lambda _: None, 4)
    assert predictor.most == 2


def test_what_is_being_written_when_the_work_ends_is_delivered():
    delivered = []

    def deliver(outcome):
        delivered.append(outcome.job.name)
        if outcome.job.name == "1":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_files(Slow(), jobs_of(20), deliver, 2)
    assert delivered == [str(index) for index in range(len(delivered))]
    assert len(delivered) < 10


def test_what_is_written_is_delivered_whenever_the_interruption_comes(monkeypatch):
    """It comes when a thread has just written the results of the fourth image."""

    class Interrupted(ThreadPoolExecutor):
        def submit(self, function, job, *more):
            step = super().submit(function, job, *more)
            if more and job.name == "3":
                step.result()
                raise KeyboardInterrupt
            return step

    monkeypatch.setattr(file_pipeline, "ThreadPoolExecutor", Interrupted)
    delivered = []
    with pytest.raises(KeyboardInterrupt):
        run_files(Slow(seconds=0.002), jobs_of(9), lambda outcome: delivered.append(outcome.job.name), 2)
    assert delivered == ["0", "1", "2", "3"]
