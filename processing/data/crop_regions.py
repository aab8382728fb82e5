"""Regions of images from which training crops are made: drawn at random, enlarged for a turn, cut from masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, cos, radians, sin

import numpy as np
import torch
from numpy.random import Generator
from torchvision.transforms.v2 import functional as F

from ..crop_frames import LabelReader
from ..resize_rules import pixels_under_centers


@dataclass(frozen=True)
class Region:
    """A rectangle of an image, in pixels, and the size it is resized to."""

    top: int
    left: int
    height: int
    width: int
    size: tuple[int, int]

    def surrounding(self, angle: float, image_size: Sequence[int]) -> tuple["Region", list[int]]:
        """Encloses the region turned about its center, as far as the image goes.

        Args:
            angle: Angle of the turn in degrees.
            image_size: (H, W) of the image.

        Returns:
            The larger region at the same scale, and the pixels (left, top, right, bottom) that it then lacks
            to be centered on this one and to enclose the turned one.
        """
        cosine, sine = abs(cos(radians(angle))), abs(sin(radians(angle)))
        starts, lengths, sizes, missing = [], [], [], []
        for start, length, size, other, limit in zip(
            (self.top, self.left),
            (self.height, self.width),
            self.size,
            self.size[::-1],
            image_size,
            strict=True,
        ):
            margin = max(0, ceil((size * cosine + other * sine - size) / 2)) if angle else 0
            around = ceil(margin * length / size)
            before, after = min(around, start), min(around, limit - start - length)
            seen = [min(margin, round(pixels * size / length)) for pixels in (before, after)]
            starts.append(start - before)
            lengths.append(length + before + after)
            sizes.append(size + sum(seen))
            missing.append([margin - pixels for pixels in seen])
        (top, bottom), (left, right) = missing
        return Region(*starts, *lengths, size=tuple(sizes)), [left, top, right, bottom]


def draw_region(size: Sequence[int], crop_size: Sequence[int], scale: float, random: Generator) -> Region:
    """Draws a crop of the scaled image, in original pixels. Axes shorter than the crop are taken whole."""
    cropped = [min(crop, max(1, round(length * scale))) for length, crop in zip(size, crop_size, strict=True)]
    lengths = [min(length, max(1, round(crop / scale))) for length, crop in zip(size, cropped, strict=True)]
    top, left = (int(random.integers(0, n - m, endpoint=True)) for n, m in zip(size, lengths, strict=True))
    return Region(top, left, *lengths, size=tuple(cropped))


def resized_crop_of_mask(mask: np.ndarray | LabelReader, region: Region) -> np.ndarray:
    """Mask (H, W) -> `region.size`: the id under the center of each new pixel."""
    rows, columns = (
        start + pixels_under_centers(old, new)
        for start, old, new in zip(
            (region.top, region.left), (region.height, region.width), region.size, strict=True
        )
    )
    return labels_at(mask, rows, columns)


def labels_at(mask: np.ndarray | LabelReader, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The class ids (h, w) of a mask at rows (h,) and columns (w,)."""
    if isinstance(mask, np.ndarray):
        return mask[rows].take(columns, axis=1)
    return mask(rows[:, None], columns[None])


def turned_mask(mask: np.ndarray, angle: float, outside: int) -> np.ndarray:
    """(H, W) -> (H, W): class ids turned by `angle` degrees counterclockwise, by nearest neighbor."""
    ids = torch.from_numpy(mask.astype(np.int64))[None]
    turned = F.rotate(ids, angle, F.InterpolationMode.NEAREST, fill=[float(outside)])
    return turned[0].numpy().astype(mask.dtype)
