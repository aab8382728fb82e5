"""What an image processor does to pixels, as files for other runtimes hold it.

Legend: C channels, H, W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from transformers import BaseImageProcessor

from ..processing.image_processor_options import UnusedSize


@dataclass(frozen=True)
class PixelArithmetic:
    """Levels in `channel_order` become (levels * rescale_factor - image_mean) / image_std.

    What a processor leaves out is neutral: a factor of 1, a mean of 0, a deviation of 1.
    """

    rescale_factor: float
    image_mean: list[float]
    image_std: list[float]
    channel_order: list[int]  # of the channels of images; [2, 1, 0] turns RGB into BGR

    @classmethod
    def of(cls, processor: BaseImageProcessor, channels: int) -> "PixelArithmetic":
        """That of a processor of images with `channels` channels.

        Raises ValueError if the processor is for another number of them.
        """
        factor = processor.rescale_factor if processor.do_rescale else 1.0
        mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
        order = list(range(channels))
        if getattr(processor, "do_flip_channel_order", False):  # of MobileViT's
            order[:3] = reversed(order[:3])
        return cls(factor, each_channel(mean, channels), each_channel(std, channels), order)


def each_channel(values: float | Sequence[float], channels: int) -> list[float]:
    """One number for each channel. Raises ValueError for another number of them."""
    values = list(values) if isinstance(values, Sequence) else [values] * channels
    if len(values) != channels:
        raise ValueError(
            f"the image processor normalizes {len(values)} channels, and the model takes {channels}. Save the model with an "
            "image processor whose image_mean and image_std have a number for each channel."
        )
    return [float(value) for value in values]


def normalized_alone(processor: BaseImageProcessor, image: np.ndarray) -> Tensor:
    """An image (H, W, C) uint8 -> (1, C, H, W), by a processor that neither resizes nor crops nor pads it."""
    changes = ("do_resize", "do_center_crop", "do_pad")
    options = {name: False for name in changes if hasattr(processor, name)}
    pixels = processor(image, **options, input_data_format="channels_last", return_tensors="pt")
    return pixels["pixel_values"]


def resize_rule(processor: BaseImageProcessor) -> dict[str, int] | None:
    """The size that a processor resizes images to, such as {"height": 512, "width": 512}; None if it does not."""
    size, resizes = processor.size, processor.do_resize
    if not (not isinstance(size, UnusedSize) if resizes is None else resizes):
        return None
    return named_sides(size)


def crop_rule(processor: Any) -> dict[str, int] | None:
    """The size of the middle part that a processor of transformers cuts out; None if it does not."""
    return named_sides(processor.crop_size) if getattr(processor, "do_center_crop", False) else None


def named_sides(size: Any) -> dict[str, int]:
    return {name: side for name, side in dict(size).items() if side is not None}
