"""Interrupted trainings: whatever stopped them, they continue to the bits of the uninterrupted one. The processes are real."""

import random
import re
import signal

import pytest
import torch
from interrupted import (
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

from contextseg.scripts.training.checkpoints import has_checkpoint
from contextseg.scripts.training.records import read_json, read_log

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


def finish(data, output):
    code, printed, _ = train_in_a_process(resumption(data, output), output)
    assert code == 0, printed


def assert_same_run(one, other):
    for folder in (one, other):
        assert sorted(path.name for path in folder.iterdir()) == [
            *(".lock", "best", "last", "log.jsonl", "run.json")
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
    "full disk": (fill_the_disk, "could not write .*last.* The checkpoint before it is intact", 1),
    "full disk while logging": (fill_the_disk_to_the_last_byte, "File too large", 1),
    "killed worker": (kill_a_worker, "a process that loads data died .* Take fewer --workers", 1),
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
