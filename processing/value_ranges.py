"""Which values are black and white in images that are not 8-bit: what their pixels suggest, and how to pass it."""

from math import ceil
from typing import NamedTuple

import numpy as np

from .image_opening import ImageReadError

USUAL_BITS = (8, 10, 12, 14, 16)  # of cameras and scanners
PART = 0.25  # of the range of a number of bits, below which it is not used from 0 on
OUTLIERS = 0.1  # percent of the pixels that may be brighter, such as hot pixels of a camera


class StoredValues(NamedTuple):
    """The values of the pixels of one or more images.

    Args:
        kind: Type of the values, such as "uint16".
        low: Smallest value.
        high: Largest value, outliers left out.
        highest: Largest value.
    """

    kind: str
    low: float
    high: float
    highest: float

    def joined(self, other: "StoredValues") -> "StoredValues":
        """The values of both."""
        low, high = min(self.low, other.low), max(self.high, other.high)
        kind = self.kind if self.kind == other.kind else f"{self.kind} and {other.kind}"
        return StoredValues(kind, low, high, max(self.highest, other.highest))

    def suggestion(self) -> tuple[float, float]:
        """(low, high), the range that the values probably have: 0..1, -1..1, a number of bits, or a part of one."""
        if "float" in self.kind:
            for limits in ((0.0, 1.0), (-1.0, 1.0)):
                if limits[0] <= self.low and self.high <= limits[1]:
                    return limits
        if self.low < 0:
            return self.low, max(self.high, self.low + 1)
        fitting = (2**bits - 1 for bits in USUAL_BITS if self.high <= 2**bits - 1)
        white = next(fitting, self.high)
        is_part = (
            self.high - self.low < white * PART and white > 255
        )  # such as signed values on an offset of 32768
        return (self.low, max(self.high, self.low + 1)) if is_part else (0, white)

    def option(self) -> str:
        """How to pass the suggested range, for messages."""
        low, high = (f"{limit:.6g}" for limit in self.suggestion())
        return f"--value-range {low} {high} (in Python, value_range=({low}, {high}))"


class UnknownRangeError(ImageReadError):
    """Black and white of an image are unknown; `values` has what its pixels are."""

    def __init__(self, message: str, values: StoredValues | None = None) -> None:
        super().__init__(message)
        self.values = values


def values_of(pixels: np.ndarray) -> StoredValues:
    """(H, W) or (H, W, C) -> the values of the pixels; NaN and infinity are left out."""
    finite = pixels[np.isfinite(pixels)] if pixels.dtype.kind == "f" else pixels.reshape(-1)
    if not finite.size:
        finite = np.zeros(1)
    rank = ceil(finite.size * (1 - OUTLIERS / 100)) - 1
    high = np.partition(finite, rank)[rank]
    return StoredValues(str(pixels.dtype), finite.min().item(), high.item(), finite.max().item())


def unknown_range(pixels: np.ndarray, name: str) -> UnknownRangeError:
    """The error for an image whose type says nothing about black and white."""
    values = values_of(pixels)
    return UnknownRangeError(
        f"{name} has {values.kind} values from {values.low:.6g} to {values.highest:.6g}: black and white are unknown. "
        f"Pass {values.option()}, or convert to uint8.",
        values,
    )
