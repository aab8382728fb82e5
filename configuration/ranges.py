"""Ranges of numbers: what each numeric field of a configuration, and each numeric option of a command, may be."""

import sys
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any


@dataclass(frozen=True)
class Range:
    """The finite numbers between two bounds.

    Attributes:
        minimum, maximum: Bounds that belong to the range; None for no bound.
        above, below: Bounds that do not belong to it; None for no bound.
        whole: Whether only whole numbers belong to it.
    """

    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    whole: bool = False

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, Integral if self.whole else Real):
            return False
        return abs(value) <= sys.float_info.max and not (
            (self.minimum is not None and value < self.minimum)
            or (self.maximum is not None and value > self.maximum)
            or (self.above is not None and value <= self.above)
            or (self.below is not None and value >= self.below)
        )

    def __str__(self) -> str:
        kind, bounds = "a whole number" if self.whole else "a number", self.bounds()
        return f"{kind} {'of ' * bounds.startswith('at ')}{bounds}".strip()

    def bounds(self) -> str:
        """Returns the bounds in words, such as "from 1 to 64" or "above 0"; empty without bounds."""
        if self.minimum is not None and self.maximum is not None:
            return f"from {self.minimum:.15g} to {self.maximum:.15g}"
        signs = {"at least": self.minimum, "above": self.above, "at most": self.maximum, "below": self.below}
        return " and ".join(f"{sign} {bound:.15g}" for sign, bound in signs.items() if bound is not None)


def check_number(name: str, value: Any, allowed: Range) -> None:
    """Raises ValueError, with name, value and requirement, if a number is outside its range."""
    if value not in allowed:
        raise ValueError(f"{name} is {shown(value)}, but must be {allowed}.")


def check_numbers(name: str, values: Any, allowed: Range, *, may_be_empty: bool = False) -> None:
    """Raises ValueError unless `values` is a list or tuple of numbers in the range."""
    is_list = isinstance(values, list | tuple) and (may_be_empty or len(values) > 0)
    if not is_list or any(value not in allowed for value in values):
        raise ValueError(f"{name} is {shown(values)}, but must be a list in which each entry is {allowed}.")


def shown(value: Any) -> str:
    """Returns the value as text on one line, shortened if it is long."""
    text = (
        " ".join(repr(value).split()) if not isinstance(value, int) or abs(value) < 1e50 else "a huge number"
    )
    return text if len(text) <= 80 else f"{text[:77]}..."


def whole(minimum: int, maximum: int) -> Range:
    """The whole numbers from `minimum` to `maximum`."""
    return Range(minimum=minimum, maximum=maximum, whole=True)
