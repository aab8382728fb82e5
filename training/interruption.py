"""Ctrl-C and SIGTERM in commands that work on many files: they say what is done, and leave no half-written file.

Both raise KeyboardInterrupt, so that files in progress are removed on the way out. Training handles signals by
itself: it saves first.
"""

import atexit
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 130  # of a program that Ctrl-C has stopped
SECONDS_TO_CLEAN_UP = 10.0  # and to exit


@contextmanager
def interruptible(program: str) -> Iterator[None]:
    """Context manager that ends the program with exit code 130 at Ctrl-C or SIGTERM.

    The message of the KeyboardInterrupt, see `processing.failures.telling`, says what is done.

    Args:
        program: Name of the command, printed before the message.
    """
    interrupter = Interrupter()
    try:
        yield
    except KeyboardInterrupt as interrupt:
        print(f"{program}: interrupted. {interrupt}".rstrip(), file=sys.stderr)
        raise SystemExit(EXIT_CODE) from interrupt
    finally:
        interrupter.close()


class Interrupter:
    """Handler of Ctrl-C and SIGTERM that raises KeyboardInterrupt.

    Further signals are ignored for a moment, in which the program cleans up and exits.
    """

    def __init__(self) -> None:
        self.obeyed = -SECONDS_TO_CLEAN_UP  # when, on the monotonic clock
        self.is_closed = False
        may_handle = threading.current_thread() is threading.main_thread()
        signals = (signal.SIGINT, signal.SIGTERM) if may_handle else ()
        self.before = {number: signal.signal(number, self) for number in signals}

    def __call__(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.is_cleaning_up():
            return
        if self.is_closed:
            self.restore()
            signal.raise_signal(number)
            return
        self.obeyed = time.monotonic()
        raise KeyboardInterrupt

    def is_cleaning_up(self) -> bool:
        return time.monotonic() - self.obeyed < SECONDS_TO_CLEAN_UP

    def close(self) -> None:
        """Handles no further signal but those that come while the program exits after the first."""
        self.is_closed = True
        if self.is_cleaning_up():
            atexit.register(self.ignore)  # Python removes its own handlers long before the process ends
        else:
            self.restore()

    def ignore(self) -> None:
        for number in self.before:
            signal.signal(number, signal.SIG_IGN)

    def restore(self) -> None:
        for number, handler in self.before.items():
            if handler is not None:  # one that was not installed from Python
                signal.signal(number, handler)
