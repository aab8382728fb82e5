"""Augmentation of images with one label, made of timm's and torchvision's parts: crop, flip, RandAugment, erasing.

What an image becomes depends on (seed, epoch, index) alone, as in segmentation. timm draws from the global generators of
Python and numpy, and torchvision from torch's; they are seeded for one image, and afterwards go on as if nothing had happened.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import RandomResizedCrop, v2
from torchvision.transforms.v2 import functional as F

NO_RAND_AUGMENT = "none"
ASPECTS = (3 / 4, 4 / 3)
ERASING = 1  # marks the second of the two draws for an image


class View(NamedTuple):
    """Which part of an image a sample shows: a box as shares of its sides, and whether it is mirrored."""

    left: float
    top: float
    right: float
    bottom: float
    is_mirrored: bool


@dataclass(frozen=True)
class ImageAugmentation:
    """Settings of the augmentation, and the augmentation itself when called."""

    crop_size: tuple[int, int]  # height and width of the result
    area_range: tuple[float, float] = (0.08, 1.0)  # of the crop, as a share of the image
    aspect_range: tuple[float, float] = ASPECTS  # width over height
    flip_probability: float = 0.5
    rand_augment: str = "rand-m9-mstd0.5-inc1"  # timm's notation, or "none"
    colour_jitter: float = 0.4  # in place of RandAugment where there is none
    erasing_probability: float = 0.25
    mean_colour: tuple[int, int, int] = (124, 116, 104)  # fills what RandAugment moves into the picture
    seed: int = 0

    def __post_init__(self) -> None:
        _ = self.change_colours  # a misspelt RandAugment fails here, not in the first worker

    def __call__(self, image: Image.Image, *, epoch: int, index: int) -> tuple[Image.Image, View]:
        """An RGB picture -> one of `crop_size`, and what it shows."""
        with seeded(self.seed, epoch, index):
            top, left, height, width = RandomResizedCrop.get_params(image, self.area_range, self.aspect_range)
            is_mirrored = random.random() < self.flip_probability
            picture = F.resized_crop(
                image, top, left, height, width, list(self.crop_size), v2.InterpolationMode.BICUBIC
            )
            if is_mirrored:
                picture = F.horizontal_flip(picture)
            picture = self.change_colours(picture)
        full_width, full_height = image.size
        right, bottom = (left + width) / full_width, (top + height) / full_height
        return picture, View(left / full_width, top / full_height, right, bottom, is_mirrored)

    def erase(self, pixels: Tensor, *, epoch: int, index: int) -> Tensor:
        """(C, H, W), normalised -> the same, in some with noise in a rectangle."""
        with seeded(self.seed, epoch, index, ERASING):
            return RandomErasing(self.erasing_probability, mode="pixel", device="cpu")(pixels)

    @cached_property
    def change_colours(self) -> v2.Transform:
        """RandAugment, or else colour jitter, as timm chooses between them."""
        if self.rand_augment == NO_RAND_AUGMENT:
            return v2.ColorJitter(*(self.colour_jitter,) * 3)
        options = {
            "translate_const": int(0.45 * min(self.crop_size)),
            "img_mean": self.mean_colour,
            "interpolation": Image.Resampling.BICUBIC,
        }
        try:
            return rand_augment_transform(self.rand_augment, options)
        except (AssertionError, ValueError, KeyError) as error:
            raise ValueError(
                f"--rand-augment {self.rand_augment} is not in timm's notation. Write for example "
                "rand-m9-mstd0.5-inc1, or none."
            ) from error


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Inside the block, what Python, numpy and torch draw on the CPU is a function of `key`."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seeds = np.random.SeedSequence(key).generate_state(3).tolist()
    random.seed(seeds[0])
    np.random.seed(seeds[1])
    torch.default_generator.manual_seed(seeds[2])
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
