"""Numbered random cases under limits of time and memory, and what they end with.

A case is a function of a number, and its random choices depend on nothing else. It may return a result, or raise one of
the accepted errors with a message of one line. Everything else is a fault: another error, a message of several lines or
without the name that it should have, more time or memory than the limits, and an answer that memory ran out.
"""

import faulthandler
import logging
import re
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("limits of memory need Linux", allow_module_level=True)
import resource  # here because Windows has none

ERROR_TYPE = re.compile(r": [A-Z]\w*(Error|Exception|Warning):")  # how `reason` tells an unexpected error
MEGABYTE = 1 << 20
LONGEST_MESSAGE = 1400  # characters
OUT_OF_MEMORY = ("does not fit into memory", "allocate", "out of memory", "bad_alloc", "MemoryError")


class HungError(BaseException):
    """A case takes longer than its limit. Not an `Exception`, because decoders' errors are caught by type."""


@dataclass
class Outcomes:
    """What the cases of one kind ended with."""

    kind: str
    seconds: int
    megabytes: int
    counts: Counter = field(default_factory=Counter)
    faults: dict[int, str] = field(default_factory=dict)
    warned: Counter = field(default_factory=Counter)
    slowest: float = 0.0

    def run(
        self, case: Callable[[int], str], numbers: range, capture: pytest.CaptureFixture | None = None
    ) -> None:
        """Runs the cases with these numbers; each returns what it ended with. Fails with all that have a fault."""
        lowest, start = reset_peak(), time.process_time()
        for number in numbers:
            self.add(number, case)
        used = time.process_time() - start
        counts = ", ".join(f"{count} {outcome}" for outcome, count in self.counts.most_common())
        summary = (
            f"\n{self.kind}: {len(numbers)} cases: {counts}; {used:.0f} s of processor time, slowest case {self.slowest:.2f} s, "
            f"peak memory {peak() - lowest:.0f} MB above the start, warnings {dict(self.warned)}"
        )
        with capture.disabled() if capture else nullcontext():
            print(summary)  # noqa: T201 - shown by `pytest -s`
        if self.faults:
            lines = [f"{self.kind} case {number}: {text}" for number, text in self.faults.items()]
            pytest.fail(f"{len(lines)} of {len(numbers)} cases have a fault\n" + "\n".join(lines))

    def add(self, number: int, case: Callable[[int], str]) -> None:
        start = time.monotonic()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                with limited(self.seconds, self.megabytes):
                    outcome = case(number)
            except HungError:
                self.faults[number] = f"takes more than {self.seconds} s"
            except AssertionError as error:
                self.faults[number] = str(error)
            except Exception as error:
                self.faults[number] = f"{type(error).__name__}: {error} {place_of(error)}"
            else:
                self.counts[outcome] += 1
        self.warned.update(warning.category.__name__ for warning in caught)
        self.slowest = max(self.slowest, time.monotonic() - start)


@contextmanager
def limited(seconds: int, megabytes: int) -> Iterator[None]:
    """Ends the block after so much time, and refuses further memory (address space) beyond so much more."""

    def end(*_):
        raise HungError

    logging.disable()  # warnings for each damaged file, ours and those of tifffile and transformers
    before = signal.signal(signal.SIGALRM, end)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(
        10 * seconds, exit=True, file=sys.__stderr__
    )  # where Python does not get its turn
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + megabytes * MEGABYTE, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        logging.disable(logging.NOTSET)


def check_message(message: str, *names: str) -> None:
    """Fails unless a message is one line that has one of the names, and is about something else than memory."""
    assert message.strip(), "the message is empty"
    assert len(message.splitlines()) == 1, f"the message has several lines: {message!r}"
    assert len(message) <= LONGEST_MESSAGE, f"the message has {len(message)} characters: {message[:300]!r}"
    assert not any(words in message for words in OUT_OF_MEMORY), f"memory ran out: {message!r}"
    assert not ERROR_TYPE.search(message), f"an unexpected error: {message!r}"
    assert not names or any(name in message for name in names), (
        f"the message does not name {names}: {message!r}"
    )


def place_of(error: BaseException) -> str:
    """The last places of an error's traceback."""
    places = []
    traceback = error.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        places.append(f"{Path(code.co_filename).name}:{traceback.tb_lineno}")
        traceback = traceback.tb_next
    return "(" + " < ".join(reversed(places[-6:])) + ")"


def address_space() -> int:
    """Bytes of address space of this process."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def reset_peak() -> float:
    """Makes Linux forget the largest size of this process so far, and returns the present one in megabytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> float:
    """Largest resident size in megabytes since `reset_peak`."""
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    return int(line.split()[1]) / 1024
