"""The tests themselves: they depend on no setting of the machine, end on SIGTERM, and name every case that fails."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cases import each
from huggingface_hub import constants

ROOT = Path(__file__).resolve().parents[1]


def start_pytest(*arguments, **environment):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.DEVNULL)


def test_no_test_reaches_the_hub_or_the_users_cache():
    assert (constants.HF_HUB_OFFLINE, constants.ENDPOINT) == (False, "http://127.0.0.1:9")
    assert not Path(constants.HF_HOME).is_relative_to(Path.home() / ".cache")


@pytest.mark.processes
def test_settings_of_hugging_face_change_no_test():
    settings = {
        "HF_HUB_OFFLINE": "1",
        "HF_ENDPOINT": "http://127.0.0.1:8",
        "HF_HOME": str(Path.home() / ".cache/x"),
    }
    run = start_pytest("tests/test_suite.py", "-k", "reaches_the_hub", TRANSFORMERS_OFFLINE="1", **settings)
    assert run.wait(timeout=120) == 0


@pytest.mark.processes
def test_sigterm_ends_pytest_even_during_a_training(tmp_path):
    folder = tmp_path / "tests"
    run = start_pytest(
        "tests/training/test_train.py", "-k", "training_learns or resume", f"--basetemp={folder}"
    )
    while not list(folder.rglob("log.jsonl")) and run.poll() is None:
        time.sleep(0.02)
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=60) == 128 + signal.SIGTERM


def test_every_case_runs_and_the_failure_names_those_that_fail(tmp_path):
    seen = []

    @each("number", {"one": 1, "two": 2, "three": 3})
    def is_two(number, tmp_path):
        seen.append(tmp_path)
        assert number == 2

    with pytest.raises(BaseExceptionGroup, match="2 of 3 cases fail: one, three") as failure:
        is_two(tmp_path=tmp_path)
    assert [error.__notes__ for error in failure.value.exceptions] == [
        ["in the case one"],
        ["in the case three"],
    ]
    assert len(set(seen)) == 3
