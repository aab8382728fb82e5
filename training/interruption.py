"""Ctrl-C and SIGTERM in commands that work on many files: they say what is done, and leave no half-written file.

Both raise KeyboardInterrupt, so that files in progress are removed on the way out. Training handles signals by
itself: it saves first.
"""

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 130  # of a program that Ctrl-C has stopped
SECONDS_TO_CLEAN_UP = 2.0


@contextmanager
def interruptible(program: str) -> Iterator[None]:
    """Context manager that ends the program with exit code 130 at Ctrl-C or SIGTERM.

    The message of the KeyboardInterrupt, see `processing.failures.telling`, says what is done.

    Args:
        program: Name of the command, printed before the message.
    """
    signals = (signal.SIGINT, signal.SIGTERM) if is_main_thread() else ()
    interrupter = Interrupter()
    before = {number: signal.signal(number, interrupter) for number in signals}
    try:
        yield
    except KeyboardInterrupt as interrupt:
        print(f"{program}: interrupted. {interrupt or 'Nothing was written.'}", file=sys.stderr)
        raise SystemExit(EXIT_CODE) from interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_main_thread() -> bool:
    """Whether this thread may set signal handlers."""
    return threading.current_thread() is threading.main_thread()


class Interrupter:
    """Signal handler that raises KeyboardInterrupt, but not again while the program cleans up."""

    def __init__(self) -> None:
        self.obeyed = -SECONDS_TO_CLEAN_UP  # when, on the monotonic clock

    def __call__(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if time.monotonic() - self.obeyed > SECONDS_TO_CLEAN_UP:
            self.obeyed = time.monotonic()
            raise KeyboardInterrupt
