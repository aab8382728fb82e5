"""Volumes as a network sees them, kept on disk, so that a training patch reads only what it needs.

A prepared volume is a folder of `.npy` files, named by a hash of all that its content depends on. It is written under
a temporary name and renamed when complete, so any number of processes may make and read the same ones.
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset
from transformers import BaseImageProcessor

from ..atomic_write import MEGABYTE
from ..image_reading import ImageReadError
from ..progress import progress
from .patch_sampling import foreground_places
from .volume_resampling import resampled_size

logger = logging.getLogger(__name__)

FORMAT = 1  # raised when the files or the rules that make them change
ARRAYS = ("values", "labels", "places")
RECORD = "volume.json"
COMPLETE, UNFINISHED = re.compile(r"[0-9a-f]{24}"), re.compile(r"[0-9a-f]{24}\.writing-\w+")
BYTES_OF_VALUE, BYTES_OF_LABEL = 4, 2
OLD = 24 * 3600  # seconds after which an unfinished volume counts as abandoned


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

    A volume is prepared when it is first asked for, or by `make`. It is found again by the state of its files and the
    settings of data and processor, so a change of any of them prepares it anew.

    Args:
        data: Dataset of cases with labels, such as the result of `open_volume_data`.
        processor: Processor of the volumes.
        folder: Where the files are kept. It is made when needed.
    """

    def __init__(self, data: Dataset, processor: BaseImageProcessor, folder: str | Path) -> None:
        self.data, self.processor, self.folder = data, processor, Path(folder)
        labels = [data.slice_axis, data.num_channels, data.ignore_index, sorted(data.label_map.items())]
        settings = [FORMAT, processor.to_dict(), labels]
        self.settings = json.dumps(settings, sort_keys=True, default=str)
        self.keys = [self._key(index) for index in range(len(data))]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> StoredVolume:
        """Maps a prepared volume; prepares it before if it is not there.

        Raises:
            ImageReadError: If its files cannot be read.
            OSError: If it cannot be written.
        """
        place = self.folder / self.keys[index]
        if not place.is_dir():
            self._prepare(index)
        record = json.loads((place / RECORD).read_text(encoding="utf-8"))
        arrays = [np.load(place / f"{name}.npy", mmap_mode="r") for name in ARRAYS]
        return StoredVolume(self.data.case(index).name, *arrays, tuple(record["spacing"]))

    def missing(self) -> list[int]:
        """Indices of the volumes that are still to be prepared."""
        return [index for index, key in enumerate(self.keys) if not (self.folder / key).is_dir()]

    def remove_stale(self) -> None:
        """Removes the prepared volumes in the folder that are not of this data and processor.

        Call it on one process, before the others use the folder.
        """
        wanted, now = set(self.keys), time.time()
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            is_stale = COMPLETE.fullmatch(path.name) is not None and path.name not in wanted
            is_left = UNFINISHED.fullmatch(path.name) is not None and now - path.stat().st_mtime > OLD
            if is_stale or is_left:
                shutil.rmtree(path, ignore_errors=True)

    def make(self, *, rank: int = 0, world: int = 1) -> list[str]:
        """Prepares the volumes that are missing, and says before how much space they take.

        Args:
            rank: Index of this process, which prepares every `world`-th volume.
            world: Number of processes that prepare volumes.

        Returns:
            What is wrong with the volumes that cannot be read. They are left out, and raise their error when they are
            asked for.

        Raises:
            OSError: If the disk has not enough space, with the number ENOSPC.
        """
        missing, complaints = self.missing(), []
        if not missing:
            return complaints
        self.folder.mkdir(parents=True, exist_ok=True)
        if rank == 0:
            self._announce(missing)
        own = [index for index in missing if index % world == rank]
        for index in progress(own, unit="volume", desc="preparing", disable=rank > 0):
            try:
                self._prepare(index)
            except ImageReadError as error:
                complaints.append(str(error))
        return complaints

    def expected_bytes(self, index: int) -> int:
        """Disk space of a prepared volume, from the header of its file; without the crop, which needs its voxels."""
        try:
            geometry = self.data.geometry(index)
        except ImageReadError:
            return 0
        target = self.processor.target_spacing or geometry.spacing
        size = resampled_size(geometry.size, geometry.spacing, target)
        return prod(size) * (BYTES_OF_VALUE * self.data.num_channels + BYTES_OF_LABEL)

    def _announce(self, missing: Sequence[int]) -> None:
        """Logs the space that volumes need. Raises OSError if there is less."""
        needed, free = sum(map(self.expected_bytes, missing)), shutil.disk_usage(self.folder).free
        if needed > free:
            text = f"{len(missing)} prepared volumes need {needed // MEGABYTE} MB, and {free // MEGABYTE} MB are free"
            raise OSError(errno.ENOSPC, text, str(self.folder))
        size = needed // MEGABYTE + 1
        logger.info("preparing %d volumes in %s: %d MB", len(missing), self.folder, size)

    def _key(self, index: int) -> str:
        """A hash of all that the content of a prepared volume depends on."""
        case = self.data.case(index)
        files = [Path(path) for path in (*case.images, case.label) if path is not None]
        states = [(str(path.resolve()), path.stat()) for path in files if path.exists()]
        states = [(path, state.st_size, state.st_mtime_ns) for path, state in states]
        text = json.dumps([self.settings, len(files), states])
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:24]

    def _prepare(self, index: int) -> None:
        """Writes the files of a volume, unless another process does it first."""
        sample = self.data[index]
        prepared = self.processor.prepare(sample["image"], sample["mask"])
        labels = prepared.mask.astype(smallest_type(prepared.mask, self.data.ignore_index))
        places = foreground_places(labels, self.data.ignore_index, np.random.default_rng(0))
        arrays = (prepared.values.astype(np.float32, copy=False), labels, places)
        spacing = prepared.frame.prepared_spacing
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{self.keys[index]}.writing-", dir=self.folder))
        try:
            for name, array in zip(ARRAYS, arrays, strict=True):
                write_array(temporary / f"{name}.npy", array)
            record = json.dumps({"name": sample["name"], "spacing": [float(length) for length in spacing]})
            (temporary / RECORD).write_text(record, encoding="utf-8")
            rename_folder(temporary, self.folder / self.keys[index])
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def smallest_type(labels: np.ndarray, ignore_index: int) -> np.dtype:
    """int16, or int32 where an id needs it."""
    limits = np.iinfo(np.int16)
    ids = (ignore_index, int(labels.min()), int(labels.max()))
    fits = all(limits.min <= value <= limits.max for value in ids)
    return np.dtype(np.int16 if fits else np.int32)


def write_array(path: Path, array: np.ndarray) -> None:
    """Writes a `.npy` file and flushes it to disk. A full disk raises an OSError that says so, unlike `np.save`."""
    array = np.ascontiguousarray(array)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        if array.size:
            file.write(array.data.cast("B"))
        file.flush()
        os.fsync(file.fileno())


def rename_folder(temporary: Path, target: Path) -> None:
    """Renames a complete folder; one that another process has made meanwhile stays."""
    try:
        temporary.rename(target)
    except OSError:
        if not target.is_dir():
            raise
