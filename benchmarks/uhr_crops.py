"""Pairs of a sharp crop and its wide surroundings, from generated scenes and from data sets in memory.

Legend: N crops, S side of a crop in pixels, C channels, H, W pixels of an image.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..processing.data.datasets import open_data
from ..processing.data.scenes import AMBIGUOUS, IGNORE_INDEX, draw_scene

CROP, SCENE = 96, 768
DRAWN = 256  # scenes are drawn at this size and enlarged, so that a flag has about 7 pixels in a context of ratio 4
WIDEST = 4  # the widest context, in crop sides
NEAREST = 8  # smallest distance of a white pixel to the flag, in drawn pixels
FLAG_MARGIN = 18  # largest distance in pixels from the center of a flag to its pixels


class Pair(NamedTuple):
    """A crop (C, S, S), its context (C, S, S), and the class ids (S, S) of both; or batches of them."""

    local: Tensor
    context: Tensor
    labels: Tensor
    context_labels: Tensor


@dataclass
class Picture:
    """An image (C, H, W) and its class ids (H, W), both uint8."""

    pixels: Tensor
    labels: Tensor

    def cut(self, top: int, left: int, side: int = CROP) -> tuple[Tensor, Tensor]:
        """-> pixels (C, S, S) and labels (S, S); outside the image they are the mean and ignored."""
        height, width = self.labels.shape
        pads = (max(0, -left), max(0, left + side - width), max(0, -top), max(0, top + side - height))
        rows, columns = slice(max(0, top), max(0, top + side)), slice(max(0, left), max(0, left + side))
        pixels = F.pad(normalized(self.pixels[:, rows, columns]), pads)
        return pixels, F.pad(self.labels[rows, columns].long(), pads, value=IGNORE_INDEX)

    def pair(self, top: int, left: int, ratio: int) -> Pair:
        """The crop with this corner, and its context of `ratio` times its side."""
        local, labels = self.cut(top, left)
        margin = (ratio - 1) * CROP // 2
        wide, wide_labels = self.cut(top - margin, left - margin, ratio * CROP)
        nearest = wide_labels[ratio // 2 :: ratio, ratio // 2 :: ratio]
        return Pair(local, F.avg_pool2d(wide, ratio), labels, nearest)


def normalized(pixels: Tensor) -> Tensor:
    """(C, h, w) uint8 -> the same shape, about zero mean and unit variance."""
    return (pixels.float() / 255 - 0.45) / 0.25


def picture_of(image: np.ndarray, labels: np.ndarray) -> Picture:
    """(H, W, 3) and (H, W), uint8 each -> the picture."""
    pixels = torch.from_numpy(np.moveaxis(image, -1, 0).copy())
    return Picture(pixels, torch.from_numpy(labels.astype(np.uint8)))


@dataclass
class FlagCrop:
    """A crop of a scene whose white area needs a flag that only its context shows.

    Args:
        pictures: The scene with its flag, and with the other one.
        corner: Top and left of the crop.
        distance: Larger of the row and column distances from the center of the crop to that of the flag.
    """

    pictures: tuple[Picture, Picture]
    corner: tuple[int, int]
    distance: float


def flag_crops(seed: int, number: int, per_scene: int = 8, around_flag: int = 0) -> list[FlagCrop]:
    """The first `number` crops of a series of scenes of 768 x 768 pixels, the last `around_flag` of each scene at it."""

    def crops() -> Iterator[FlagCrop]:
        for index in count():
            scene = draw_scene(seed, index, DRAWN, distance=NEAREST)
            rng = np.random.default_rng((seed, index, 1))
            labels = enlarged(scene.mask)
            flag = np.asarray(scene.flag) * SCENE // DRAWN
            distant = corners_with_distant_flag(labels, flag, rng)
            corners = list(islice(distant, per_scene - around_flag))
            if not corners:
                continue
            corners += [
                (corner_at(flag + rng.uniform(-CROP / 3, CROP / 3, 2)), 0.0) for _ in range(around_flag)
            ]
            other = draw_scene(seed, index, DRAWN, distance=NEAREST, swap_flag=True)
            pictures = tuple(picture_of(enlarged(one.image), enlarged(one.mask)) for one in (scene, other))
            yield from (FlagCrop(pictures, corner, far) for corner, far in corners)

    return list(islice(crops(), number))


def enlarged(values: np.ndarray) -> np.ndarray:
    """(h, w, ...) -> (768, 768, ...): every pixel becomes a block."""
    return values.repeat(SCENE // DRAWN, axis=0).repeat(SCENE // DRAWN, axis=1)


def corner_at(center: np.ndarray) -> tuple[int, int]:
    """The corner of the crop with this center, moved into the scene."""
    return tuple(int(place) for place in np.clip(center - CROP / 2, 0, SCENE - CROP))


def corners_with_distant_flag(
    labels: np.ndarray, flag: np.ndarray, rng: np.random.Generator
) -> Iterator[tuple[tuple[int, int], float]]:
    """Yields corners of crops with white pixels, without the flag, and with the flag in their context."""
    nearest, farthest = CROP / 2 + FLAG_MARGIN, WIDEST * CROP / 2 - FLAG_MARGIN
    for _ in range(300):
        reach = rng.choice((CROP - FLAG_MARGIN, farthest))  # as many flags within a context of ratio 2
        corner = corner_at(flag + rng.uniform(-reach, reach, 2))
        distance = float(np.abs(np.asarray(corner) + CROP / 2 - flag).max())
        if not nearest <= distance <= farthest:
            continue
        crop = labels[corner[0] : corner[0] + CROP, corner[1] : corner[1] + CROP]
        if np.isin(crop, AMBIGUOUS).mean() > 0.1:
            yield corner, distance


def open_pictures(folder: Path, reduced: int = 1) -> tuple[list[Picture], list[str]]:
    """Opens a labeled folder as pictures in memory, reduced by a whole factor; also returns the class names."""
    data = open_data(folder)
    pictures = []
    for sample in data:
        image, labels = np.asarray(sample["image"]), np.array(sample["mask"])
        labels[labels == data.ignore_index] = IGNORE_INDEX
        picture = picture_of(image, labels)
        if reduced > 1:
            pixels = F.avg_pool2d(picture.pixels.float(), reduced).round().byte()
            height, width = pixels.shape[1:]
            labels = picture.labels[reduced // 2 :: reduced, reduced // 2 :: reduced][:height, :width]
            picture = Picture(pixels, labels)
        pictures.append(picture)
    return pictures, list(data.classes.values() if isinstance(data.classes, dict) else data.classes)
