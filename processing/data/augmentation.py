"""Joint augmentation of image and mask: random scale, crop, rotation, flip, color distortion, padding.

The steps and their defaults are those of mmsegmentation, with which the papers were trained. The result
depends only on (seed, epoch, index), not on workers, sample order or earlier draws, so a run can be resumed
at any step. The crop is drawn before resizing, so the cost depends on the crop and not on the size of the
image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image
from torch.utils.data import Dataset

from ..crop_frames import LabelReader, Sampling, check_sampling
from ..crop_images import AnyImage, DecodedImage
from ..samples import check_sizes
from .color_distortion import PhotometricDistortion
from .crop_plans import CropPlan
from .crop_regions import Region, draw_region, labels_at

DRAWS = 10  # attempts to find a crop that no class dominates
LARGEST_COUNTED = 1 << 12  # label, of those that are counted in a table
PIXELS_FOR_SHARES = 1 << 16  # class shares are estimated on about this many pixels


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
            Crops above it are redrawn, up to ten times. At 1, no crop is.
        flip_probability: Probability of a horizontal flip.
        use_photometric_distortion: Whether to change brightness, contrast, saturation and hue.
        rotation: Largest angle in degrees, from 0 to 180, by which the crop is turned about its center in
            either direction. Pixels outside the image are padding. 0 turns nothing.
        fill: Padding value of each channel, usually the image processor's mean on the scale of the pixels.
        ignore_index: Class id of padded pixels, which the loss ignores.
        seed: Seed of all random draws.
        resize_share: Share of the crops that are resized, from 0 to 1.
        rotation_share: Share of the crops that are rotated, from 0 to 1.
        context_ratio: For models with two scales, sides of the context of a crop in sides of the crop. None cuts
            no contexts.
        context_sampling: How pixels of such a pair are sampled, "area" or "point", see `cut_pair`.

    Raises:
        ValueError: If `context_sampling` is unknown, or `scale_range` or `rotation` is outside its range.
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
    resize_share: float = 1.0
    rotation_share: float = 1.0
    context_ratio: int | None = None
    context_sampling: Sampling = "area"

    def __post_init__(self) -> None:
        if not 0.001 <= self.scale_range[0] <= self.scale_range[1] <= 1000:
            raise ValueError(
                f"scale_range={self.scale_range} is not a range of resize factors. Give two from 0.001 to 1000, the smaller first."
            )
        if not 0 <= self.rotation <= 180:
            raise ValueError(
                f"rotation={self.rotation} is not an angle from 0 to 180 degrees. 0 turns nothing."
            )
        check_sampling(self.context_sampling)

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
        sample = self.crop({"image": image, "mask": mask}, epoch=epoch, index=index)
        return sample["image"], sample["mask"]

    def crop(
        self, sample: dict[str, Any], *, epoch: int, index: int, as_array: bool = False
    ) -> dict[str, Any]:
        """Augments one sample, and cuts its context if there is a `context_ratio`.

        Args:
            sample: `image` and `mask`, as a `SegmentationData` gives them, also those of its `windowed`.
            epoch: Epoch of the sample.
            index: Index of the sample in the dataset.
            as_array: Whether the image becomes an array (h, w, C) also where it is a PIL image.

        Returns:
            The sample with the cropped `image` and `mask`; with a `context_ratio`, with all entries of `cut_pair`.

        Raises:
            ValueError: If `fill` does not have one value per channel of the image.
        """
        image, mask = sample["image"], sample["mask"]
        if not isinstance(image, AnyImage):
            image = DecodedImage(image)
        self._check(image, mask, sample.get("name", "a sample"))
        plan = self._plan(mask, np.random.default_rng((self.seed, epoch, index)))
        if self.context_ratio is None:
            return {**sample, **plan.cut(image, mask, as_array=as_array)}
        return {**sample, **plan.cut_pair(image, mask, self.context_ratio, self.context_sampling)}

    def _plan(self, mask: np.ndarray | LabelReader, random: Generator) -> CropPlan:
        """Draws all that is random."""
        region = self._draw_balanced_region(mask, random)
        flip, colors = random.random() < self.flip_probability, PhotometricDistortion.draw(random)
        angle = random.uniform(-self.rotation, self.rotation) if self.rotation else 0.0
        if self.rotation_share < 1 and random.random() >= self.rotation_share:
            angle = 0.0
        colors = colors if self.use_photometric_distortion else None
        return CropPlan(region, angle, flip, colors, self.crop_size, self.fill, self.ignore_index)

    def _draw_balanced_region(self, mask: np.ndarray | LabelReader, random: Generator) -> Region:
        """Draws one scale, then crops at that scale until one is balanced, at most ten of them.

        If any share is allowed, the first one is taken without a look at its labels.
        """
        scale = random.uniform(*self.scale_range)
        if self.resize_share < 1 and random.random() >= self.resize_share:
            scale = 1.0
        scale *= self._base_scale(mask.shape)
        for _ in range(DRAWS):
            region = draw_region(mask.shape, self.crop_size, scale, random)
            if self.cat_max_ratio >= 1 or self._is_balanced(mask, region):
                break
        return region

    def _base_scale(self, size: Sequence[int]) -> float:
        """The resize factor that fits an image of this size into `base_size`, or 1 without a base size."""
        if self.base_size is None:
            return 1.0
        return min(max(self.base_size) / max(size), min(self.base_size) / min(size))

    def _check(self, image: AnyImage, mask: np.ndarray | LabelReader, name: str) -> None:
        check_sizes(image.shape, mask.shape, str(name))
        if image.num_channels not in (None, len(self.fill)):
            raise ValueError(
                f"fill={self.fill} has {len(self.fill)} values, but the image has {image.num_channels} channels. "
                "Pass one value per channel."
            )

    def _is_balanced(self, mask: np.ndarray | LabelReader, region: Region) -> bool:
        """Whether the region has two or more classes, none above `cat_max_ratio`, on a grid of its pixels."""
        step = max(1, int((region.height * region.width / PIXELS_FOR_SHARES) ** 0.5))
        rows = np.arange(region.top, region.top + region.height, step)
        columns = np.arange(region.left, region.left + region.width, step)
        counts = label_counts(labels_at(mask, rows, columns), self.ignore_index)
        return len(counts) > 1 and counts.max() <= self.cat_max_ratio * counts.sum()


def label_counts(labels: np.ndarray, ignore_index: int) -> np.ndarray:
    """(h, w) -> how often each class that occurs does."""
    if labels.min() < 0 or labels.max() > LARGEST_COUNTED:
        ids, counts = np.unique(labels, return_counts=True)
        return counts[ids != ignore_index]
    counts = np.bincount(labels.reshape(-1).astype(np.int64, copy=False))
    if 0 <= ignore_index < len(counts):
        counts[ignore_index] = 0
    return counts[counts > 0]


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
        sample = windowed(self.dataset, index)
        epoch = self.epoch.item() * self.crops_per_image + crop
        return self.augmentation.crop(sample, epoch=epoch, index=index)


def windowed(dataset: Dataset, index: int) -> dict[str, Any]:
    """The sample at `index`, with rasters in place of decoded images if the dataset can do that."""
    return getattr(dataset, "windowed", dataset.__getitem__)(index)
