"""Maps of class probabilities, written band by band while an image is segmented.

- confidence: 16-bit PNG, the probability of the predicted class; 65535 is 1.
- entropy: 16-bit PNG, the entropy of the class probabilities divided by log K; 65535 is 1 (all classes
  equally likely), 0 is certain.
- probabilities: .npy, float16 (K, H, W), one map per class id; `np.load(file, mmap_mode="r")` reads parts
  of it.

Like the mask, each map has the size and pixel layout of the image file.

Legend: K classes, H, W pixels as stored in the file, R rows of the upright image.
"""

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .atomic_write import MEGABYTE, replace_flushed
from .logits_to_masks import argmax_of_bands
from .orientation import upright_view
from .overlays import save_png

ONE = 65535  # value of 1 in a 16-bit map
Size = tuple[int, int]


def confidence(probabilities: Tensor) -> Tensor:
    """(K, R, W) -> (R, W), the probability of the predicted class, from 1 / K to 1."""
    return probabilities.amax(0)


def entropy(probabilities: Tensor) -> Tensor:
    """(K, R, W) -> (R, W), the entropy divided by log K, from 0 to 1; 0 if there is only one class."""
    return torch.special.entr(probabilities).sum(0) / math.log(max(2, len(probabilities)))


IMAGE_MAPS: dict[str, Callable[[Tensor], Tensor]] = {"confidence": confidence, "entropy": entropy}
MAPS = (*IMAGE_MAPS, "probabilities")


class ImageMap:
    """A map of values from 0 to 1, written as a 16-bit PNG.

    Args:
        target: The file to write.
        function: Computes the rows of the map (R, W) from class probabilities (K, R, W).
        size: (H, W) of the image as stored in the file.
        orientation: EXIF orientation of the image file, 1 to 8.
    """

    def __init__(
        self, target: Path, function: Callable[[Tensor], Tensor], size: Size, orientation: int
    ) -> None:
        self.target, self.function, self.row = target, function, 0
        self.stored = np.empty(size, dtype=np.uint16)
        self.upright = upright_view(self.stored, orientation)

    def add(self, probabilities: Tensor) -> None:
        """Adds the next rows (K, R, W)."""
        values = (self.function(probabilities).clamp(0, 1) * ONE).round().to(torch.int32)
        self.upright[self.row : self.row + len(values)] = values.cpu().numpy()
        self.row += len(values)

    def end(self) -> None:
        """Does nothing after the last row: `save` writes the file."""

    def save(self) -> None:
        """Writes the file."""
        save_png(Image.fromarray(self.stored), self.target)

    def discard(self) -> None:
        """Does nothing: no file has been written yet."""


class ProbabilityFile:
    """The probabilities of all classes, in a memory-mapped file that is filled band by band.

    Args:
        target: The file to write.
        num_labels: Number of classes K.
        size: (H, W) of the image as stored in the file.
        orientation: EXIF orientation of the image file, 1 to 8.

    Raises:
        ValueError: The disk has less free space than the file needs.
    """

    def __init__(self, target: Path, num_labels: int, size: Size, orientation: int) -> None:
        self.target, self.temporary = target, target.with_name(target.name + ".writing")
        target.parent.mkdir(parents=True, exist_ok=True)
        needed, free = 2 * num_labels * math.prod(size), shutil.disk_usage(target.parent).free
        if needed > free:  # writing to a mapped file on a full disk kills the process
            raise ValueError(
                f"{target} needs {needed // MEGABYTE} MB and {free // MEGABYTE} MB are free. "
                "Choose another --output, or leave out --probabilities."
            )
        self.orientation, self.row = orientation, 0
        shape = (num_labels, *size)
        np.lib.format.open_memmap(self.temporary, mode="w+", dtype=np.float16, shape=shape)

    def add(self, probabilities: Tensor) -> None:
        """Adds the next rows (K, R, W)."""
        rows = probabilities.half().cpu().numpy().transpose(1, 2, 0)
        # The file is opened for each band, so that earlier rows do not stay in memory.
        stored = np.lib.format.open_memmap(self.temporary, mode="r+")
        upright = upright_view(stored.transpose(1, 2, 0), self.orientation)
        upright[self.row : self.row + len(rows)] = rows
        self.row += len(rows)

    def end(self) -> None:
        """Gives the file its name after the last row."""
        replace_flushed(self.temporary, self.target)

    def save(self) -> None:
        """Does nothing: the file is complete at its last row."""

    def discard(self) -> None:
        self.temporary.unlink(missing_ok=True)


def mask_beside_maps(
    channels: Iterable[Tensor], size: Size, maps: Sequence[ImageMap | ProbabilityFile]
) -> Tensor:
    """Bands of class probabilities (K, R, W) of the upright image -> its mask (H, W); adds each band to `maps`."""

    def copied() -> Iterator[Tensor]:
        for probabilities in channels:
            for one in maps:
                one.add(probabilities)
            yield probabilities

    try:
        mask = argmax_of_bands(copied(), size)
        for one in maps:
            one.end()
    except BaseException:
        for one in maps:
            one.discard()
        raise
    return mask
