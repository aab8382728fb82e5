"""Stopping a run from outside: SIGTERM and Ctrl-C."""

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

import torch
from accelerate import Accelerator

Item = TypeVar("Item")


class EvaluationStopped(Exception):  # noqa: N818 - as `StopIteration`
    """A signal has stopped an evaluation, which is to be repeated."""


class StopSignal:
    """Records SIGTERM and Ctrl-C, so that the loop can stop after the current step.

    A second Ctrl-C interrupts at once.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    def requested(self, accelerator: Accelerator) -> bool:
        """Whether any process has received a signal. Call it on every process."""
        if accelerator.num_processes == 1:
            return self.number is not None
        flag = torch.tensor(float(self.number is not None), device=accelerator.device)
        return bool(accelerator.reduce(flag))

    def watching(self, items: Iterable[Item], accelerator: Accelerator) -> Iterator[Item]:
        """Yields the items of an evaluation. Raises EvaluationStopped before the next one if a signal has arrived.

        With several processes, which have to go on together, it yields all of them.
        """
        for item in items:
            if self.number is not None and accelerator.num_processes == 1:
                raise EvaluationStopped
            yield item

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Context manager in which the signals are handled."""
        before = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.number = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
