"""Crops of noise for a dry run without data."""

from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.data import Dataset

from ..processing.data.batches import collate
from ..processing.data.class_table import ClassTable


class GeneratedVolumes(Dataset):
    """Crops as `TrainingPatches` gives them: noise, with a box of another class.

    Args:
        size: Slices, rows and columns of a crop.
        num_classes: Number of classes.
        num_channels: Channels of the volumes.
    """

    def __init__(self, size: tuple[int, int, int], num_classes: int, num_channels: int) -> None:
        self.size, self.num_channels = tuple(size), num_channels
        table = ClassTable(["background", *(f"class {index}" for index in range(1, num_classes))])
        self.classes, self.ignore_index, self.palette = table.names, table.ignore_index, None
        self.label_map, self.regions, self.channel_names = {}, {}, ()

    def __len__(self) -> int:
        return 2

    def geometry(self, index: int) -> SimpleNamespace:  # noqa: ARG002 - all are alike
        """Size and spacing of a volume, which is one crop."""
        return SimpleNamespace(size=self.size, spacing=(1.0, 1.0, 1.0))

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(key[1])
        labels = torch.zeros(self.size, dtype=torch.int64)
        labels[tuple(slice(side // 2) for side in self.size)] = (1 + key[1]) % len(self.classes)
        pixel_values = torch.randn((self.num_channels, *self.size), generator=generator)
        return {"pixel_values": pixel_values, "labels": labels, "name": f"noise {key[1]}"}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return collate(samples)
