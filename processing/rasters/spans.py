"""Runs of neighboring rows or columns."""

from collections.abc import Iterator

Span = tuple[int, int]  # the first row or column, and the one after the last


def spans_of(stop: int, step: int, start: int = 0) -> Iterator[Span]:
    """Yields start..stop-1 in runs of `step` rows or columns, of which the last may be shorter."""
    for first in range(start, stop, step):
        yield first, min(first + step, stop)
