"""Cuts the training crops that an augmentation has drawn, from decoded images and from rasters.

Legend: H, W pixels of an image, h, w pixels of a crop, C channels.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from ..crop_frames import Frame, Sampling
from ..crop_images import AnyImage, RasterImage
from ..pair_cutting import cut_pair
from ..rasters.label_windows import LabelArray, LabelRaster
from ..resize_rules import resized_nearest
from ..samples import scale_of
from .color_distortion import PhotometricDistortion
from .crop_regions import Region, resized_crop_of_mask, turned_mask


class CropPlan(NamedTuple):
    """Where a crop lies in an image, and how it is changed.

    Args:
        region: The region of the image; an axis of the image that is shorter than the crop is taken whole.
        angle: Angle in degrees by which the crop is turned counterclockwise about its center.
        is_mirrored: Whether the crop is mirrored left to right, after turning.
        colors: Change of the colors; None for none.
        size: (h, w) of the crop. It is padded at the right and below.
        fill: (C,), value of pixels outside the image and without data.
        ignore_index: Label of these pixels.
    """

    region: Region
    angle: float
    is_mirrored: bool
    colors: PhotometricDistortion | None
    size: tuple[int, int]
    fill: Sequence[float]
    ignore_index: int

    def cut(
        self, image: AnyImage, mask: np.ndarray | LabelArray | LabelRaster, *, as_array: bool = False
    ) -> dict[str, Any]:
        """Returns `image`, of the type of the image or an array (h, w, C), and `mask` (h, w)."""
        wide, padding = self.region.surrounding(self.angle, image.shape)
        window, valid = image.window(wide.top, wide.left, wide.height, wide.width)
        is_picture = isinstance(window, Image.Image)
        labels = resized_crop_of_mask(mask, wide)
        if valid is not None:
            window = filled(window, valid, self.fill)
            labels = np.where(resized_nearest(valid, wide.size), labels, self.ignore_index)
        pixels = F.resize(planes_of(window), list(wide.size))
        if self.angle:
            pixels, labels = self._turned(pixels, labels, padding, is_picture)
        if self.is_mirrored:
            pixels, labels = pixels.flip(-1), labels[:, ::-1]
        pixels = np.ascontiguousarray(pixels.numpy())
        if self.colors is not None:
            change = self.colors.change_colors if is_picture else self.colors.change_channels
            pixels = change(pixels)
        pixels, labels = self._padded(pixels, labels)
        pixels = np.moveaxis(pixels, 0, -1)
        scale = scale_of(pixels) if isinstance(image, RasterImage) else {}
        return {"image": picture(pixels) if is_picture and not as_array else pixels, "mask": labels, **scale}

    def cut_pair(
        self,
        image: AnyImage,
        mask: np.ndarray | LabelArray | LabelRaster,
        context_ratio: int,
        sampling: Sampling,
    ) -> dict[str, Any]:
        """Returns the entries of `pair_cutting.cut_pair`."""
        region = self.region
        height, width = (
            n * whole / part
            for n, whole, part in zip(self.size, (region.height, region.width), region.size, strict=True)
        )
        left = region.left + region.width - width if self.is_mirrored else region.left
        frame = Frame.of_box(region.top, left, height, width, angle=self.angle, is_mirrored=self.is_mirrored)
        sample = cut_pair(
            image,
            LabelArray(mask, self.ignore_index) if isinstance(mask, np.ndarray) else mask,
            frame,
            self.size,
            context_ratio=context_ratio,
            fill=self.fill,
            ignore_index=self.ignore_index,
            sampling=sampling,
        )
        if self.colors is not None:
            sample |= {name: self.colors.change_array(sample[name]) for name in ("image", "context")}
        return sample

    def _turned(
        self, pixels: torch.Tensor, labels: np.ndarray, padding: Sequence[int], is_picture: bool
    ) -> tuple[torch.Tensor, np.ndarray]:
        """The region (C, h, w) with its labels (h, w), cut from the turned surrounding, which lacks the padding."""
        left, top, right, bottom = padding
        labels = np.pad(labels, [(top, bottom), (left, right)], constant_values=self.ignore_index)
        turned = turned_mask(labels, self.angle, self.ignore_index)
        rows, columns = (
            slice((whole - part) // 2, (whole + part) // 2)
            for whole, part in zip(turned.shape, self.region.size, strict=True)
        )
        image = picture(np.moveaxis(pixels.numpy(), 0, -1)) if is_picture else pixels
        image = F.pad(image, padding, fill=list(self.fill))
        image = F.rotate(image, self.angle, F.InterpolationMode.BILINEAR, fill=list(self.fill))
        image = F.center_crop(image, list(self.region.size))
        return planes_of(image) if is_picture else image, turned[rows, columns]

    def _padded(self, pixels: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pads (C, h, w) and (h, w) to the size of the crop on the right and bottom."""
        height, width = labels.shape
        if (height, width) == self.size:
            return pixels, np.ascontiguousarray(labels)
        padded = np.empty((len(pixels), *self.size), pixels.dtype)
        padded[:] = np.asarray(self.fill)[:, None, None]
        padded[:, :height, :width] = pixels
        ignored = np.full(self.size, self.ignore_index, labels.dtype)
        ignored[:height, :width] = labels
        return padded, ignored


def planes_of(image: Image.Image | np.ndarray) -> torch.Tensor:
    """A copy of an image or array (h, w, C) as (C, h, w)."""
    array = np.array(image)
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)


def picture(pixels: np.ndarray) -> Image.Image:
    """(h, w, C) uint8 -> an image."""
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))


def filled(
    pixels: Image.Image | np.ndarray, valid: np.ndarray, fill: Sequence[float]
) -> Image.Image | np.ndarray:
    """An image or array (h, w, C) with `fill` where it has no data."""
    array = np.asarray(pixels)
    array = np.where(valid[..., None], array, np.asarray(fill, dtype=array.dtype))
    return Image.fromarray(array) if isinstance(pixels, Image.Image) else array
