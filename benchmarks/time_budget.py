"""Parts of a check that share a fixed time: each gets what the later ones do not need, and none starts with less than it needs."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple


class Part(NamedTuple):
    """One part of a check.

    Args:
        name: Key of its result.
        needs: Seconds without which it does not start, and which earlier parts leave to it.
        run: Takes the seconds that it may use, and returns its result.
    """

    name: str
    needs: float
    run: Callable[[float], dict[str, Any]]


class TimeBudget:
    """Seconds that pass from now on; `clock` tells the time in seconds."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.end = clock, clock() + seconds

    @property
    def left(self) -> float:
        return self.end - self.clock()


def run_parts(parts: Sequence[Part], budget: TimeBudget) -> Iterator[tuple[str, dict[str, Any]]]:
    """Runs the parts in order and yields their names and results.

    The result of a part without enough time is {"not run": reason}; that of one that raises an error, {"failed": message}.
    """
    for index, part in enumerate(parts):
        limit = budget.left - sum(later.needs for later in parts[index + 1 :])
        if budget.left < part.needs:
            yield (
                part.name,
                {"not run": f"{max(budget.left, 0):.0f} of the {part.needs:.0f} s it needs were left"},
            )
            continue
        try:
            yield part.name, part.run(max(limit, part.needs))
        except Exception as error:  # one part must not end the others
            yield part.name, {"failed": f"{type(error).__name__}: {' '.join(str(error).split())}"}


__all__ = ["Part", "TimeBudget", "run_parts"]
