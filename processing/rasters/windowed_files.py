"""Files of images and masks that are read by windows: raster files, and arrays in .npy files.

Each process keeps a few raster files open, which it has opened itself.
"""

import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from ..array_files import check_array
from ..crop_images import WINDOW_PIXELS, RasterImage
from ..image_opening import DECODING_ERRORS, describe, explained
from ..label_maps import LabelMap
from .files import RasterFile, is_raster_file
from .label_windows import LabelArray, LabelRaster
from .masks import RasterMask
from .raster import ArrayRaster

OPEN_FILES = 16
ANY_SIZE = 1 << 62  # pixels
ImageReader = Callable[[np.ndarray], Image.Image | np.ndarray]


def windowed_image(source: Any, num_channels: int, read: ImageReader) -> RasterImage | None:
    """Opens an image that is read by windows.

    Args:
        source: A path, or any other source of an image.
        num_channels: Number of channels of the model.
        read: Turns pixels (h, w, C) as stored into an RGB image or an array (h, w, C) in 0..255.

    Returns:
        The image, or None if it must be decoded at once.

    Raises:
        ImageReadError: If the file cannot be opened.
    """
    array = memory_map(source)
    if array is not None:
        first, last = array.shape[0], array.shape[-1]
        is_known = num_channels in (first, last) and first != last
        is_first = first == num_channels if is_known else None
        return RasterImage(ArrayRaster(array, is_first, describe(source)), read, describe(source))
    raster = kept_open(_image_of, source, num_channels)
    return None if raster is None else RasterImage(raster, read, describe(source))


def windowed_mask(source: Any, table: LabelMap) -> LabelRaster | LabelArray | None:
    """Opens a mask that is read by windows.

    Args:
        source: A path, or any other source of a mask.
        table: The ids and colors of the classes.

    Returns:
        The mask, or None if it must be decoded at once.

    Raises:
        ImageReadError: If the file cannot be opened, or cannot be a mask.
    """
    array = memory_map(source)
    if array is not None:
        is_ids = array.ndim == 2 and array.dtype.kind in "iu"
        return LabelArray(array, table.ignore_index, decoder(table, source)) if is_ids else None
    mask = kept_open(_mask_of, source, table)
    return None if mask is None else LabelRaster(mask, table)


def kept_open(open_file: Callable, source: Any, option: Any) -> Any:
    """The result of `open_file` for a path, of this process and of the file as it is now; None for other sources."""
    if not isinstance(source, str | os.PathLike):
        return None
    path = os.fspath(source)
    try:
        changed = os.stat(path).st_mtime_ns
    except OSError:  # decoding it explains the error
        return None
    return open_file(path, option, (changed, os.getpid()))


@lru_cache(maxsize=OPEN_FILES)
def _image_of(path: str, num_channels: int, version: tuple[int, int]) -> RasterFile | None:  # noqa: ARG001
    return RasterFile(path, num_channels) if is_read_by_windows(path) else None


@lru_cache(maxsize=OPEN_FILES)
def _mask_of(path: str, table: LabelMap, version: tuple[int, int]) -> RasterMask | None:  # noqa: ARG001
    return RasterMask(path, table) if is_read_by_windows(path) else None


def is_read_by_windows(path: str) -> bool:
    """Whether a file is a raster; small ones that are pictures are decoded as such."""
    if not is_raster_file(path):
        return False
    raster = RasterFile(path)
    return not raster.is_picture or raster.shape[1] * raster.shape[2] > WINDOW_PIXELS


def memory_map(source: Any) -> np.ndarray | None:
    """The array in a .npy file as a memory map; None for other sources, and for an array that is not an image."""
    if not isinstance(source, str | os.PathLike) or not os.fspath(source).lower().endswith(".npy"):
        return None
    if not os.path.isfile(source):  # decoding it explains the error
        return None
    try:
        array = np.load(source, mmap_mode="r", allow_pickle=False)
    except DECODING_ERRORS as error:
        raise explained(error, describe(source)) from error
    check_array(array.shape, array.dtype, describe(source), ANY_SIZE)
    return array


def decoder(table: LabelMap, source: Any) -> Callable[[np.ndarray], np.ndarray]:
    """The function that turns ids of a mask into class ids."""
    return lambda ids: table.decode(ids, f"the mask {describe(source)}")
