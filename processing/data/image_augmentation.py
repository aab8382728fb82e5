"""Augmentation for image classification with timm and torchvision: crop, flip, RandAugment, random erasing.

The result depends only on (seed, epoch, index), as in segmentation. timm draws from the global generators of
Python and NumPy, and torchvision from that of torch; they are seeded for each image and restored afterwards.
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
ERASING = 1  # key of the second of the two draws for an image


class View(NamedTuple):
    """The part of an image that a sample shows, in fractions of its sides, and whether it is flipped."""

    left: float
    top: float
    right: float
    bottom: float
    is_mirrored: bool


@dataclass(frozen=True)
class ImageAugmentation:
    """Augments an RGB image: random resized crop, flip, RandAugment or color jitter, and random erasing.

    Args:
        crop_size: Height and width of the result in pixels.
        area_range: Range of the area of the crop, as a fraction of the image.
        aspect_range: Range of the aspect ratio (width / height) of the crop.
        flip_probability: Probability of a horizontal flip.
        rand_augment: RandAugment policy in timm's notation, or "none".
        color_jitter: Strength of brightness, contrast and saturation jitter if `rand_augment` is "none".
        erasing_probability: Probability of random erasing.
        mean_color: RGB fill color of the geometric operations of RandAugment.
        seed: Seed of all random draws.

    Raises:
        ValueError: If `rand_augment` is not in timm's notation.
    """

    crop_size: tuple[int, int]
    area_range: tuple[float, float] = (0.08, 1.0)
    aspect_range: tuple[float, float] = ASPECTS
    flip_probability: float = 0.5
    rand_augment: str = "rand-m9-mstd0.5-inc1"
    color_jitter: float = 0.4
    erasing_probability: float = 0.25
    mean_color: tuple[int, int, int] = (124, 116, 104)
    seed: int = 0

    def __post_init__(self) -> None:
        _ = self.change_colors  # so that a misspelled policy fails here and not in a worker

    def __call__(self, image: Image.Image, *, epoch: int, index: int) -> tuple[Image.Image, View]:
        """RGB image -> RGB image of `crop_size`, and the part of the original that it shows."""
        with seeded(self.seed, epoch, index):
            top, left, height, width = RandomResizedCrop.get_params(image, self.area_range, self.aspect_range)
            is_mirrored = random.random() < self.flip_probability
            crop = F.resized_crop(
                image, top, left, height, width, list(self.crop_size), v2.InterpolationMode.BICUBIC
            )
            if is_mirrored:
                crop = F.horizontal_flip(crop)
            crop = self.change_colors(crop)
        full_width, full_height = image.size
        right, bottom = (left + width) / full_width, (top + height) / full_height
        return crop, View(left / full_width, top / full_height, right, bottom, is_mirrored)

    def erase(self, pixels: Tensor, *, epoch: int, index: int) -> Tensor:
        """(C, H, W) normalized -> (C, H, W), with noise in a random rectangle of some images."""
        with seeded(self.seed, epoch, index, ERASING):
            return RandomErasing(self.erasing_probability, mode="pixel", device="cpu")(pixels)

    @cached_property
    def change_colors(self) -> v2.Transform:
        """RandAugment, or color jitter without it, as in timm."""
        if self.rand_augment == NO_RAND_AUGMENT:
            return v2.ColorJitter(*(self.color_jitter,) * 3)
        options = {
            "translate_const": int(0.45 * min(self.crop_size)),
            "img_mean": self.mean_color,
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
    """Seeds the CPU generators of Python, NumPy and torch by `key` and restores them after the block."""
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
