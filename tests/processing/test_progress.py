import io
import sys

import pytest

from contextseg.processing import progress as module
from contextseg.processing.progress import PlainProgress, progress


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_file_gets_plain_lines_every_half_minute(clock, capsys):
    bar = progress(total=400, unit="step", initial=100)
    for _ in range(60):
        clock[0] += 2
        bar.update()
        bar.set_postfix_str("loss 0.5")
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert lines[0] == "115 of 400 steps, 0.5 minutes, 9.5 minutes left, loss 0.5"


def test_plain_progress_passes_its_items_on_and_counts_those_without_a_length(clock, capsys):
    bar = progress(iter(range(3)), unit="image", desc="evaluating")
    for item in bar:
        clock[0] = 31.0 * item
    assert bar.n == 3
    assert capsys.readouterr().err == "evaluating: 2 images, 0.5 minutes\nevaluating: 3 images, 1.0 minutes\n"


def test_batches_are_spelled_right(clock, capsys):
    for item in progress(range(3), unit="batch"):
        clock[0] = 31.0 * item
    assert "2 of 3 batches, " in capsys.readouterr().err


def test_a_disabled_progress_writes_no_lines_but_messages(clock, capsys):
    bar = PlainProgress(range(2), disable=True)
    for _ in bar:
        clock[0] += 100
    bar.write("step 2")
    assert capsys.readouterr() == ("step 2\n", "")


def test_a_terminal_gets_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(progress([1, 2], unit="image")) == [1, 2]
    assert "2/2" in sys.stderr.getvalue()
