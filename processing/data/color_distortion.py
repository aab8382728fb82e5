"""Random changes of brightness, contrast, saturation and hue, as in mmsegmentation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image
from torchvision import tv_tensors


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

    def change_array(self, pixels: np.ndarray) -> np.ndarray:
        """(h, w, C) float32 in 0..255 -> the same; RGB is rounded to 8 bits."""
        if pixels.shape[-1] != 3:
            return self(torch.from_numpy(pixels)).numpy()
        image = Image.fromarray(clip_levels(pixels).astype(np.uint8))
        return np.asarray(self(image), dtype=np.float32)

    def shift_colors(self, image: Image.Image) -> Image.Image:
        """Changes saturation and hue with a single conversion to HSV."""
        if self.saturation is None and self.hue is None:
            return image
        levels = np.arange(256)
        hue = (levels + round(256 * (self.hue or 0.0))) % 256
        saturation = clip_levels(levels * (1.0 if self.saturation is None else self.saturation))
        return look_up(image.convert("HSV"), [hue, saturation, levels]).convert("RGB")


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
