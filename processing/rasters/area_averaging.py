"""Reduces windows of rasters by averaging over areas, of valid pixels only, one strip of rows at a time."""

from collections.abc import Callable
from math import ceil, floor

import numpy as np

AreaReader = Callable[[tuple[int, int], tuple[int, int]], tuple[np.ndarray, np.ndarray | None]]
STRIP_VALUES = 1 << 22  # of a strip, which is held in float64
ROUNDING = 1e-6  # of a pixel, by which edges in overviews are inexact


def scaled_side(span: tuple[int, int], scale: float) -> int:
    """Number of pixels of `span` rows or columns at `scale`, at least 1."""
    return max(1, round((span[1] - span[0]) * scale))


def window_edges(span: tuple[int, int], scale: float, shrink: float = 1.0) -> np.ndarray:
    """The edges of the areas along one axis.

    Args:
        span: First row or column, and the one after the last.
        scale: Factor of the number of pixels.
        shrink: Factor of the positions, for a source that is smaller than the raster.

    Returns:
        Positions (n + 1,) of the n areas' edges in the source.
    """
    return np.linspace(span[0], span[1], scaled_side(span, scale) + 1) * shrink


def area_average(read: AreaReader, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Averages the pixels of a source over areas.

    Args:
        read: Returns the pixels (C, h, w) of rows and columns, and where they are valid (h, w), or None for
            everywhere.
        rows: Positions (n + 1,) of the areas' edges along the rows.
        columns: The same (m + 1,) along the columns.

    Returns:
        Averages (C, n, m) of the type of the pixels, rounded for integers, 0 where no pixel is valid; and where a
        part of the area is valid (n, m).
    """
    span = whole(columns)
    tall = max(1.0, (rows[-1] - rows[0]) / (len(rows) - 1))  # source rows of an area
    step = max(1, int(STRIP_VALUES / (4 * tall * (span[1] - span[0]))))
    strips = [
        _average(read, rows[start : start + step + 1], columns, span)
        for start in range(0, len(rows) - 1, step)
    ]
    return np.concatenate([pixels for pixels, _ in strips], 1), np.concatenate([valid for _, valid in strips])


def whole(edges: np.ndarray) -> tuple[int, int]:
    """The pixels that areas with these edges touch: the first, and the one after the last."""
    return floor(edges[0] + ROUNDING), ceil(edges[-1] - ROUNDING)


def _average(
    read: AreaReader, rows: np.ndarray, columns: np.ndarray, span: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    strip = whole(rows)
    pixels, valid = read(strip, span)
    weights = np.ones(pixels.shape[1:]) if valid is None else valid.astype(np.float64)
    values = pixels.astype(np.float64)
    if valid is not None:
        values = np.where(valid, values, 0)
    edges = rows - strip[0], columns - span[0]
    sums, areas = _sums(values, *edges), _sums(weights, *edges)
    found = areas > ROUNDING
    means = sums / np.where(found, areas, 1) * found
    return (means.round() if pixels.dtype.kind in "iu" else means).astype(pixels.dtype), found


def _sums(values: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(..., h, w) -> (..., n, m): sums over areas whose edges may lie within pixels."""
    return _sums_of_last(_sums_of_last(values, columns).swapaxes(-1, -2), rows).swapaxes(-1, -2)


def _sums_of_last(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    totals = np.concatenate([np.zeros_like(values[..., :1]), values.cumsum(-1)], -1)
    edges = edges.clip(0, values.shape[-1])
    before = np.minimum(edges.astype(np.int64), values.shape[-1] - 1)
    at_edges = totals[..., before] + (edges - before) * values[..., before]
    return np.diff(at_edges)
