"""Volumes as a network sees them, kept on disk, so that a training patch reads only what it needs."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset
from transformers import BaseImageProcessor


class StoredVolume(NamedTuple):
    """One prepared volume, mapped from its files.

    Args:
        name: Name of the case.
        values: (C, D, H, W) float32, normalized, at the target spacing.
        labels: (D, H, W) class indices, and the ignore index.
        places: (N, 4) int32, rows (class, slice, row, column) of foreground voxels, sorted by class.
        spacing: (D, H, W) in millimeters.
    """

    name: str
    values: np.ndarray
    labels: np.ndarray
    places: np.ndarray
    spacing: tuple[float, float, float]


class PreparedVolumes(Dataset):
    """The volumes of a dataset after the processor's `prepare`, in a folder of memory-mapped files.

    A volume is prepared when it is first asked for, or by `make`, and found again by the state of its files and the
    settings of the processor. Several processes may use the folder at the same time.

    Args:
        data: Dataset of cases with labels.
        processor: Processor of the volumes.
        folder: Where the files are kept. It is made if needed.
    """

    def __init__(self, data: Dataset, processor: BaseImageProcessor, folder: str | Path) -> None:
        self.data, self.processor, self.folder = data, processor, Path(folder)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> StoredVolume:
        raise NotImplementedError

    def remove_stale(self) -> None:
        """Removes prepared volumes that this dataset and processor do not use. For one process, before `make`."""

    def missing(self) -> list[int]:
        """Indices of the volumes that are still to be prepared."""
        return []

    def make(self, *, rank: int = 0, world: int = 1, **options: Any) -> None:
        """Prepares the missing volumes, or each of `world` processes its share."""
