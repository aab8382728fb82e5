"""How a volume lies in its file: axes, affine, and the header fields that a mask of it must carry.

NIfTI stores (x, y, z) in any of 48 orders of axes and directions. Networks see the canonical orientation, which is
the closest to right-anterior-superior, with the slices first: (D, H, W) = (z, y, x). Only axes are exchanged and
reversed, so nothing is interpolated, and a mask goes back to the file's own voxels exactly.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

try:
    from nibabel.orientations import io_orientation
except ImportError:  # extra [volumes]
    io_orientation = None

SLICE_AXES = {"z": (2, 1, 0), "y": (1, 2, 0), "x": (0, 2, 1)}  # body axes (x, y, z) that become D, H, W
SMALLEST_LENGTH = 1e-6  # millimeters of a voxel's edge
SMALLEST_VOLUME = 1e-3  # of a voxel, relative to a rectangular one; the edges of flatter ones are no axes
LARGEST_SHIFT = 0.25  # of a voxel, between grids that are the same but for rounding


@dataclass(frozen=True, eq=False)
class VolumeGeometry:
    """The grid of a file.

    Args:
        shape: Voxels along the two or three spatial axes of the file.
        affine: (4, 4) float64, from voxel indices of the file to millimeters (right, anterior, superior).
        header: Fields of the NIfTI header that place the grid, as stored; empty for other formats.
        slice_axis: Axis of the body that becomes the first one: "z", "y" or "x".
        num_channels: Values of each voxel.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    header: Mapping[str, Any] = field(default_factory=dict)
    slice_axis: str = "z"
    num_channels: int = 1

    @cached_property
    def layout(self) -> tuple[tuple[int, bool], ...]:
        """For each of D, H, W: the axis of the file, and whether it runs the other way."""
        oriented = io_orientation(self.affine)
        bodies = [int(body) for body in oriented[:, 0]]
        return tuple(
            (bodies.index(body), bool(oriented[bodies.index(body), 1] < 0))
            for body in SLICE_AXES[self.slice_axis]
        )

    @property
    def size(self) -> tuple[int, int, int]:
        """Voxels along D, H, W."""
        return tuple(self._shape3[axis] for axis, _ in self.layout)

    @cached_property
    def canonical_affine(self) -> np.ndarray:
        """(4, 4) float64, from (d, h, w) to millimeters (right, anterior, superior)."""
        steps = np.zeros((4, 4))
        steps[3, 3] = 1
        for position, (axis, is_reversed) in enumerate(self.layout):
            steps[axis, position] = -1 if is_reversed else 1
            steps[axis, 3] = self._shape3[axis] - 1 if is_reversed else 0
        return self.affine @ steps

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimeters between voxels along D, H, W."""
        return tuple(float(length) for length in np.linalg.norm(self.canonical_affine[:3, :3], axis=0))

    @property
    def _shape3(self) -> tuple[int, int, int]:
        return (*self.shape, 1, 1)[:3]

    def to_canonical(self, values: np.ndarray) -> np.ndarray:
        """Returns an array on the file's axes as a view (D, H, W)."""
        turned = values.reshape(self._shape3, order="A").transpose([axis for axis, _ in self.layout])
        return turned[self._directions]

    def to_file(self, values: np.ndarray) -> np.ndarray:
        """Returns an array (D, H, W) as a view on the file's axes, of the file's shape.

        Raises:
            ValueError: If the array has another size.
        """
        if values.shape != self.size:
            raise ValueError(
                f"got a mask of size {values.shape} for a volume of {self.size} voxels (D, H, W)."
            )
        places = np.argsort([axis for axis, _ in self.layout])
        return values[self._directions].transpose(places).reshape(self.shape)

    def seen_along(self, slice_axis: str) -> "VolumeGeometry":
        """Returns the same grid with another slice axis."""
        return self if slice_axis == self.slice_axis else replace(self, slice_axis=slice_axis)

    @property
    def _directions(self) -> tuple[slice, ...]:
        return tuple(slice(None, None, -1 if is_reversed else 1) for _, is_reversed in self.layout)

    def __str__(self) -> str:
        """Size, spacing and affine, for messages."""
        rows = "; ".join(" ".join(f"{value:.6g}" for value in row) for row in self.affine[:3])
        voxels, steps = "x".join(map(str, self.size)), "x".join(f"{step:.4g}" for step in self.spacing)
        return f"{voxels} voxels of {steps} mm, affine [{rows}]"


def is_sound(affine: np.ndarray) -> bool:
    """Whether an affine (4, 4) gives every voxel a place of its own: finite, and no axis of length 0."""
    matrix = np.asarray(affine, dtype=np.float64)[:3]
    if not np.isfinite(matrix).all():
        return False
    lengths = np.linalg.norm(matrix[:, :3], axis=0)
    if lengths.min() < SMALLEST_LENGTH:
        return False
    return abs(np.linalg.det(matrix[:, :3] / lengths)) > SMALLEST_VOLUME


def is_same_grid(first: VolumeGeometry, second: VolumeGeometry) -> bool:
    """Whether two files hold the same voxels at the same places, in any order of axes, but for rounding.

    No corner of the grid may be further away than a quarter of the shortest spacing.
    """
    second = second.seen_along(first.slice_axis)
    if first.size != second.size:
        return False
    corners = np.array([(*corner, 1) for corner in np.ndindex(2, 2, 2)], dtype=np.float64)
    corners[:, :3] *= np.array(first.size) - 1
    shifts = corners @ (first.canonical_affine - second.canonical_affine)[:3].T
    spacing = np.array(first.spacing)
    if not np.allclose(spacing, second.spacing, rtol=0.01):  # axes of length 1 have no corners to compare
        return False
    return float(np.linalg.norm(shifts, axis=1).max()) <= LARGEST_SHIFT * spacing.min()
