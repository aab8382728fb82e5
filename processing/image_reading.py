"""Reads images from any source; errors name the file and say what to do.

Sources are paths, bytes, binary files, PIL images, numpy arrays and torch tensors. Images are returned
upright, first frame only, without alpha, on the scale 0..255: 16-bit values are divided by 257, other types
need a `value_range`. Masks are read by mask_reading.py.

Legend: H height, W width, C channels.
"""

import numpy as np
import torch
from PIL import Image, ImageCms
from torch import Tensor

from .array_files import oriented_array, stored_array
from .frames import count_frames, say_first_frame
from .image_opening import (
    PIXEL_LIMIT,
    ImageReadError,
    Source,
    describe,
    explaining,
    open_image,
    open_upright,
    read_mode,
)
from .orientation import UPRIGHT, turn_upright
from .processor_numbers import check_processor_numbers
from .value_ranges import unknown_range

WIDE_MODES = ("F", "I")  # beginnings of Pillow's names for more than 8 bits
RGB_CHANNELS = (3, 1, 4)  # numbers of channels that can become RGB; where several fit, the first


def read_image(
    source: Source,
    *,
    value_range: tuple[float, float] | None = None,
    input_data_format: str | None = None,
    pixel_limit: int = PIXEL_LIMIT,
) -> Image.Image:
    """Reads any source as an upright 8-bit RGB image.

    Args:
        source: Path, bytes, binary file, PIL image, array or tensor.
        value_range: (low, high), black and white in images that are not 8-bit.
        input_data_format: "channels_first" or "channels_last", for arrays and tensors where both would fit.
        pixel_limit: Most pixels of a file; larger ones are rejected before they are decoded.

    Raises:
        ImageReadError: If the image is missing, damaged, too large, or of a type that needs a `value_range`.
    """
    array = _as_array(source, pixel_limit, None)
    if array is not None:
        return Image.fromarray(_rgb_array(array, value_range, input_data_format, describe(source)))
    image, orientation, name, frames = open_image(source, pixel_limit, count_frames)
    say_first_frame(name, frames)
    rgb = image if image.mode == "RGB" and image is not source else to_rgb(image, value_range, name)
    return rgb if orientation == UPRIGHT else Image.fromarray(turn_upright(np.asarray(rgb), orientation))


def read_rgb(
    source: Source,
    *,
    value_range: tuple[float, float] | None = None,
    input_data_format: str | None = None,
    pixel_limit: int = PIXEL_LIMIT,
) -> np.ndarray:
    """As `read_image`, but returns an array (H, W, 3), uint8, which may share the memory of an array in `source`."""
    if isinstance(source, np.ndarray | Tensor):
        return _rgb_array(source, value_range, input_data_format, describe(source))
    options = {"value_range": value_range, "input_data_format": input_data_format}
    return np.asarray(read_image(source, pixel_limit=pixel_limit, **options))


def _rgb_array(
    array: np.ndarray | Tensor,
    value_range: tuple[float, float] | None,
    input_data_format: str | None,
    name: str,
) -> np.ndarray:
    """An array of an image with 1, 3 or 4 channels -> (H, W, 3), uint8."""
    channels = _array_channels(array, RGB_CHANNELS, value_range, input_data_format, name)
    channels = channels[..., :3] if channels.shape[-1] >= 3 else channels.repeat(3, axis=-1)
    return _rounded(channels)


def read_channels(
    source: Source,
    num_channels: int | None,
    *,
    value_range: tuple[float, float] | None = None,
    input_data_format: str | None = None,
    pixel_limit: int = PIXEL_LIMIT,
) -> np.ndarray:
    """Reads any source as (H, W, C), upright, uint8 or float32 in 0..255, for images that are not RGB.

    `num_channels` is the required number of channels (None: any); an alpha channel beyond it is dropped. Other
    arguments and errors are those of `read_image`.
    """
    array = _as_array(source, pixel_limit, num_channels)
    if array is not None:
        accepted = (num_channels,) if num_channels else RGB_CHANNELS
        return _array_channels(array, accepted, value_range, input_data_format, describe(source))
    image, orientation, name, frames = open_image(source, pixel_limit, count_frames)
    say_first_frame(name, frames)
    if image.mode in ("P", "PA", "LAB", "YCbCr", "HSV"):  # codes for a color, not measurements
        image = to_rgb(image, value_range, name)
    channels = _on_8_bit_scale(_pixels(image), value_range, name)
    channels = channels[..., None] if channels.ndim == 2 else channels
    if image.mode in ("LA", "RGBA") and num_channels == channels.shape[-1] - 1:
        channels = channels[..., :-1]
    if num_channels not in (None, channels.shape[-1]):
        of_first = f" in the first of its {frames} frames" if frames > 1 else ""
        raise ImageReadError(
            f"{name} has {channels.shape[-1]} channels{of_first}, but {num_channels} are needed. Give the file that has all "
            f"channels, or pass {channel_option(channels.shape[-1])}."
        )
    return turn_upright(channels, orientation)


def decode_once(
    source: Source, pixel_limit: int = PIXEL_LIMIT, num_channels: int | None = None
) -> tuple[Image.Image | np.ndarray, int]:
    """Decodes an image once, for several uses: `read_image` and `read_channels` take the result without decoding.

    Returns:
        The upright image in its stored mode, or an array (H, W) or (H, W, C) that was turned upright; and the EXIF
        orientation of the file (1 to 8), which is 1 for what is in memory as an array.
    """
    if isinstance(source, np.ndarray | Tensor):
        return source, UPRIGHT
    return oriented_array(source, pixel_limit, num_channels) or open_upright(source, pixel_limit)


def read_stored(
    source: Source, pixel_limit: int = PIXEL_LIMIT, num_channels: int | None = None
) -> np.ndarray | None:
    """The pixels (H, W) or (H, W, C) of an image that is not 8-bit as stored, not turned upright; None for others."""
    array = _as_array(source, pixel_limit, num_channels)
    if array is not None:
        array = to_numpy(array)
        return None if array.dtype in (np.uint8, bool) else array
    is_wide = read_mode(source, pixel_limit).startswith(WIDE_MODES)
    return _pixels(open_image(source, pixel_limit).image) if is_wide else None


def image_size(image: Image.Image | np.ndarray) -> tuple[int, int]:
    """Height and width in pixels."""
    return image.size[::-1] if isinstance(image, Image.Image) else image.shape[:2]


def _as_array(source: Source, pixel_limit: int, num_channels: int | None) -> np.ndarray | Tensor | None:
    """The source if it is an array, or the array in its file if Pillow cannot hold it; else None."""
    if isinstance(source, np.ndarray | Tensor):
        return source
    return stored_array(source, pixel_limit, num_channels)


def channel_option(number: int) -> str:
    """How to ask for a number of channels, for messages."""
    return f"--num-channels {number} (in Python, num_channels={number})"


def to_rgb(image: Image.Image, value_range: tuple[float, float] | None, name: str) -> Image.Image:
    """The image as RGB, a copy also of an RGB image. Raises ImageReadError, for example for a damaged palette."""
    if image.mode == "F" or image.mode.startswith("I"):  # Pillow would clip these
        return Image.fromarray(_rounded(_on_8_bit_scale(_pixels(image), value_range, name))).convert("RGB")
    with explaining(name):
        if image.mode == "LAB":
            lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
            return ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        if image.mode in ("P", "PA"):
            return image.convert("RGBA").convert("RGB")  # straight to RGB warns about transparency
        return image.convert("RGB")


def _pixels(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    return (
        pixels.astype(np.uint16) if image.mode == "I" and image.format == "PNG" else pixels
    )  # at most 16 bits


def _array_channels(
    source: np.ndarray | Tensor,
    accepted: tuple[int, ...],
    value_range: tuple[float, float] | None,
    input_data_format: str | None,
    name: str,
) -> np.ndarray:
    channels = channels_last(to_numpy(source), accepted, input_data_format, isinstance(source, Tensor), name)
    return _on_8_bit_scale(channels, value_range, name)


def to_numpy(source: np.ndarray | Tensor) -> np.ndarray:
    if isinstance(source, np.ndarray):
        return source
    source = source.detach().cpu()
    return source.float().numpy() if source.dtype == torch.bfloat16 else source.numpy()


def channels_last(
    array: np.ndarray, accepted: tuple[int, ...], data_format: str | None, is_tensor: bool, name: str
) -> np.ndarray:
    """(H, W), (H, W, C) or (C, H, W) -> (H, W, C)."""
    if array.ndim == 2 and 1 in accepted and 0 not in array.shape:
        return array[..., None]
    fits = {"channels_first": array.ndim == 3 and array.shape[0] in accepted}
    fits["channels_last"] = array.ndim == 3 and array.shape[-1] in accepted
    given = data_format
    if data_format is None:  # where both fit: channels first in torch, last in numpy
        custom, other = ("channels_first", "channels_last")[:: 1 if is_tensor else -1]
        data_format = custom if fits[custom] else other
    if not fits[data_format] or 0 in array.shape:
        needed = " or ".join(str(number) for number in sorted(accepted))
        if array.ndim == 3 and 0 not in array.shape:
            sides = {"channels_first": array.shape[0], "channels_last": array.shape[-1]}
            found = min(sides.values()) if given is None else sides[given]
            raise ImageReadError(
                f"{name} has {found} channels, but {needed} are needed. Pass {channel_option(found)}; an image processor "
                "takes do_convert_rgb=False and an image_mean and image_std for each channel."
            )
        raise ImageReadError(
            f"{name} is not an image with {needed} channels. Pass (H, W, C) or (C, H, W), "
            "and `input_data_format` if both would fit."
        )
    return array if data_format == "channels_last" else np.moveaxis(array, 0, -1)


def _on_8_bit_scale(values: np.ndarray, value_range: tuple[float, float] | None, name: str) -> np.ndarray:
    """uint8 unchanged, everything else as float32 in 0..255."""
    if values.dtype.kind not in "biuf":
        raise ImageReadError(
            f"{name} has dtype {values.dtype}, but pixels are numbers. Convert the array first."
        )
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    if values.dtype == np.uint8:
        return values
    if value_range is None and values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return values.astype(np.float32) / 257
    if value_range is None and np.isfinite(values).any():
        raise unknown_range(values, name)
    if not np.isfinite(values).all():
        raise ImageReadError(f"{name} has NaN or infinite values. Replace them before reading.")
    check_processor_numbers({"value_range": value_range})
    low, high = value_range
    with np.errstate(over="ignore"):  # what float32 cannot hold is black or white
        return np.clip((values.astype(np.float32) - low) * (255 / (high - low)), 0, 255)


def _rounded(values: np.ndarray) -> np.ndarray:
    return values if values.dtype == np.uint8 else values.round().astype(np.uint8)
