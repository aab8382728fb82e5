"""Joint augmentation of image and mask: random scale, crop, flip, colours, padding.

The order and the numbers are those of mmsegmentation, with which the papers were trained. What a sample becomes depends
on (seed, epoch, index) alone: not on workers, order, or what was drawn before, so that a run can be resumed anywhere.
The crop is drawn before anything is resized, so that the cost is that of the crop, however large the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

DRAWS = 10  # of a crop, until no class covers too much of it
PIXELS_FOR_SHARES = 1 << 16


@dataclass(frozen=True)
class Region:
    """A rectangle of an image, in pixels, and the size it is resized to."""

    top: int
    left: int
    height: int
    width: int
    size: tuple[int, int]


@dataclass(frozen=True)
class JointAugmentation:
    """Settings of the augmentation, and the augmentation itself when called."""

    crop_size: tuple[int, int]  # height and width of the result
    scale_range: tuple[float, float] = (0.5, 2.0)  # of the resizing factor, aspect kept
    base_size: tuple[int, int] | None = (
        None  # (long, short) edge the image fits at factor 1; None is its own size
    )
    largest_share: float = 0.75  # crops in which one class has more of the labelled pixels are drawn again
    flip_probability: float = 0.5
    use_colour_distortion: bool = True
    fill: tuple[float, ...] = (124, 116, 104)  # value of padding, one for each band: the processor's mean
    ignore_index: int = 255
    seed: int = 0

    def __call__(
        self, image: Image.Image | np.ndarray, mask: np.ndarray, *, epoch: int, index: int
    ) -> tuple[Image.Image | np.ndarray, np.ndarray]:
        """RGB picture or (H, W, bands) array, and (H, W) ids -> the same kinds at `crop_size`."""
        random = np.random.default_rng((self.seed, epoch, index))
        region = self.draw_balanced_region(mask, random)
        flip, colours = random.random() < self.flip_probability, ColourDistortion.draw(random)
        pixels = image if isinstance(image, Image.Image) else F.to_image(image)
        pixels = F.resized_crop(
            pixels, region.top, region.left, region.height, region.width, list(region.size)
        )
        mask = resized_crop_of_mask(mask, region)
        if flip:
            pixels, mask = F.horizontal_flip(pixels), mask[:, ::-1]
        if self.use_colour_distortion:
            pixels = colours(pixels)
        return self.pad(pixels, mask)

    def draw_balanced_region(self, mask: np.ndarray, random: Generator) -> Region:
        """One scale, and the first of ten crops at it in which no class covers too much; the last one otherwise."""
        scale = random.uniform(*self.scale_range) * self.base_scale(mask.shape)
        for _ in range(DRAWS):
            region = draw_region(mask.shape, self.crop_size, scale, random)
            if self.is_balanced(mask, region):
                break
        return region

    def base_scale(self, size: Sequence[int]) -> float:
        """The factor that fits an image of this size into `base_size`."""
        if self.base_size is None:
            return 1.0
        return min(max(self.base_size) / max(size), min(self.base_size) / min(size))

    def is_balanced(self, mask: np.ndarray, region: Region) -> bool:
        """Whether the region holds two classes or more, none with too large a share; on a grid of its pixels."""
        step = max(1, int((region.height * region.width / PIXELS_FOR_SHARES) ** 0.5))
        rows, columns = (
            slice(region.top, region.top + region.height, step),
            slice(region.left, region.left + region.width, step),
        )
        ids, counts = np.unique(mask[rows, columns], return_counts=True)
        counts = counts[ids != self.ignore_index]
        return len(counts) > 1 and counts.max() <= self.largest_share * counts.sum()

    def pad(
        self, pixels: Image.Image | torch.Tensor, mask: np.ndarray
    ) -> tuple[Image.Image | np.ndarray, np.ndarray]:
        """Fills up to `crop_size` on the right and below, with the mean colour and the ignore index."""
        missing = [wanted - present for wanted, present in zip(self.crop_size, mask.shape, strict=True)]
        bands = len(pixels.getbands()) if isinstance(pixels, Image.Image) else pixels.shape[0]
        if len(self.fill) != bands:
            raise ValueError(
                f"fill={self.fill} has {len(self.fill)} values, but the image has {bands} bands. Pass one for each band."
            )
        if any(missing):
            pixels = F.pad(pixels, [0, 0, missing[1], missing[0]], fill=list(self.fill))
            mask = np.pad(mask, [(0, missing[0]), (0, missing[1])], constant_values=self.ignore_index)
        if not isinstance(pixels, Image.Image):
            pixels = pixels.permute(1, 2, 0).numpy()
        return pixels, np.ascontiguousarray(mask)


@dataclass(frozen=True)
class ColourDistortion:
    """Brightness, contrast, saturation and hue, each with probability 1/2; contrast before or after the colours.

    Pixels stay 8-bit: every step is a look-up table, in RGB or HSV. Arrays of other bands have neither hue nor a known
    value range; they get the contrast factor alone.
    """

    brightness: float | None
    contrast: float | None
    saturation: float | None
    hue: float | None
    is_contrast_first: bool

    @classmethod
    def draw(cls, random: Generator) -> "ColourDistortion":
        # The hue range is 18 of OpenCV's 180 units, a tenth of the circle.
        ranges = [(-32, 32), (0.5, 1.5), (0.5, 1.5), (-0.1, 0.1)]
        values = [random.uniform(*limits) if random.random() < 0.5 else None for limits in ranges]
        return cls(*values, is_contrast_first=random.random() < 0.5)

    def __call__(self, pixels: Image.Image | torch.Tensor) -> Image.Image | torch.Tensor:
        """An RGB picture, or (bands, H, W)."""
        if not isinstance(pixels, Image.Image):
            return pixels if self.contrast is None else times(pixels, self.contrast)
        levels = np.arange(256.0)
        if self.brightness is not None:
            levels = clip_levels(levels + self.brightness)
        if self.contrast is not None and self.is_contrast_first:
            levels = clip_levels(levels * self.contrast)
        pixels = look_up(pixels, [levels] * 3)
        pixels = self.shift_colours(pixels)
        if self.contrast is not None and not self.is_contrast_first:
            pixels = look_up(pixels, [clip_levels(np.arange(256) * self.contrast)] * 3)
        return pixels

    def shift_colours(self, picture: Image.Image) -> Image.Image:
        """Saturation and hue, in one visit to HSV."""
        if self.saturation is None and self.hue is None:
            return picture
        levels = np.arange(256)
        hue = (levels + round(256 * (self.hue or 0.0))) % 256
        saturation = clip_levels(levels * (1.0 if self.saturation is None else self.saturation))
        return look_up(picture.convert("HSV"), [hue, saturation, levels]).convert("RGB")


class AugmentedDataset(Dataset):
    """A data set of {"image", "mask", "name"} whose samples are augmented; call `set_epoch` before each epoch.

    The epoch lies in shared memory: workers that persist over epochs see it too. Accelerate's loaders call `set_epoch`.
    """

    def __init__(self, dataset: Dataset, augmentation: JointAugmentation) -> None:
        self.dataset = dataset
        self.augmentation = augmentation
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.dataset[index]
        position = {"epoch": self.epoch.item(), "index": index % len(self)}
        image, mask = self.augmentation(sample["image"], sample["mask"], **position)
        return {**sample, "image": image, "mask": mask}


def draw_region(size: Sequence[int], crop_size: Sequence[int], scale: float, random: Generator) -> Region:
    """Where a crop of the scaled image lies in the image itself; the whole image along axes where it is smaller."""
    cropped = [min(crop, max(1, round(length * scale))) for length, crop in zip(size, crop_size, strict=True)]
    lengths = [min(length, max(1, round(crop / scale))) for length, crop in zip(size, cropped, strict=True)]
    top, left = (int(random.integers(0, n - m, endpoint=True)) for n, m in zip(size, lengths, strict=True))
    return Region(top, left, *lengths, size=tuple(cropped))


def resized_crop_of_mask(mask: np.ndarray, region: Region) -> np.ndarray:
    """(H, W) -> region.size: the id under the centre of each new pixel."""
    rows, columns = (
        start + ((np.arange(new) + 0.5) * old / new).astype(np.int64)
        for start, old, new in zip(
            (region.top, region.left), (region.height, region.width), region.size, strict=True
        )
    )
    return mask[rows[:, None], columns]


def times(pixels: torch.Tensor, factor: float) -> torch.Tensor:
    """Any bands times a factor, kept in their type and its range."""
    scaled = pixels.to(torch.float32) * factor
    if not pixels.dtype.is_floating_point:
        limits = torch.iinfo(pixels.dtype)
        scaled = scaled.round().clamp(limits.min, limits.max)
    return tv_tensors.wrap(scaled.to(pixels.dtype), like=pixels)


def clip_levels(levels: np.ndarray) -> np.ndarray:
    """Whole numbers within 0..255."""
    return np.clip(np.rint(levels), 0, 255)


def look_up(picture: Image.Image, levels: Sequence[np.ndarray]) -> Image.Image:
    """Each of the 256 values of each band replaced by its entry."""
    return picture.point(np.concatenate(levels).astype(int).tolist())
