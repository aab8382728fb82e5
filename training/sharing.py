"""Division of many files among processes, for the commands that predict and evaluate.

Each process works on its share alone, for as long as it takes; the processes talk before and after it.
"""

import pickle
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object

from ..processing.prediction_files import PartedImage
from .command_line import is_expected, plain_message, printable
from .processes import is_loss_of_a_peer

T = TypeVar("T")
PARTS = 2  # an image with more parts per process than this is divided
LONGEST = timedelta(days=30)  # that one process may work while others wait
POLLING = 0.05  # seconds


def open_accelerator(cpu: bool) -> Accelerator:
    """Returns an accelerator whose processes may need very different times for their shares."""
    return Accelerator(cpu=cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=LONGEST)])


def name_of(accelerator: Accelerator) -> str:
    """ "process 1 of 4: " before a message of this process; nothing if it is the only one."""
    world = accelerator.num_processes
    return "" if world == 1 else f"process {accelerator.process_index} of {world}: "


def decided_by_first(accelerator: Accelerator, decide: Callable[[], T]) -> T:
    """Returns what `decide` returns in the first process, in every process; raises what it raises there.

    What is found on a disk must be decided once: while one process looks, another may be writing already.
    """
    if accelerator.num_processes == 1:
        return decide()
    decision: list = [None, None]
    if accelerator.is_main_process:
        try:
            decision[0] = decide()
        except Exception as error:
            decision[1] = error
        if decision[1] is not None and not can_be_sent(decision[1]):
            decision[1] = RuntimeError(f"{type(decision[1]).__name__}: {decision[1]}")
    wait_for_all(accelerator)
    result, error = broadcast_object_list(decision)
    if error is not None:
        raise error
    return result


@contextmanager
def said_once(accelerator: Accelerator, program: str, with_traceback: bool = False) -> Iterator[None]:
    """Context manager for what every process does alike, such as reading options: an error ends all of them, said once.

    Args:
        accelerator: The processes.
        program: Name of the command, printed before the message.
        with_traceback: Print the traceback, too.

    Raises:
        SystemExit: In every process, if there was an error in one.
    """
    failed, error = None, None
    try:
        yield
    except Exception as caught:
        if accelerator.num_processes == 1 or is_loss_of_a_peer(caught):
            raise
        error = caught
        is_short = is_expected(error) and not with_traceback
        failed = plain_message(error) if is_short else "".join(traceback.format_exception(error))
    if accelerator.num_processes == 1:
        return
    told = gathered(accelerator, [(accelerator.process_index, failed)])
    if not any(told):
        return
    if failed is not None and told.index(failed) == accelerator.process_index:
        print(f"{program}: {printable(failed)}", file=sys.stderr, flush=True)
    tell_and_leave(accelerator, ())
    raise SystemExit(1) from error


def share_of(items: Sequence[T], accelerator: Accelerator) -> Sequence[T]:
    """The items of this process: every n-th of n processes, so that neighbors, often of one size, are spread."""
    return items[accelerator.process_index :: accelerator.num_processes]


def consecutive_share(items: Sequence[T], accelerator: Accelerator) -> Sequence[T]:
    """The items of this process where neighbors share work: one run of them, as long as those of others or one longer."""
    rank, world = accelerator.process_index, accelerator.num_processes
    return items[len(items) * rank // world : len(items) * (rank + 1) // world]


def can_be_sent(error: Exception) -> bool:
    """Whether an error can be pickled and built again: not if its class takes other arguments than its message."""
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:
        return False


def gathered(accelerator: Accelerator, numbered: Iterable[tuple[int, T]]) -> list[T]:
    """Returns the items of all processes in the order of their numbers, in every process."""
    wait_for_all(accelerator)
    return [item for _, item in sorted(gather_object(list(numbered)), key=lambda pair: pair[0])]


def is_divided(num_parts: int, accelerator: Accelerator) -> bool:
    """Whether an image with so many parts is divided among processes, rather than given to one of them."""
    return accelerator.num_processes > 1 and num_parts > PARTS * accelerator.num_processes


def predicted_by_all(
    accelerator: Accelerator, opened: Callable[[], PartedImage], told: Callable[[Exception], str]
) -> str | None:
    """Predicts the parts of one image in all processes, each of which does neighboring ones.

    Args:
        accelerator: The processes.
        opened: Opens the image.
        told: Says in words what is wrong, or raises what no other image can survive.

    Returns:
        Why it failed, the same in every process, or None.
    """
    try:
        left = decided_by_first(accelerator, lambda: opened().begin())
    except Exception as error:
        if is_loss_of_a_peer(error):
            raise
        return told(error)
    return done_by_all(accelerator, lambda: opened().predict(consecutive_share(left, accelerator)), told)


def done_by_all(
    accelerator: Accelerator, do: Callable[[], None], told: Callable[[Exception], str]
) -> str | None:
    """Calls `do` in every process, and returns why it failed in one of them, the same in every process, or None."""
    failed = None
    try:
        do()
    except Exception as error:
        failed = told(error)
    return next(filter(None, gathered(accelerator, [(accelerator.process_index, failed)])), None)


def wait_for_all(accelerator: Accelerator) -> None:
    """Waits until all processes are here. Unlike in other collectives, a signal interrupts the wait.

    Raises RuntimeError if a process has ended.
    """
    if accelerator.num_processes == 1:
        return
    barrier = torch.distributed.barrier(async_op=True)
    while not barrier.is_completed():
        time.sleep(POLLING)
    barrier.wait()


def tell_and_leave(accelerator: Accelerator, failures: Iterable[str]) -> None:
    """Prints failures once, and ends the work in all processes together.

    Only then may one of them exit: a launcher kills the others when the first one exits with an error code.
    """
    if accelerator.is_main_process:
        for message in failures:
            print(message, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
    wait_for_all(accelerator)
    accelerator.end_training()  # threads of its process group can abort a process that ends while they run
