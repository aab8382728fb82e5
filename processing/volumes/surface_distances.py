"""Distances between the surfaces of two masks: HD95 and normalized surface Dice (NSD).

The surface of a mask is its voxels with a neighbor outside the mask, among the 2 neighbors along each axis; what lies beyond the
border of the volume is outside. Distances are between voxel centers, in the unit of the spacing. MONAI, medpy and Metrics
Reloaded take the same surface; DeepMind's surface-distance weighs surface elements between voxels by their area instead.

The definitions hold for any number of axes. Memory goes by the surfaces, not by the volume.

Legend: G... the axes of the masks, N surface voxels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

try:
    from scipy import ndimage, spatial
except ImportError:
    ndimage = spatial = None

ROUNDING = 1e-5  # of a tolerance: spacings in files are float32, so a step of 1 mm may be 1.0000001


class SurfaceDistances(NamedTuple):
    """Distances of the surface voxels of each of two masks from the nearest one of the other.

    Args:
        predicted: (N,) of the prediction's surface from the truth's.
        truth: (N,) of the truth's surface from the prediction's.
    """

    predicted: np.ndarray
    truth: np.ndarray

    def hausdorff(self, percentile: float = 95.0, pooled: bool = False) -> float:
        """Returns a percentile of the distances, interpolated linearly; NaN if either surface is empty.

        Args:
            percentile: From 0 to 100, which is the Hausdorff distance. Default: 95.
            pooled: Take it over the distances of both directions together, as medpy. Default: the larger of the
                two directions' percentiles, as MONAI and Metrics Reloaded.
        """
        if not len(self.predicted) or not len(self.truth):
            return float("nan")
        directions = [np.concatenate(self)] if pooled else self
        return float(max(np.percentile(distances, percentile) for distances in directions))

    def surface_dice(self, tolerance: float) -> float:
        """Returns the share of surface voxels of both masks that are at most `tolerance` from the other surface.

        It is NaN if both surfaces are empty, and 0 if one of them is.
        """
        total = len(self.predicted) + len(self.truth)
        near = sum(np.count_nonzero(side <= tolerance * (1 + ROUNDING)) for side in self)
        return float(near / total) if total else float("nan")


def surface_distances(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float] | None = None
) -> SurfaceDistances:
    """Returns the distances between the surfaces of two masks, in both directions.

    Args:
        prediction: (G...) bool.
        truth: (G...) bool of the same shape.
        spacing: Distance of neighboring voxel centers along each axis, such as (D, H, W) in millimeters. Default: 1, voxels.

    Raises:
        ValueError: If shapes differ, or there is not one spacing above 0 for each axis.
        ImportError: If scipy is not installed.
    """
    if prediction.shape != truth.shape:
        raise ValueError(
            f"a prediction of shape {prediction.shape} and a truth of shape {truth.shape} cannot be compared."
        )
    steps = checked_spacing(spacing, prediction.ndim)
    return distances_between(surface_of(prediction), surface_of(truth), steps)


def checked_spacing(spacing: Sequence[float] | None, num_axes: int) -> np.ndarray:
    """The spacing as an array, ones for None. Raises ValueError unless there is one finite number above 0 for each axis."""
    steps = np.ones(num_axes) if spacing is None else np.asarray(spacing, dtype=np.float64)
    if steps.shape != (num_axes,) or not np.all(np.isfinite(steps) & (steps > 0)):
        raise ValueError(
            f"spacing is {spacing}, but must be {num_axes} finite numbers above 0, one for each axis of the masks."
        )
    return steps


def surface_of(mask: np.ndarray, offset: Sequence[int] | None = None) -> np.ndarray:
    """(G...) bool -> (N, axes) int32, the indices of the surface voxels, to which `offset` is added."""
    if ndimage is None:
        raise ImportError(
            "surface distances of volumes need scipy. Install it with pip install 'contextseg[volumes]'."
        )
    surface = mask & ~ndimage.binary_erosion(mask)
    places = np.argwhere(surface).astype(np.int32)
    return places if offset is None else places + np.asarray(offset, dtype=np.int32)


def distances_between(predicted: np.ndarray, truth: np.ndarray, spacing: np.ndarray) -> SurfaceDistances:
    """(N, axes) surface voxels each -> the distances in both directions, infinite from an empty surface."""
    if not len(predicted) or not len(truth):
        return SurfaceDistances(np.full(len(predicted), np.inf), np.full(len(truth), np.inf))
    return SurfaceDistances(
        nearest_distances(predicted, truth, spacing), nearest_distances(truth, predicted, spacing)
    )


def nearest_distances(places: np.ndarray, others: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """(N, axes) voxels, and those of another surface -> (N,) distances of the former from the nearest of the latter."""
    tree = spatial.cKDTree(others * spacing, compact_nodes=False, balanced_tree=False)
    _, nearest = tree.query(places * spacing)
    # From whole steps, because differences of rounded positions may exceed a tolerance of as many steps.
    return np.sqrt((((places - others[nearest]) * spacing) ** 2).sum(axis=1))
