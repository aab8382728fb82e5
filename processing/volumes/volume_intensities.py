"""Changes of the intensities of one channel of a volume, (D, H, W) float32 -> the same.

Sums run in an order that does not depend on the number of threads, so that results are equal to the bit.
"""

import numpy as np
from numpy.random import Generator

BLUR_REACH = 4  # standard deviations at which the kernel ends
TINY = 1e-7


def add_noise(values: np.ndarray, deviation: float, random: Generator) -> np.ndarray:
    """Adds Gaussian noise of this standard deviation."""
    return values + np.float32(deviation) * random.standard_normal(values.shape, dtype=np.float32)


def blur(values: np.ndarray, deviation: float) -> np.ndarray:
    """Gaussian blur with this standard deviation in voxels; edge values are repeated."""
    reach = int(BLUR_REACH * deviation + 0.5)
    if reach == 0:
        return values
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offsets / deviation) ** 2)
    for axis, length in enumerate(values.shape):
        indices = np.clip(np.arange(length)[:, None] + offsets, 0, length - 1)
        values = weighted_sum(values, axis, indices, np.tile(weights / weights.sum(), (length, 1)))
    return values


def lower_resolution(values: np.ndarray, zoom: float, axes: tuple[int, ...]) -> np.ndarray:
    """Keeps the nearest voxels of a grid with `zoom` times as many voxels along `axes`, and enlarges it cubically."""
    for axis in axes:
        length = values.shape[axis]
        coarse = max(1, round(length * zoom))
        if coarse == length:
            continue
        kept = np.floor((np.arange(coarse) + 0.5) * length / coarse).astype(int)
        places = (np.arange(length) + 0.5) * coarse / length - 0.5
        first = np.floor(places).astype(int)
        indices = np.clip(first[:, None] + np.arange(-1, 3), 0, coarse - 1)
        values = weighted_sum(values, axis, kept[indices], cubic_weights(places - first))
    return values


def cubic_weights(fractions: np.ndarray) -> np.ndarray:
    """(N,) places between two points -> (N, 4) weights of the four nearest points in Catmull and Rom's spline."""
    t = fractions
    return 0.5 * np.stack(
        [
            -(t**3) + 2 * t**2 - t,
            3 * t**3 - 5 * t**2 + 2,
            -3 * t**3 + 4 * t**2 + t,
            t**3 - t**2,
        ],
        axis=1,
    )


def weighted_sum(values: np.ndarray, axis: int, indices: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Along `axis`, entry n of the result is the sum of the entries `indices[n]` times `weights[n]`."""
    shape = [-1 if other == axis else 1 for other in range(values.ndim)]
    weights = weights.astype(np.float32)
    total = values.take(indices[:, 0], axis) * weights[:, 0].reshape(shape)
    for tap in range(1, indices.shape[1]):
        part = values.take(indices[:, tap], axis)
        part *= weights[:, tap].reshape(shape)
        total += part
    return total


def change_contrast(values: np.ndarray, factor: float) -> np.ndarray:
    """Multiplies the deviations from the mean; the result stays in the range of the values."""
    mean = values.mean(dtype=np.float64).astype(np.float32)
    return np.clip((values - mean) * np.float32(factor) + mean, values.min(), values.max())


def change_gamma(values: np.ndarray, gamma: float) -> np.ndarray:
    """Raises the values, on the scale from smallest to largest, to the power `gamma`; mean and deviation stay."""
    low, high = values.min(), values.max()
    mean, deviation = values.mean(dtype=np.float64), values.std(dtype=np.float64)
    if high - low < TINY:
        return values
    changed = ((values - low) / (high - low)) ** np.float32(gamma)
    factor = deviation / max(changed.std(dtype=np.float64), TINY)
    shift = mean - changed.mean(dtype=np.float64) * factor
    return changed * np.float32(factor) + np.float32(shift)
