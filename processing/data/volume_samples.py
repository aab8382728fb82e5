"""Training patches of volumes in the order and form that the training loop takes, as `batches.py` for images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import BaseImageProcessor

from ..volumes.patch_sampling import draw_start, is_chosen
from ..volumes.prepared_volumes import PreparedVolumes
from ..volumes.volume_augmentation import VolumeAugmentation
from .batches import collate, position_of
from .unreadable import readable_sample


class TrainingPatches(Dataset):
    """Patches of prepared volumes, indexed by (epoch, index); equal keys give equal patches.

    Samples are `pixel_values` (C, d, h, w) float32, `labels` (d, h, w) int64 and `name`. Outside the volume, a patch
    is 0 as in inference, the mean of a normalized image, and its labels are the ignore index.

    Args:
        data: Dataset of cases with labels, such as the result of `open_volume_data`.
        processor: Processor of the volumes.
        crop_size: (d, h, w), slices, rows and columns of a patch.
        folder: Where prepared volumes are kept, see `PreparedVolumes`.
        foreground_share: Share of the patches that are centered on a random voxel of a random class present, from 0
            to 1, as far as they stay inside. They are spread evenly over the order of training: with 1/2, every
            second patch, the last of each batch of two, as in nnFormer. The others, and those of cases without
            foreground, lie anywhere.
        augmentation: Random changes. Default: those of nnFormer. `VolumeAugmentation.none()` changes nothing.
        seed: Seed of all random draws and of the order of training.
        crops: Patches of each case in an epoch.

    Raises:
        ValueError: If `crop_size` is not three positive numbers, or `foreground_share` is not from 0 to 1.
    """

    def __init__(
        self,
        data: Dataset,
        processor: BaseImageProcessor,
        crop_size: Sequence[int],
        *,
        folder: str | Path,
        foreground_share: float = 1 / 3,
        augmentation: VolumeAugmentation | None = None,
        seed: int = 0,
        crops: int = 1,
    ) -> None:
        if len(crop_size) != 3 or min(crop_size) < 1:
            raise ValueError(
                f"crop_size={crop_size} is not the size of a patch. Give slices, rows and columns."
            )
        if not 0 <= foreground_share <= 1:
            raise ValueError(
                f"foreground_share={foreground_share} is not a share. Give a number from 0 to 1."
            )
        self.data, self.crop_size = data, tuple(crop_size)
        self.volumes = PreparedVolumes(data, processor, folder)
        self.foreground_share, self.seed, self.crops = foreground_share, seed, crops
        self.augmentation = VolumeAugmentation() if augmentation is None else augmentation

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        return readable_sample(self.data, index, lambda place: self._patch(place, epoch, index))

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Stacks the tensors of samples into a batch, as `TrainingSamples.collate`."""
        return collate(samples)

    def is_on_foreground(self, epoch: int, index: int) -> bool:
        """Whether the patch of a key is to be centered on foreground."""
        position = position_of((epoch, index), len(self), self.seed, self.crops)
        return is_chosen(position, self.foreground_share)

    def _patch(self, place: int, epoch: int, index: int) -> dict[str, Any]:
        """A patch of the volume at `place`, with the draws of (epoch, index)."""
        random = np.random.default_rng((self.seed, epoch, index))
        volume = self.volumes[place]
        places = volume.places if self.is_on_foreground(epoch, index) else None
        start = draw_start(volume.labels.shape, self.crop_size, random, places)
        values, labels = self.augmentation.cut(
            volume.values,
            volume.labels,
            start,
            self.crop_size,
            spacing=volume.spacing,
            ignore_index=self.data.ignore_index,
            random=random,
        )
        return {
            "pixel_values": torch.from_numpy(values),
            "labels": torch.from_numpy(labels.astype(np.int64)),
            "name": volume.name,
        }
