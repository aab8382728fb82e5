"""Segments volumes for `contextseg-predict`: masks and maps on the grid of each file.

Legend: K classes, D, H, W slices, rows and columns in the canonical orientation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import BaseImageProcessor, PreTrainedModel

from ..inference import Inference
from ..label_maps import IGNORE
from ..prediction_files import PIXELS_AT_ONCE, FilePredictor
from ..prediction_maps import IMAGE_MAPS, ProbabilityFile
from .volume_geometry import VolumeGeometry
from .volume_inference import (
    Band,
    check_processor,
    check_volumes,
    part_of,
    prepared_probabilities,
    volume_of,
    volume_window,
)
from .volume_jobs import VolumeJob
from .volume_writing import write_label_volume, write_map_volume

Box = tuple[slice, ...]
BYTES_AS_PIXELS = 16  # pixels that a byte of a compressed volume counts for, where files are read ahead
# Of a map where the volume was cropped, because there is nothing: there is background.
IN_BACKGROUND = {"confidence": 1.0, "entropy": 0.0}


class VolumeMap:
    """A map of values from 0 to 1 on the grid of a file, written as a float32 volume.

    Args:
        target: The file to write.
        name: One of `prediction_maps.IMAGE_MAPS`.
        geometry: How the volume lies in its file.
        box: The part of the volume (D, H, W) that is segmented.
    """

    def __init__(self, target: Path, name: str, geometry: VolumeGeometry, box: Box) -> None:
        self.target, self.function, self.geometry = target, IMAGE_MAPS[name], geometry
        self.values = np.full(geometry.size, IN_BACKGROUND[name], dtype=np.float32)
        self.inside = self.values[box]

    def add(self, band: Band) -> None:
        """Adds a band."""
        part_of(self.inside, band)[...] = self.function(band.probabilities).clamp(0, 1).cpu().numpy()

    def end(self) -> None:
        """Does nothing after the last band: `save` writes the file."""

    def save(self) -> None:
        """Writes the file."""
        write_map_volume(self.target, self.values, self.geometry)

    def discard(self) -> None:
        """Does nothing: no file has been written yet."""


class VolumeProbabilityFile(ProbabilityFile):
    """The probabilities of all classes on the axes of a file, float16 (K, x, y, z), filled band by band.

    Arguments are those of `VolumeMap`, and the number of classes. Raises ValueError if the disk has too little space.
    """

    def __init__(self, target: Path, num_labels: int, geometry: VolumeGeometry, box: Box) -> None:
        super().__init__(target, num_labels, geometry.shape, orientation=1)
        self.geometry, self.box = geometry, box
        if any(side.stop - side.start < length for side, length in zip(box, geometry.size, strict=True)):
            np.lib.format.open_memmap(self.temporary, mode="r+")[0] = 1

    def add(self, band: Band) -> None:
        """Adds a band."""
        # The file is opened for each band, so that earlier ones do not stay in memory.
        stored = np.lib.format.open_memmap(self.temporary, mode="r+")
        for label, values in enumerate(band.probabilities.half().cpu().numpy()):
            part_of(self.geometry.to_canonical(stored[label])[self.box], band)[...] = values


@dataclass
class LoadedVolume:
    """A volume that is ready for the model, and how it lies in its file."""

    prepared: Any
    geometry: VolumeGeometry


class VolumePredictor(FilePredictor):
    """Segments files of volumes with one model.

    Args:
        model: A segmenter of volumes in evaluation mode.
        processor: Its image processor.
        inference: How the model is applied: windows and mirroring.
        maps: Maps to write besides the mask, names from `prediction_maps.MAPS`. Default: none.

    Raises:
        ValueError: If the processor is for images, or `inference` has settings that volumes do not have.
    """

    done, unit = "segmented", "volume"

    def __init__(
        self,
        model: PreTrainedModel,
        processor: BaseImageProcessor,
        inference: Inference,
        *,
        maps: Sequence[str] = (),
    ) -> None:
        check_processor(processor)
        check_volumes(inference)
        volume_window(inference, model, (1, 1, 1))
        self.model, self.processor, self.inference, self.maps = model, processor, inference, maps
        self.stored_ids = stored_ids(getattr(processor, "label_map", None), model.config.num_labels)

    def load(self, job: VolumeJob) -> LoadedVolume:
        """Reads and prepares a volume. Raises VolumeReadError if it cannot be read."""
        volume = volume_of(self.model, self.processor, job.what_to_read())
        return LoadedVolume(self.processor.prepare(volume), volume.geometry)

    def predict(self, job: VolumeJob, loaded: LoadedVolume) -> tuple[np.ndarray, VolumeGeometry, list[Any]]:
        """Segments a volume; returns its mask (D, H, W), its geometry and its maps.

        Raises ValueError if the disk has no room for the probabilities.
        """
        box = loaded.prepared.frame.box
        maps = [self.new_map(name, job, loaded.geometry, box) for name in self.maps]
        bands = prepared_probabilities(self.model, loaded.prepared, self.inference)
        return self.mask_beside_maps(bands, loaded.geometry.size, box, maps), loaded.geometry, maps

    def mask_beside_maps(
        self, bands: Any, size: Sequence[int], box: Box, maps: Sequence[VolumeMap | VolumeProbabilityFile]
    ) -> np.ndarray:
        """Bands of class probabilities -> the mask (D, H, W) of stored ids; adds each band to `maps`."""
        mask = np.full(tuple(size), self.stored_ids[0], dtype=self.stored_ids.dtype)
        try:
            for band in bands:
                for one in maps:
                    one.add(band)
                part_of(mask[box], band)[...] = self.stored_ids[
                    band.probabilities.max(0).indices.cpu().numpy()
                ]
            for one in maps:
                one.end()
        except BaseException:
            for one in maps:
                one.discard()
            raise
        return mask

    def write(self, job: VolumeJob, predicted: tuple[np.ndarray, VolumeGeometry, list[Any]]) -> None:
        """Writes the mask and the other requested results."""
        mask, geometry, maps = predicted
        for target in self.targets(job):
            target.parent.mkdir(parents=True, exist_ok=True)
        for one in maps:
            one.save()
        write_label_volume(job.target(), mask, geometry)

    def targets(self, job: VolumeJob) -> list[Path]:
        """The mask and the other requested results."""
        return [job.array() if kind == "probabilities" else job.target(kind) for kind in ("", *self.maps)]

    def pixels_of(self, job: VolumeJob) -> int:
        """As many as keep other volumes from being read meanwhile, unless the files are small."""
        size = sum(file.stat().st_size for file in job.sources if file.is_file())
        return min(PIXELS_AT_ONCE, size * BYTES_AS_PIXELS)

    def new_map(
        self, name: str, job: VolumeJob, geometry: VolumeGeometry, box: Box
    ) -> VolumeMap | VolumeProbabilityFile:
        """Opens the map `name` of a job."""
        if name in IMAGE_MAPS:
            return VolumeMap(job.target(name), name, geometry, box)
        return VolumeProbabilityFile(job.array(), self.model.config.num_labels, geometry, box)


def stored_ids(label_map: Any, num_labels: int) -> np.ndarray:
    """(K,) of the smallest integer type: the id that each class has in mask files, the first in `label_map`."""
    ids = np.arange(num_labels)
    for stored, label in reversed(list((label_map or {}).items())):
        if label != IGNORE and 0 <= int(label) < num_labels:
            ids[int(label)] = int(stored)
    kinds: tuple[Callable, ...] = (np.uint8, np.int16, np.int32, np.int64)
    return ids.astype(next(kind for kind in kinds if np.array_equal(ids.astype(kind), ids)))
