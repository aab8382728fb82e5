"""Random changes of brightness, contrast, saturation and hue, as in mmsegmentation."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image
from torchvision import tv_tensors

from .hue_saturation import change_hue_and_saturation

IDENTITY = bytes(range(256))


@dataclass(frozen=True)
class PhotometricDistortion:
    """Changes brightness, contrast, saturation and hue, each with probability 1/2.

    The contrast is changed before or after saturation and hue. Pixels are 8-bit between the steps. Arrays with other channels have neither a hue nor a known value range; only their
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
        changed = self.change_colors(np.ascontiguousarray(np.moveaxis(np.asarray(pixels), -1, 0)))
        return Image.fromarray(np.ascontiguousarray(np.moveaxis(changed, 0, -1)))

    def change_array(self, pixels: np.ndarray) -> np.ndarray:
        """(h, w, C) float32 in 0..255 -> the same; RGB is rounded to 8 bits."""
        if pixels.shape[-1] != 3:
            return self.change_channels(pixels)
        planes = np.ascontiguousarray(np.moveaxis(clip_levels(pixels), -1, 0).astype(np.uint8))
        return np.ascontiguousarray(np.moveaxis(self.change_colors(planes), 0, -1), dtype=np.float32)

    def change_channels(self, planes: np.ndarray) -> np.ndarray:
        """(C, h, w) of any kind -> the same."""
        return self(torch.from_numpy(planes)).numpy()

    def change_colors(self, planes: np.ndarray) -> np.ndarray:
        """(3, h, w) RGB, uint8 -> the same."""
        levels = np.arange(256.0)
        if self.brightness is not None:
            levels = clip_levels(levels + self.brightness)
        if self.contrast is not None and self.is_contrast_first:
            levels = clip_levels(levels * self.contrast)
        planes = look_up(planes, levels)
        if self.saturation is not None or self.hue is not None:
            saturation = 1.0 if self.saturation is None else self.saturation
            planes = change_hue_and_saturation(planes, self.hue or 0.0, saturation)
        if self.contrast is not None and not self.is_contrast_first:
            planes = look_up(planes, clip_levels(np.arange(256) * self.contrast))
        return planes


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


def look_up(planes: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Maps the 256 values of uint8 pixels through a table."""
    table = levels.astype(np.uint8).tobytes()
    if table == IDENTITY:
        return planes
    return np.frombuffer(bytearray(planes).translate(table), np.uint8).reshape(planes.shape)
