"""What went wrong with one file of many, in words: it is named, and the others go on."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def reason(error: Exception, name: str | None = None) -> str:
    """Returns why a file failed, in one line.

    Args:
        error: What was raised.
        name: Name of the file, put before messages that do not contain it. Default: the message alone.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        text = f"out of memory ({error or type(error).__name__}). Crop or resize the image, or predict in windows"
    elif isinstance(error, ValueError | OSError) and str(error):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {error}"
    text = " ".join(text.splitlines())
    return text if name is None or name in text else f"{name}: {text}"


def concerns_every_file(error: Exception) -> bool:
    """Whether the error is the disk's, which is full or read-only, so that no further file can be written."""
    return isinstance(error, OSError) and error.errno in OF_THE_DISK


@contextmanager
def telling(state: Callable[[], str]) -> Iterator[None]:
    """Context manager that gives a KeyboardInterrupt the message `state()`, which says what is done."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(state()) from interrupt
