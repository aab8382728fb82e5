"""Training patches of volumes in the order and form that the training loop takes, as `data/batches.py` for images."""

from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from transformers import BaseImageProcessor

from ..data.batches import collate
from .prepared_volumes import PreparedVolumes
from .volume_augmentation import VolumeAugmentation


class TrainingPatches(Dataset):
    """Patches of prepared volumes, indexed by (epoch, index); equal keys give equal patches.

    Samples are `pixel_values` (C, D, H, W) float32, `labels` (D, H, W) int64 and `name`. A volume smaller than the
    patch is padded around: its image with 0, the mean after normalization and what inference pads with, its labels
    with the ignore index.

    Args:
        data: Dataset of cases with labels, such as the result of `open_volume_data`.
        processor: Processor of the volumes.
        crop_size: Slices, rows and columns of a patch.
        folder: Where prepared volumes are kept.
        foreground_share: Share of the patches centered on a voxel of a random foreground class, from 0 to 1; the
            others lie anywhere.
        augmentation: Random changes. Default: those of nnFormer.
        seed: Seed of all random draws.
    """

    def __init__(
        self,
        data: Dataset,
        processor: BaseImageProcessor,
        crop_size: tuple[int, int, int],
        *,
        folder: str | Path,
        foreground_share: float = 1 / 3,
        augmentation: VolumeAugmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.data, self.crop_size = data, tuple(crop_size)
        self.volumes = PreparedVolumes(data, processor, folder)
        self.foreground_share, self.seed = foreground_share, seed
        self.augmentation = VolumeAugmentation() if augmentation is None else augmentation

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        raise NotImplementedError

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return collate(samples)
