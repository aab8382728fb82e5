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
from ..crop_images import DecodedImage, RasterImage
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
        self, image: DecodedImage | RasterImage, mask: np.ndarray | LabelArray | LabelRaster
    ) -> dict[str, Any]:
        """Returns `image`, of the type of the image, and `mask` (h, w)."""
        pixels, labels = self._turned_region(image, mask)
        if self.is_mirrored:
            pixels, labels = F.horizontal_flip(pixels), labels[:, ::-1]
        if self.colors is not None:
            pixels = self.colors(pixels)
        pixels, labels = self._padded(pixels, labels)
        scale = scale_of(pixels) if isinstance(image, RasterImage) else {}
        return {"image": pixels, "mask": labels, **scale}

    def cut_pair(
        self,
        image: DecodedImage | RasterImage,
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

    def _turned_region(
        self, image: DecodedImage | RasterImage, mask: np.ndarray | LabelArray | LabelRaster
    ) -> tuple[Image.Image | torch.Tensor, np.ndarray]:
        """The region at its size, without what is missing to the size of the crop."""
        wide, padding = self.region.surrounding(self.angle, image.shape)
        pixels, valid = image.window(wide.top, wide.left, wide.height, wide.width)
        labels = resized_crop_of_mask(mask, wide)
        if valid is not None:
            pixels = filled(pixels, valid, self.fill)
            labels = np.where(resized_nearest(valid, wide.size), labels, self.ignore_index)
        pixels = pixels if isinstance(pixels, Image.Image) else F.to_image(pixels)
        pixels = F.resize(pixels, list(wide.size))
        if not self.angle:
            return pixels, labels
        pixels = F.pad(pixels, padding, fill=list(self.fill))
        left, top, right, bottom = padding
        labels = np.pad(labels, [(top, bottom), (left, right)], constant_values=self.ignore_index)
        turned = turned_mask(labels, self.angle, self.ignore_index)
        pixels = F.rotate(pixels, self.angle, F.InterpolationMode.BILINEAR, fill=list(self.fill))
        rows, columns = (
            slice((whole - part) // 2, (whole + part) // 2)
            for whole, part in zip(turned.shape, self.region.size, strict=True)
        )
        return F.center_crop(pixels, list(self.region.size)), turned[rows, columns]

    def _padded(
        self, pixels: Image.Image | torch.Tensor, labels: np.ndarray
    ) -> tuple[Image.Image | np.ndarray, np.ndarray]:
        """Pads to the size of the crop on the right and bottom, with `fill` and the ignore index."""
        missing = [wanted - present for wanted, present in zip(self.size, labels.shape, strict=True)]
        if any(missing):
            pixels = F.pad(pixels, [0, 0, missing[1], missing[0]], fill=list(self.fill))
            labels = np.pad(labels, [(0, missing[0]), (0, missing[1])], constant_values=self.ignore_index)
        if not isinstance(pixels, Image.Image):
            pixels = pixels.permute(1, 2, 0).numpy()
        return pixels, np.ascontiguousarray(labels)


def filled(
    pixels: Image.Image | np.ndarray, valid: np.ndarray, fill: Sequence[float]
) -> Image.Image | np.ndarray:
    """An image or array (h, w, C) with `fill` where it has no data."""
    array = np.asarray(pixels)
    array = np.where(valid[..., None], array, np.asarray(fill, dtype=array.dtype))
    return Image.fromarray(array) if isinstance(pixels, Image.Image) else array
