"""Where training patches lie in a volume, and how they are read from it.

Legend: C channels; D, H, W slices, rows and columns; N voxels.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.random import Generator

MOST_PLACES = 4096  # voxels of each class that patches can be centered on
BACKGROUND = 0


def foreground_places(labels: np.ndarray, ignore_index: int, random: Generator) -> np.ndarray:
    """(D, H, W) class indices -> (N, 4) int32, rows (class, slice, row, column) sorted by class.

    Of a class with more than 4096 voxels, as many are drawn. Background and ignored voxels are left out.
    """
    flat = labels.reshape(-1)
    voxels = np.flatnonzero((flat != BACKGROUND) & (flat != ignore_index))
    classes = flat[voxels]
    tables = []
    for index in np.unique(classes):
        own = voxels[classes == index]
        if len(own) > MOST_PLACES:
            own = own[np.sort(random.choice(len(own), MOST_PLACES, replace=False))]
        tables.append(np.stack([np.full(len(own), index), *np.unravel_index(own, labels.shape)], axis=1))
    return np.concatenate(tables or [np.empty((0, 4))]).astype(np.int32)


def draw_start(
    shape: Sequence[int], size: Sequence[int], random: Generator, places: np.ndarray | None = None
) -> tuple[int, int, int]:
    """The first slice, row and column of a patch; an axis that is too short for it is centered in the patch.

    Args:
        shape: (D, H, W) of the volume.
        size: Slices, rows and columns of the patch.
        random: Source of the draws.
        places: Result of `foreground_places`. The patch is centered on a random voxel of a random class of these,
            as far as it stays inside the volume. Default, and without any place: it lies anywhere.
    """
    if places is None or len(places) == 0:
        first = [random.integers(max(whole - part, 0) + 1) for whole, part in zip(shape, size, strict=True)]
    else:
        index = random.choice(np.unique(places[:, 0]))
        begin, end = np.searchsorted(places[:, 0], [index, index + 1])
        first = places[random.integers(begin, end), 1:] - np.asarray(size) // 2
    return tuple(
        int(min(max(at, 0), whole - part)) if whole >= part else -((part - whole) // 2)
        for at, whole, part in zip(first, shape, size, strict=True)
    )


def is_chosen(position: int, share: float) -> bool:
    """Whether the patch at a position of a sequence is one of a share that is spread evenly over it."""
    return math.floor((position + 1) * share) > math.floor(position * share)


def read_box(values: np.ndarray, start: Sequence[int], size: Sequence[int], fill: float) -> np.ndarray:
    """(..., D, H, W) -> a new array of the box at `start`, which may reach beyond the volume, where it is `fill`."""
    shape = values.shape[-3:]
    inside = [
        (max(at, 0), min(at + length, whole)) for at, length, whole in zip(start, size, shape, strict=True)
    ]
    box = np.full((*values.shape[:-3], *size), fill, values.dtype)
    if all(low < high for low, high in inside):
        target = [slice(low - at, high - at) for (low, high), at in zip(inside, start, strict=True)]
        box[..., *target] = values[..., *(slice(low, high) for low, high in inside)]
    return box
