"""Measures what a run on volumes is planned from: sizes, spacings, and the intensities of labeled voxels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..progress import progress
from .volume_datasets import VolumeData

STEP = 10  # of the foreground voxels, every tenth counts, as in nnU-Net
MOST_CASES = 64
MOST_VOXELS = 100_000  # of a case and channel


@dataclass(frozen=True)
class VolumeStatistics:
    """Numbers of a data set of volumes.

    Args:
        sizes: Voxels of each case along (D, H, W).
        spacings: Millimeters between the voxels of each case along (D, H, W).
        intensity: For each channel `mean`, `std`, `percentile_00_5` and `percentile_99_5` of the foreground.
    """

    sizes: list[tuple[int, int, int]]
    spacings: list[tuple[float, float, float]]
    intensity: list[dict[str, float]]


def volume_statistics(data: VolumeData, most_cases: int = MOST_CASES) -> VolumeStatistics:
    """Reads the headers of all cases, and the intensities of a sample of them, one case at a time.

    Args:
        data: The data. Cases without a label or without foreground have no share in the intensities.
        most_cases: Number of cases whose voxels are read, spread evenly over the data.

    Raises:
        VolumeReadError: If a file cannot be read.
        ValueError: If a label has an unknown id, or no case that was read has foreground.
    """
    geometries = [data.geometry(index) for index in range(len(data))]
    labeled = [index for index in range(len(data)) if data.case(index).label is not None]
    sample = [labeled[place] for place in spread(len(labeled), most_cases)]
    bar = progress(sample, total=len(sample), unit="case", desc="measuring intensities")
    found = [foreground(data, index) for index in bar]
    values = np.concatenate([np.empty((data.num_channels, 0), np.float32), *found], axis=1)
    if not values.shape[1]:
        raise ValueError(
            f"'{data.path}' has no labeled foreground in the {len(sample)} cases that were read, so that its intensities "
            "cannot be measured. Check the labels, or pass --normalization zscore."
        )
    return VolumeStatistics(
        [geometry.size for geometry in geometries],
        [geometry.spacing for geometry in geometries],
        [_intensity(channel) for channel in values],
    )


def spread(count: int, most: int | None) -> list[int]:
    """At most `most` of the numbers below `count`, evenly spaced; None: all."""
    chosen = count if most is None else min(most, count)
    return np.linspace(0, count - 1, chosen).round().astype(int).tolist()


def foreground(data: VolumeData, index: int) -> np.ndarray:
    """(C, N) every tenth value, or fewer of many, where the label of a case has a class other than the background."""
    sample = data[index]
    mask = sample["mask"]
    places = np.flatnonzero((mask > 0) & (mask != data.ignore_index))
    step = max(STEP, -(-len(places) // MOST_VOXELS))
    values = sample["image"].values
    return values.reshape(len(values), -1)[:, places[::step]]


def _intensity(values: Sequence[float]) -> dict[str, float]:
    low, high = np.percentile(values, (0.5, 99.5))
    mean, std = np.mean(values, dtype=np.float64), np.std(values, dtype=np.float64)
    return {
        "mean": float(mean),
        "std": float(std),
        "percentile_00_5": float(low),
        "percentile_99_5": float(high),
    }
