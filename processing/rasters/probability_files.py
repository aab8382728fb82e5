"""Class probabilities of rasters: one `.npy` file of all classes, written in strips of rows."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..atomic_write import MEGABYTE, atomic_write
from .spans import spans_of

STRIP_VALUES = 1 << 24


def write_probabilities(
    target: Path, rows: Callable[[int, int], np.ndarray], shape: tuple[int, int, int]
) -> None:
    """Writes probabilities as `.npy`, float16 (K, H, W), NaN where the raster has no data.

    Args:
        target: The file to write; its folder is created if needed.
        rows: Function of the first row and the one after the last that returns (rows, W, K).
        shape: (K, H, W).

    Raises:
        ValueError: If the disk has less free space than the file needs.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    needed, free = 2 * math.prod(shape), shutil.disk_usage(target.parent).free
    if needed > free:  # writing to a mapped file on a full disk kills the process
        raise ValueError(
            f"{target} needs {needed // MEGABYTE} MB and {free // MEGABYTE} MB are free. "
            "Choose another place, or leave the probabilities out."
        )
    _, height, width = shape
    step = max(1, STRIP_VALUES // (width * shape[0]))
    with atomic_write(target) as temporary:
        np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
        for start, stop in spans_of(height, step):
            # The file is opened for each strip, so that earlier rows do not stay in memory.
            stored = np.lib.format.open_memmap(temporary, mode="r+")
            stored[:, start:stop] = np.moveaxis(rows(start, stop), -1, 0)
