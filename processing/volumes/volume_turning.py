"""Rotated and scaled patches of a volume, resampled once from a box that fills them.

Legend: C channels; D, H, W slices, rows and columns; d, h, w those of a patch.
"""

from collections.abc import Sequence
from math import ceil, floor

import numpy as np
import torch
from torch.nn import functional as F

from .patch_sampling import read_box


def rotation_matrix(degrees: Sequence[float]) -> np.ndarray:
    """(3, 3) product of the rotations by these angles about the axes of slices, rows and columns."""
    product = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        turn, (first, second) = np.eye(3), [other for other in range(3) if other != axis]
        turn[[first, second], [first, second]] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        product = product @ turn
    return product


def voxel_matrix(
    degrees: Sequence[float], scales: Sequence[float], spacing: Sequence[float]
) -> np.ndarray | None:
    """(3, 3) from offsets in a patch to offsets in the volume, both in voxels; None if it is the identity.

    Args:
        degrees: Angles of the rotation in space about the axes of slices, rows and columns.
        scales: Sides of the region that is shown, in sides of the patch.
        spacing: (D, H, W) in millimeters.
    """
    if not any(degrees) and all(scale == 1 for scale in scales):
        return None
    lengths = np.asarray(spacing, dtype=np.float64)
    return rotation_matrix(degrees) * lengths / lengths[:, None] * np.asarray(scales)


def turned_patch(
    values: np.ndarray,
    labels: np.ndarray,
    start: Sequence[int],
    size: Sequence[int],
    matrix: np.ndarray | None,
    ignore_index: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a patch and its labels; outside the volume, they are 0 and the ignore index.

    Args:
        values: (C, D, H, W) float32.
        labels: (D, H, W) class indices.
        start: First slice, row and column of the patch, before it is turned about its center.
        size: (d, h, w).
        matrix: Result of `voxel_matrix`.
        ignore_index: Label outside the volume.

    Returns:
        (C, d, h, w), resampled linearly, and (d, h, w), labels of the nearest voxels.
    """
    if matrix is None:
        return read_box(values, start, size, 0), read_box(labels, start, size, ignore_index)
    middle = (np.asarray(size) - 1) / 2
    reach = np.abs(matrix) @ middle
    low = [floor(round(at, 6)) for at in start + middle - reach]
    high = [ceil(round(at, 6)) for at in start + middle + reach]
    sides = [last - first + 1 for first, last in zip(low, high, strict=True)]
    grid = sampling_grid(matrix, size, start + middle - low, sides)
    pixels = torch.from_numpy(read_box(values, low, sides, 0))[None]
    pixels = F.grid_sample(pixels, grid, padding_mode="border", align_corners=True)[0]
    ids = torch.from_numpy(read_box(labels, low, sides, ignore_index).astype(np.float32))[None, None]
    ids = F.grid_sample(ids, grid, mode="nearest", padding_mode="border", align_corners=True)[0, 0]
    return pixels.numpy(), ids.numpy().astype(labels.dtype)


def sampling_grid(
    matrix: np.ndarray, size: Sequence[int], center: np.ndarray, sides: Sequence[int]
) -> torch.Tensor:
    """(1, d, h, w, 3) as `grid_sample` takes it, for a patch centered at `center` of a box with these sides."""
    factors = 2 / np.maximum(np.asarray(sides) - 1, 1)
    grid = (center * factors - 1).astype(np.float32)
    for axis, length in enumerate(size):
        offsets = np.arange(length) - (length - 1) / 2
        along = (offsets[:, None] * matrix[:, axis] * factors).astype(np.float32)
        grid = grid + along.reshape(*(length if other == axis else 1 for other in range(3)), 3)
    return torch.from_numpy(grid[None, ..., ::-1].copy())
