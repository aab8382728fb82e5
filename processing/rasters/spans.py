"""Runs of neighboring rows or columns."""

from collections.abc import Iterator

Span = tuple[int, int]  # the first row or column, and the one behind the last


def spans_of(length: int, step: int) -> Iterator[Span]:
    """Yields runs of `step` rows or columns, of which the last may be shorter, that make up `length`."""
    for start in range(0, length, step):
        yield start, min(start + step, length)
