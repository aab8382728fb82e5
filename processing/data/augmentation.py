"""Joint augmentation of image and mask: random scale, crop, rotation, flip, color distortion, padding.

The steps and their defaults are those of mmsegmentation, with which the papers were trained. The result
depends only on (seed, epoch, index), not on workers, sample order or earlier draws, so a run can be resumed
at any step. The crop is drawn before resizing, so the cost depends on the crop and not on the size of the
image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, cos, radians, sin
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

DRAWS = 10  # attempts to find a crop that no class dominates
PIXELS_FOR_SHARES = 1 << 16  # class shares are estimated on about this many pixels


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


@dataclass(frozen=True)
class JointAugmentation:
    """Augments an image and its mask together: random scale, crop, rotation, flip, color distortion, padding.

    Call it as `augmentation(image, mask, epoch=epoch, index=index)`; equal arguments give equal results.

    Args:
        crop_size: Height and width of the result in pixels.
        scale_range: Range from which the resize factor is drawn; the aspect ratio is kept.
        base_size: (long, short) edge in pixels that the image is fitted into at a factor of 1. None uses the
            size of the image.
        cat_max_ratio: Largest share of the labeled pixels that one class may have in a crop, from 0 to 1.
            Crops above it are redrawn, up to ten times.
        flip_probability: Probability of a horizontal flip.
        use_photometric_distortion: Whether to change brightness, contrast, saturation and hue.
        rotation: Largest angle in degrees, from 0 to 180, by which the crop is turned about its center in
            either direction. Pixels outside the image are padding. 0 turns nothing.
        fill: Padding value of each channel, usually the image processor's mean on the scale of the pixels.
        ignore_index: Class id of padded pixels, which the loss ignores.
        seed: Seed of all random draws.

    Raises:
        ValueError: If `scale_range` or `rotation` is outside its range.
    """

    crop_size: tuple[int, int]
    scale_range: tuple[float, float] = (0.5, 2.0)
    base_size: tuple[int, int] | None = None
    cat_max_ratio: float = 0.75
    flip_probability: float = 0.5
    use_photometric_distortion: bool = True
    rotation: float = 0.0
    fill: tuple[float, ...] = (124, 116, 104)
    ignore_index: int = 255
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.001 <= self.scale_range[0] <= self.scale_range[1] <= 1000:
            raise ValueError(
                f"scale_range={self.scale_range} is not a range of resize factors. Give two from 0.001 to 1000, the smaller first."
            )
        if not 0 <= self.rotation <= 180:
            raise ValueError(
                f"rotation={self.rotation} is not an angle from 0 to 180 degrees. 0 turns nothing."
            )

    def __call__(
        self, image: Image.Image | np.ndarray, mask: np.ndarray, *, epoch: int, index: int
    ) -> tuple[Image.Image | np.ndarray, np.ndarray]:
        """Augments one sample.

        Args:
            image: RGB image, or (H, W, C) array.
            mask: (H, W) class ids.
            epoch: Epoch of the sample.
            index: Index of the sample in the dataset.

        Returns:
            Image and mask of the same types, at `crop_size`.

        Raises:
            ValueError: If `fill` does not have one value per channel of the image.
        """
        random = np.random.default_rng((self.seed, epoch, index))
        region = self._draw_balanced_region(mask, random)
        flip, colors = random.random() < self.flip_probability, PhotometricDistortion.draw(random)
        angle = random.uniform(-self.rotation, self.rotation) if self.rotation else 0.0
        pixels = image if isinstance(image, Image.Image) else F.to_image(image)
        self._check_fill(pixels)
        pixels, mask = self._cut(pixels, mask, region, angle)
        if flip:
            pixels, mask = F.horizontal_flip(pixels), mask[:, ::-1]
        if self.use_photometric_distortion:
            pixels = colors(pixels)
        return self._pad(pixels, mask)

    def _draw_balanced_region(self, mask: np.ndarray, random: Generator) -> Region:
        """Draws one scale, then crops at that scale until one is balanced, at most ten of them."""
        scale = random.uniform(*self.scale_range) * self._base_scale(mask.shape)
        for _ in range(DRAWS):
            region = draw_region(mask.shape, self.crop_size, scale, random)
            if self._is_balanced(mask, region):
                break
        return region

    def _base_scale(self, size: Sequence[int]) -> float:
        """The resize factor that fits an image of this size into `base_size`, or 1 without a base size."""
        if self.base_size is None:
            return 1.0
        return min(max(self.base_size) / max(size), min(self.base_size) / min(size))

    def _is_balanced(self, mask: np.ndarray, region: Region) -> bool:
        """Whether the region has two or more classes, none above `cat_max_ratio`, on a grid of its pixels."""
        step = max(1, int((region.height * region.width / PIXELS_FOR_SHARES) ** 0.5))
        rows, columns = (
            slice(region.top, region.top + region.height, step),
            slice(region.left, region.left + region.width, step),
        )
        ids, counts = np.unique(mask[rows, columns], return_counts=True)
        counts = counts[ids != self.ignore_index]
        return len(counts) > 1 and counts.max() <= self.cat_max_ratio * counts.sum()

    def _check_fill(self, pixels: Image.Image | torch.Tensor) -> None:
        channels = len(pixels.getbands()) if isinstance(pixels, Image.Image) else pixels.shape[0]
        if len(self.fill) != channels:
            raise ValueError(
                f"fill={self.fill} has {len(self.fill)} values, but the image has {channels} channels. "
                "Pass one value per channel."
            )

    def _cut(
        self, pixels: Image.Image | torch.Tensor, mask: np.ndarray, region: Region, angle: float
    ) -> tuple[Image.Image | torch.Tensor, np.ndarray]:
        """Crops and resizes the region, turned by `angle` degrees counterclockwise about its center."""
        wide, padding = region.surrounding(angle, mask.shape)
        pixels = F.resized_crop(pixels, wide.top, wide.left, wide.height, wide.width, list(wide.size))
        mask = resized_crop_of_mask(mask, wide)
        if not angle:
            return pixels, mask
        pixels = F.pad(pixels, padding, fill=list(self.fill))
        left, top, right, bottom = padding
        mask = np.pad(mask, [(top, bottom), (left, right)], constant_values=self.ignore_index)
        turned = turned_mask(mask, angle, self.ignore_index)
        pixels = F.rotate(pixels, angle, F.InterpolationMode.BILINEAR, fill=list(self.fill))
        rows, columns = (
            slice((whole - part) // 2, (whole + part) // 2)
            for whole, part in zip(turned.shape, region.size, strict=True)
        )
        return F.center_crop(pixels, list(region.size)), turned[rows, columns]

    def _pad(
        self, pixels: Image.Image | torch.Tensor, mask: np.ndarray
    ) -> tuple[Image.Image | np.ndarray, np.ndarray]:
        """Pads to `crop_size` on the right and bottom, with `fill` and the ignore index."""
        missing = [wanted - present for wanted, present in zip(self.crop_size, mask.shape, strict=True)]
        if any(missing):
            pixels = F.pad(pixels, [0, 0, missing[1], missing[0]], fill=list(self.fill))
            mask = np.pad(mask, [(0, missing[0]), (0, missing[1])], constant_values=self.ignore_index)
        if not isinstance(pixels, Image.Image):
            pixels = pixels.permute(1, 2, 0).numpy()
        return pixels, np.ascontiguousarray(mask)


@dataclass(frozen=True)
class PhotometricDistortion:
    """Changes brightness, contrast, saturation and hue, each with probability 1/2.

    The contrast is changed before or after saturation and hue. Pixels stay 8-bit: every step is a lookup
    table in RGB or HSV. Arrays with other channels have neither a hue nor a known value range; only their
    contrast is changed.
    """

    brightness: float | None
    contrast: float | None
    saturation: float | None
    hue: float | None
    is_contrast_first: bool

    @classmethod
    def draw(cls, random: Generator) -> "PhotometricDistortion":
        # 18 of OpenCV's 180 hue units are a tenth of the circle.
        ranges = [(-32, 32), (0.5, 1.5), (0.5, 1.5), (-0.1, 0.1)]
        values = [random.uniform(*limits) if random.random() < 0.5 else None for limits in ranges]
        return cls(*values, is_contrast_first=random.random() < 0.5)

    def __call__(self, pixels: Image.Image | torch.Tensor) -> Image.Image | torch.Tensor:
        """RGB image or (C, H, W) tensor -> the same type and shape."""
        if not isinstance(pixels, Image.Image):
            return pixels if self.contrast is None else times(pixels, self.contrast)
        levels = np.arange(256.0)
        if self.brightness is not None:
            levels = clip_levels(levels + self.brightness)
        if self.contrast is not None and self.is_contrast_first:
            levels = clip_levels(levels * self.contrast)
        pixels = look_up(pixels, [levels] * 3)
        pixels = self.shift_colors(pixels)
        if self.contrast is not None and not self.is_contrast_first:
            pixels = look_up(pixels, [clip_levels(np.arange(256) * self.contrast)] * 3)
        return pixels

    def shift_colors(self, image: Image.Image) -> Image.Image:
        """Changes saturation and hue with a single conversion to HSV."""
        if self.saturation is None and self.hue is None:
            return image
        levels = np.arange(256)
        hue = (levels + round(256 * (self.hue or 0.0))) % 256
        saturation = clip_levels(levels * (1.0 if self.saturation is None else self.saturation))
        return look_up(image.convert("HSV"), [hue, saturation, levels]).convert("RGB")


class AugmentedDataset(Dataset):
    """Applies an augmentation to the samples of a dataset.

    Samples are dicts with `image`, `mask` and `name`; further entries are kept. Call `set_epoch` before each
    epoch, as Accelerate's loaders do, or every epoch repeats the same crops. The epoch is in shared memory,
    so persistent workers see it too.

    Args:
        dataset: Dataset of samples, such as the result of `open_data`.
        augmentation: Augmentation of image and mask.
        crops_per_image: How often each sample occurs in an epoch, each time with another crop.
    """

    def __init__(self, dataset: Dataset, augmentation: JointAugmentation, crops_per_image: int = 1) -> None:
        self.dataset = dataset
        self.augmentation = augmentation
        self.crops_per_image = crops_per_image
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch on which the following draws depend.

        Args:
            epoch: Number of the epoch, from 0.
        """
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset) * self.crops_per_image

    def __getitem__(self, index: int) -> dict[str, Any]:
        crop, index = divmod(index % len(self), len(self.dataset))
        sample = self.dataset[index]
        position = {"epoch": self.epoch.item() * self.crops_per_image + crop, "index": index}
        image, mask = self.augmentation(sample["image"], sample["mask"], **position)
        return {**sample, "image": image, "mask": mask}


def draw_region(size: Sequence[int], crop_size: Sequence[int], scale: float, random: Generator) -> Region:
    """Draws a crop of the scaled image, in original pixels. Axes shorter than the crop are taken whole."""
    cropped = [min(crop, max(1, round(length * scale))) for length, crop in zip(size, crop_size, strict=True)]
    lengths = [min(length, max(1, round(crop / scale))) for length, crop in zip(size, cropped, strict=True)]
    top, left = (int(random.integers(0, n - m, endpoint=True)) for n, m in zip(size, lengths, strict=True))
    return Region(top, left, *lengths, size=tuple(cropped))


def resized_crop_of_mask(mask: np.ndarray, region: Region) -> np.ndarray:
    """(H, W) -> `region.size`: the id under the center of each new pixel."""
    rows, columns = (
        start + ((np.arange(new) + 0.5) * old / new).astype(np.int64)
        for start, old, new in zip(
            (region.top, region.left), (region.height, region.width), region.size, strict=True
        )
    )
    return mask[rows[:, None], columns]


def turned_mask(mask: np.ndarray, angle: float, outside: int) -> np.ndarray:
    """(H, W) -> (H, W): class ids turned by `angle` degrees counterclockwise, by nearest neighbor."""
    ids = torch.from_numpy(mask.astype(np.int64))[None]
    turned = F.rotate(ids, angle, F.InterpolationMode.NEAREST, fill=[float(outside)])
    return turned[0].numpy().astype(mask.dtype)


def times(pixels: torch.Tensor, factor: float) -> torch.Tensor:
    """Scales the values of any number of channels; integer types are rounded and clamped to their range."""
    scaled = pixels.to(torch.float32) * factor
    if not pixels.dtype.is_floating_point:
        limits = torch.iinfo(pixels.dtype)
        scaled = scaled.round().clamp(limits.min, limits.max)
    return tv_tensors.wrap(scaled.to(pixels.dtype), like=pixels)


def clip_levels(levels: np.ndarray) -> np.ndarray:
    """Rounds to integers and clips to 0..255."""
    return np.clip(np.rint(levels), 0, 255)


def look_up(image: Image.Image, levels: Sequence[np.ndarray]) -> Image.Image:
    """Maps the 256 values of each channel through its table."""
    return image.point(np.concatenate(levels).astype(int).tolist())
