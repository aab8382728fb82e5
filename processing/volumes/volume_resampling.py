"""Resamples images and labels to another spacing as nnU-Net does, which nnFormer's numbers rest on.

Images: cubic splines along every axis, edge values repeated, no filter against aliasing, clipped to the range before.
Labels: linear on each label's own map, taken where it is at least 0.5; later labels win, 0 elsewhere. Where one
spacing is more than three times another, slices are resampled by themselves and the thick axis by nearest neighbor.

Legend: C channels, D, H, W voxels.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

try:
    from scipy.ndimage import zoom
except ImportError:  # extra [volumes]
    zoom = None

ANISOTROPY_THRESHOLD = 3.0  # largest spacing over smallest, above which slices are resampled by themselves
BLOCK_VALUES = 1 << 22  # float64 values in a block: 32 MiB


def resampled_size(
    size: Sequence[int], old_spacing: Sequence[float], new_spacing: Sequence[float]
) -> tuple[int, int, int]:
    """Returns voxels along D, H, W at another spacing, rounded to even at halves, at least 1."""
    exact = np.array(old_spacing, dtype=np.float64) / np.array(new_spacing, dtype=np.float64) * np.array(size)
    return tuple(max(1, int(length)) for length in np.round(exact))


def thick_axis(
    old_spacing: Sequence[float],
    new_spacing: Sequence[float],
    anisotropy_threshold: float = ANISOTROPY_THRESHOLD,
) -> int | None:
    """Returns the axis to resample by nearest neighbor: the coarsest of a strongly anisotropic spacing.

    The old spacing is looked at first, then the new one. None where neither is strongly anisotropic, and where two
    axes are equally coarse.
    """
    for spacing in (old_spacing, new_spacing):
        if max(spacing) / min(spacing) > anisotropy_threshold:
            coarsest = [axis for axis, step in enumerate(spacing) if step == max(spacing)]
            return coarsest[0] if len(coarsest) == 1 else None
    return None


def resample_image(
    values: np.ndarray,
    new_size: Sequence[int],
    old_spacing: Sequence[float],
    new_spacing: Sequence[float],
    order: int = 3,
    anisotropy_threshold: float = ANISOTROPY_THRESHOLD,
) -> np.ndarray:
    """(C, D, H, W) -> (C, *new_size) float32.

    Args:
        values: Real numbers.
        new_size: Voxels along D, H, W, from `resampled_size`.
        old_spacing: Millimeters along D, H, W before.
        new_spacing: And after.
        order: Of the splines: 3 cubic, 1 linear.
        anisotropy_threshold: Largest spacing over smallest, above which slices are resampled by themselves.

    Raises:
        ImportError: Without scipy.
    """
    new_size = tuple(map(int, new_size))
    if values.shape[1:] == new_size:
        return values.astype(np.float32)
    thick = thick_axis(old_spacing, new_spacing, anisotropy_threshold)
    resampled = np.empty((len(values), *new_size), dtype=np.float32)
    for channel, result in zip(values, resampled, strict=True):
        result[:] = _resampled_channel(channel, new_size, thick, order)
    return resampled


def resample_labels(
    labels: np.ndarray,
    new_size: Sequence[int],
    old_spacing: Sequence[float],
    new_spacing: Sequence[float],
    order: int = 1,
    anisotropy_threshold: float = ANISOTROPY_THRESHOLD,
) -> np.ndarray:
    """(D, H, W) -> new_size, of the same type; `order` 1 is linear on each label's map, 0 nearest neighbor.

    The other arguments are those of `resample_image`.
    """
    new_size = tuple(map(int, new_size))
    if labels.shape == new_size:
        return labels.copy()
    if order == 0:
        return labels[np.ix_(*map(nearest_places, labels.shape, new_size))]
    thick = thick_axis(old_spacing, new_spacing, anisotropy_threshold)
    inner = list(new_size)
    if thick is not None:
        inner[thick] = labels.shape[thick]
    resampled = np.zeros(inner, dtype=labels.dtype)
    lowest, *higher = np.unique(labels)
    for label in higher if lowest == 0 else (lowest, *higher):
        _paint(label, labels == label, resampled)
    if thick is not None:
        resampled = resampled.take(nearest_places(labels.shape[thick], new_size[thick]), axis=thick)
    return resampled


@lru_cache(maxsize=32)
def spline_matrix(old: int, new: int, order: int) -> np.ndarray:
    """(new, old) float64: resampling along one axis as a matrix, read-only. Raises ImportError without scipy."""
    if zoom is None:
        raise ImportError("resampling needs scipy. Install it with pip install 'contextseg[volumes]'.")
    places = np.eye(old)
    matrix = zoom(places, (new / old, 1), order=order, mode="nearest", grid_mode=True)
    matrix.setflags(write=False)
    return matrix


def nearest_places(old: int, new: int) -> np.ndarray:
    """(new,): the nearest voxel before resampling of each voxel after it, along one axis."""
    places = old / new * (np.arange(new) + 0.5) - 0.5
    return np.clip(np.floor(np.clip(places, 0, old - 1) + 0.5).astype(np.int64), 0, old - 1)


def linear_places(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(new,) each: the two voxels before resampling between which a voxel lies after it, and the share of the second."""
    places = np.clip(old / new * (np.arange(new) + 0.5) - 0.5, 0, old - 1)
    first = np.floor(places).astype(np.int64)
    return first, np.minimum(first + 1, old - 1), places - first


def _resampled_channel(
    channel: np.ndarray, new_size: tuple[int, ...], thick: int | None, order: int
) -> np.ndarray:
    """(D, H, W) -> new_size, clipped to the range of the channel, or of each slice where one axis is thick."""
    slices = None if thick is None else tuple(axis for axis in range(3) if axis != thick)
    low, high = (extreme(axis=slices, keepdims=True) for extreme in (channel.min, channel.max))
    result = channel
    axes = sorted(slices or range(3), key=lambda axis: new_size[axis] / channel.shape[axis])
    for axis in axes:  # those that shrink first
        if channel.shape[axis] != new_size[axis]:
            result = _along(result, spline_matrix(channel.shape[axis], new_size[axis], order), axis)
    result = np.clip(result, low, high, out=result if result is not channel else None)
    if thick is not None:
        result = result.take(nearest_places(channel.shape[thick], new_size[thick]), axis=thick)
    return result


def _along(values: np.ndarray, matrix: np.ndarray, axis: int) -> np.ndarray:
    """Applies a matrix along one axis, in float64 in blocks of another axis; the result is float32."""
    size = (*values.shape[:axis], len(matrix), *values.shape[axis + 1 :])
    result = np.empty(size, dtype=np.float32)
    other = 1 if axis == 0 else 0
    step = max(1, BLOCK_VALUES * values.shape[other] // max(values.size, result.size))
    for start in range(0, values.shape[other], step):
        block = (slice(None),) * other + (slice(start, start + step),)
        product = np.tensordot(matrix, values[block].astype(np.float64), axes=(1, axis))
        result[block] = np.moveaxis(product, 0, axis)
    return result


def _paint(label: int, hits: np.ndarray, target: np.ndarray) -> None:
    """Writes a label where its map, resampled linearly to the size of `target`, is at least 0.5.

    The sums run in the order of scipy's `zoom`, so that ties at 0.5 fall as in the reference.
    """
    boxes = [np.flatnonzero(hits.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    taps = []
    for axis, inside in enumerate(boxes):
        first, second, share = linear_places(hits.shape[axis], target.shape[axis])
        reached = np.flatnonzero((second >= inside[0]) & (first <= inside[-1]))
        rest = 1.0 - share[reached]
        taps.append((reached, ((first[reached], rest), (second[reached], 1.0 - rest))))
    (planes, depth), (rows, height), (columns, width) = taps
    corner = np.ix_(rows, columns)
    for index, plane in enumerate(planes):
        total = np.zeros((len(rows), len(columns)))
        for slices, w0 in depth:
            for lines, w1 in height:
                for places, w2 in width:
                    total += (w0[index] * w1)[:, None] * w2 * hits[slices[index]][np.ix_(lines, places)]
        target[plane][corner] = np.where(total >= 0.5, label, target[plane][corner])
