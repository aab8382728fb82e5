"""Many cases of one claim: in one test where they are cheap, and all of them only under `slow` where they are not."""

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import pytest


def each(names: str | tuple[str, ...], cases: Collection | Mapping[str, Any]) -> Callable:
    """`pytest.mark.parametrize` within one test, for cheap cases: a test takes some milliseconds whatever it does.

    Every case runs, and the failure names each that failed. `tmp_path` is a folder of the case's own.

    Args:
        names: the arguments that differ from case to case.
        cases: their values; a mapping gives each case its name, else it is called by its values.
    """
    names = (names,) if isinstance(names, str) else names
    values = cases.values() if isinstance(cases, Mapping) else cases
    titles = list(cases) if isinstance(cases, Mapping) else [title(value) for value in values]
    rows = [(value,) if len(names) == 1 else tuple(value) for value in values]

    def decorate(test: Callable) -> Callable:
        @functools.wraps(test)
        def run_all(**fixtures: Any) -> None:
            failures = {}
            for index, (name, row) in enumerate(zip(titles, rows, strict=True)):
                given = {**fixtures, **dict(zip(names, row, strict=True))}
                if "tmp_path" in fixtures:
                    given["tmp_path"] = fixtures["tmp_path"] / str(index)
                    given["tmp_path"].mkdir()
                try:
                    test(**given)
                except (Exception, pytest.fail.Exception) as error:
                    error.add_note(f"in the case {name}")
                    failures[name] = error
            if failures:
                message = f"{len(failures)} of {len(rows)} cases fail: {', '.join(failures)}"
                raise BaseExceptionGroup(message, list(failures.values()))

        parameters = inspect.signature(test).parameters
        run_all.__signature__ = inspect.Signature(
            [parameters[name] for name in parameters if name not in names]
        )
        return run_all

    return decorate


def title(value: Any) -> str:
    return getattr(value, "__name__", None) or str(value)


def slow_but(cases: Collection[str], *always: str, short: Collection[str] | None = None) -> list:
    """Test parameters: these cases always run, the others of the matrix under `slow`, and but for `short` under `long`."""
    assert set(always) <= set(cases), f"unknown cases: {set(always) - set(cases)}"
    further = {
        case: [pytest.mark.slow] if short is None or case in short else [pytest.mark.slow, pytest.mark.long]
        for case in cases
    }
    return [case if case in always else pytest.param(case, marks=further[case]) for case in cases]
