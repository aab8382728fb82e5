"""Interrupted trainings: whatever stopped them, they continue to the bits of the uninterrupted one. The processes are real."""

import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from interrupted import (
    Spoil,
    Trouble,
    fill_the_disk,
    fill_the_disk_to_the_last_byte,
    kill,
    kill_a_worker,
    press_control_c,
    terminate,
    train_in_a_process,
)
from safetensors.torch import load_file
from tiny_runs import run_options

from contextseg.training.checkpoints import has_checkpoint
from contextseg.training.records import read_json, read_log
from contextseg.training.run_folder import lock

pytestmark = pytest.mark.processes

OPTIONS = ["--steps", "8", "--eval-interval", "3", "--ema", "0.9", "--accumulation", "2"]
OPTIONS += ["--set", "drop_path_rate=0.5", "--cpu"]
STEPS = 8


def options(data, output, *changes):
    return [*run_options(data, output), *OPTIONS, *changes]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run that nothing interrupted, and the number of its changes of files."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    code, printed, changes = train_in_a_process(options(data, output), output)
    assert code == 0, printed
    return output, changes


def resumption(data, output):
    """The command of a user after an interruption."""
    return ["--output", str(output), "--resume"] if has_checkpoint(output) else options(data, output)


def finish(data, output, seconds=90):
    code, printed, _ = train_in_a_process(resumption(data, output), output, seconds=seconds)
    assert code == 0, printed


def assert_same_run(one, other):
    for folder in (one, other):
        assert sorted(path.name for path in folder.iterdir()) == [
            *(".lock", "best", "last", "log.jsonl", "loss.png", "run.json")
        ]
    for checkpoint in ("best", "last"):
        assert_same(*(load_file(folder / checkpoint / "model.safetensors") for folder in (one, other)))
    states = [torch.load(folder / "last" / "training_state.pt") for folder in (one, other)]
    for state in states:
        del state["progress"]["seconds"]
    assert_same(*states)
    logs = [read_log(folder / "log.jsonl") for folder in (one, other)]
    for entry in (*logs[0], *logs[1]):
        entry.pop("images_per_second", None)
    assert logs[0] == logs[1]
    records = [read_json(folder / "run.json") for folder in (one, other)]
    assert [record["status"] for record in records] == ["finished", "finished"]
    assert records[0]["best"] == records[1]["best"]


def assert_same(one, other):
    """Nested lists and dicts of tensors and plain values, bit for bit."""
    one, other = dict(leaves(one)), dict(leaves(other))
    assert one.keys() == other.keys()
    for place, leaf in one.items():
        if torch.is_tensor(leaf):
            torch.testing.assert_close(leaf, other[place], rtol=0, atol=0, equal_nan=True)
        else:
            assert repr(leaf) == repr(other[place]), place  # NaN is equal to itself


def leaves(value, place=()):
    """(place, tensor or plain value) of everything inside lists and dicts."""
    if isinstance(value, dict | list | tuple):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*place, name))
    else:
        yield place, value


INTERRUPTIONS = {
    "SIGKILL": (kill, "", -signal.SIGKILL),
    "SIGTERM": (terminate, "continue with --output", 128 + signal.SIGTERM),
    "Ctrl-C": (press_control_c, "continue with --output", 128 + signal.SIGINT),
    "full disk": (fill_the_disk, "could not write .*last.* The previous checkpoint is intact", 1),
    "full disk while logging": (fill_the_disk_to_the_last_byte, "File too large", 1),
    "killed worker": (kill_a_worker, "a data loader process died .* Use fewer --workers", 1),
}


@pytest.mark.parametrize("name", INTERRUPTIONS)
def test_an_interrupted_run_resumes_to_the_bits_of_the_whole_one(name, whole, data, tmp_path):
    action, message, code = INTERRUPTIONS[name]
    draw = random.Random(name)
    trouble = Trouble(action, at_entry=draw.randint(5, 6), delay=draw.uniform(0, 0.02))
    arguments = options(data, tmp_path / "run", "--workers", "2")
    ended, printed, _ = train_in_a_process(arguments, tmp_path / "run", trouble)
    assert ended == code, printed
    assert re.search(message, printed), printed
    finish(data, tmp_path / "run")
    assert_same_run(whole[0], tmp_path / "run")


@pytest.mark.parametrize("seed", range(4))
def test_a_run_killed_twice_between_changes_of_its_files_resumes_to_the_same_bits(
    seed, whole, data, tmp_path
):
    draw, output = random.Random(seed), tmp_path / "run"
    for _ in range(2):
        trouble = Trouble(kill, at_change=draw.randint(1, whole[1] * 2 // 3))
        again = resumption(data, output)
        ended, printed, _ = train_in_a_process(again, output, trouble)
        assert ended == -signal.SIGKILL, printed
    finish(data, output)
    assert_same_run(whole[0], output)


SPOILT = {
    "unreadable image": ("images", b"<html>not found</html>", r"images/scene2\.png' is empty, damaged"),
    "mask of another size": (
        "masks",
        np.zeros((5, 6), np.uint8),
        "the mask of 'scene2' is 6x5, but its image",
    ),
    "unknown class": ("masks", np.full((24, 30), 9, np.uint8), r"the mask of 'scene2' .* 9 \(720 pixels\)"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_run_that_a_file_stopped_resumes_to_the_same_bits_once_it_is_mended(name, whole, data, tmp_path):
    part, content, message = SPOILT[name]
    data = shutil.copytree(data, tmp_path / "data")
    file, output = data / "train" / part / "scene2.png", tmp_path / "run"
    sound = file.read_bytes()
    arguments = options(data, output, "--workers", "2")
    ended, printed, _ = train_in_a_process(arguments, output, Trouble(Spoil(file, content), at_entry=3))
    assert ended == 1
    assert re.search(f"contextseg-train: .*{message}", printed), printed
    assert "Traceback" not in printed
    file.write_bytes(sound)
    finish(data, output)
    assert_same_run(whole[0], output)


def test_a_run_that_skips_unreadable_images_resumes_to_the_same_bits_and_counts(data, tmp_path):
    data = shutil.copytree(data, tmp_path / "data")
    for file in ("train/images/scene2.png", "val/images/scene1.png"):
        (data / file).write_bytes(b"")
    runs = [tmp_path / "whole", tmp_path / "parts"]
    arguments = [options(data, output, "--unreadable", "skip") for output in runs]
    assert train_in_a_process(arguments[0], runs[0])[0] == 0
    trouble = Trouble(kill, at_entry=6)
    assert train_in_a_process([*arguments[1], "--workers", "2"], runs[1], trouble)[0] == -signal.SIGKILL
    finish(data, runs[1])
    assert_same_run(*runs)
    counts = [read_json(output / "run.json")["unreadable"] for output in runs]
    assert counts[0] == counts[1]
    assert sorted(counts[0].values()) == [3, 7]  # evaluations, and epochs of 5 images in 8 steps of 4


@pytest.mark.parametrize("changes", [("--precision", "bf16"), ("--gradient-checkpointing",)], ids=" ".join)
def test_other_ways_to_compute_resume_to_the_same_bits(changes, data, tmp_path):
    runs = [tmp_path / "whole", tmp_path / "parts"]
    arguments = [options(data, output, *changes) for output in runs]
    assert train_in_a_process(arguments[0], runs[0])[0] == 0
    assert train_in_a_process(arguments[1], runs[1], Trouble(kill, at_entry=6))[0] == -signal.SIGKILL
    finish(data, runs[1])
    assert_same_run(*runs)


@pytest.mark.slow
@pytest.mark.long
def test_a_compiled_run_resumes_to_the_same_bits(data, tmp_path):
    runs = [tmp_path / "whole", tmp_path / "parts"]
    arguments = [options(data, output, "--compile", "--accumulation", "1") for output in runs]
    code, printed, _ = train_in_a_process(arguments[0], runs[0], seconds=900)
    assert code == 0, printed
    ended, printed, _ = train_in_a_process(arguments[1], runs[1], Trouble(kill, at_entry=6), seconds=900)
    assert ended == -signal.SIGKILL, printed
    finish(data, runs[1], seconds=900)
    assert_same_run(*runs)


def test_gradient_checkpointing_trains_the_same_weights(whole, data, tmp_path):
    """Dropped paths included, which the second pass has to drop again."""
    output = tmp_path / "run"
    assert train_in_a_process(options(data, output, "--gradient-checkpointing"), output)[0] == 0
    assert_same_run(whole[0], output)


def test_bf16_trains_other_weights(whole, data, tmp_path):
    output = tmp_path / "run"
    assert train_in_a_process(options(data, output, "--precision", "bf16"), output)[0] == 0
    losses = [[entry.get("loss") for entry in read_log(run / "log.jsonl")] for run in (whole[0], output)]
    assert losses[0] != losses[1]


def test_a_second_process_does_not_train_into_the_same_folder(data, tmp_path):
    """The real command, while this process is the first."""
    tmp_path.joinpath("run").mkdir()
    descriptor = lock(tmp_path / "run")
    command = [sys.executable, "-m", "contextseg.scripts.train", *options(data, tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    os.close(descriptor)
    assert done.returncode == 1
    assert f"process {os.getpid()} on {platform.node()} is writing to {tmp_path / 'run'}" in done.stderr
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


@pytest.mark.slow
@pytest.mark.parametrize("share", range(20))
def test_killed_before_any_change_of_its_files_a_run_resumes_to_the_same_bits(share, whole, data, tmp_path):
    """Every 20th change of each share would be 64 runs; three of them are drawn."""
    for moment in random.Random(share).sample(range(1 + share, whole[1] * 9 // 10, 20), 3):
        output = tmp_path / f"run{moment}"
        ended, printed, _ = train_in_a_process(options(data, output), output, Trouble(kill, at_change=moment))
        assert ended == -signal.SIGKILL, printed
        finish(data, output)
        assert_same_run(whole[0], output)
