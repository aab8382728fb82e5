"""What an image processor makes of one image, in one piece, at one scale or another."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from .image_opening import PIXEL_LIMIT, Source
from .image_reading import decode_once, read_image
from .image_windows import scaled_size
from .mask_models import image_part, undivided
from .volumes.volume_inference import is_for_volumes

PIXEL_TYPES = ("uint8", "uint16", "bool")  # of arrays whose black and white are known


def check_for_images(processor: Any) -> None:
    """Raises ValueError if an image processor is for volumes."""
    if is_for_volumes(processor):
        raise ValueError(
            f"{type(processor).__name__} is for volumes. Pass the processor of a model of images; a model of volumes "
            "is called as a whole: Inference(...)(model, processor, volume)."
        )


def decoded(processor: Any, image: Source) -> Source:
    """Decodes an image file once, upright, for all scales; for processors of transformers, what is in memory becomes RGB.

    Raises ImageReadError if it cannot be read, ValueError if the processor is for volumes.
    """
    check_for_images(processor)
    if not isinstance(image, Image.Image | np.ndarray | Tensor):
        return decoded_for(processor, image)[0]
    is_known = isinstance(image, Image.Image) or str(image.dtype).removeprefix("torch.") in PIXEL_TYPES
    return read_image(image) if is_known and takes_rgb_only(image_part(processor)) else image


def decoded_for(processor: Any, source: Source) -> tuple[Image.Image | np.ndarray, int]:
    """Decodes an image once, as its processor takes it: ours any, those of transformers RGB.

    Returns:
        The upright image, and the EXIF orientation of the file, see `decode_once`.
    """
    processor = image_part(processor)
    channels = channels_of(processor)
    image, orientation = decode_once(source, getattr(processor, "pixel_limit", PIXEL_LIMIT), channels)
    if takes_rgb_only(processor):
        image = read_image(image, value_range=getattr(processor, "value_range", None))
    return image, orientation


def takes_rgb_only(processor: Any) -> bool:
    """Whether this is a processor of transformers for RGB images; ours convert images themselves."""
    return channels_of(processor) is None and not hasattr(processor, "decode_mask")


def channels_of(processor: Any) -> int | None:
    """The number of channels that a processor reads; None if it makes every image RGB."""
    mean = getattr(processor, "image_mean", None)
    if not isinstance(mean, Sequence):
        return None
    converts = getattr(processor, "do_convert_rgb", None)
    return None if (len(mean) == 3 if converts is None else converts) else len(mean)


def scaled(processor: Any, image: Source, size: Sequence[int], scale: float, **options: Any) -> Tensor:
    """An image -> `pixel_values` (1, C, ., .) at `scale` times `size`; a side of one pixel is never less."""
    height, width = scaled_size(size, scale)
    resized = {"do_resize": True, "size": {"height": height, "width": width}}
    return pixel_values(processor, image, **options, **resized)


def size_of(processor: Any, image: Source) -> tuple[int, int]:
    """(H, W) of an image as its processor reads it, before it is resized."""
    unchanged = {"do_resize": False, "do_rescale": False, "do_normalize": False}
    return tuple(pixel_values(processor, image, **unchanged).shape[-2:])


def pixel_values(processor: Any, image: Source, **options: Any) -> Tensor:
    """An image -> `pixel_values` (1, C, ., .), in one piece."""
    processor = image_part(processor)
    return processor(image, **options, **undivided(processor), return_tensors="pt")["pixel_values"]
