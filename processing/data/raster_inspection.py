"""What `inspect_pair` needs to know of an image or mask that is too large to be decoded at once.

A mask is read as a whole, one strip at a time; of an image, only some windows are.
"""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..crop_images import WINDOW_PIXELS, RasterImage
from ..image_opening import Source
from ..rasters.label_windows import LabelRaster
from ..rasters.spans import spans_of
from ..rasters.windowed_files import windowed_image, windowed_mask
from .datasets import SegmentationData

WINDOWS, WINDOW_SIDE = 3, 256  # windows of an image along each axis, and their side in pixels
STRIP_PIXELS = 1 << 22


class LargeImage(NamedTuple):
    """Windows of a large image: as they are read, side by side, and as stored."""

    size: tuple[int, int]
    windows: np.ndarray
    stored: np.ndarray


class MaskValues(NamedTuple):
    """The size of a mask, the number of its pixels by id or by 0xRRGGBB, and whether these are colors."""

    size: tuple[int, int]
    counts: dict[int, int]
    is_colored: bool


def large_image(dataset: SegmentationData, source: Source) -> LargeImage | None:
    """Reads windows of an image, evenly spaced; None if it is small or must be decoded at once."""
    image = windowed_image(source, dataset.num_channels, dataset.read_image)
    if not isinstance(image, RasterImage) or np.prod(image.shape, dtype=float) <= WINDOW_PIXELS:
        return None
    sides = [min(WINDOW_SIDE, side) for side in image.shape]
    tops, lefts = (
        np.linspace(0, whole - part, WINDOWS).astype(int).tolist()
        for whole, part in zip(image.shape, sides, strict=True)
    )
    boxes = [(top, left, *sides) for top in tops for left in lefts]
    windows = [np.asarray(image.window(*box)[0]) for box in boxes]
    stored = [
        image.raster.read((top, top + height), (left, left + width)) for top, left, height, width in boxes
    ]
    return LargeImage(
        image.shape, np.concatenate(windows), np.moveaxis(np.concatenate(stored, axis=1), 0, -1)
    )


def large_mask(
    dataset: SegmentationData, source: Source, count_values: Callable[[np.ndarray], dict[int, int]]
) -> MaskValues | None:
    """Counts the values of a mask by `count_values`; None if it is small or must be decoded at once."""
    mask = windowed_mask(source, dataset.decoder)
    if not isinstance(mask, LabelRaster) or np.prod(mask.shape, dtype=float) <= WINDOW_PIXELS:
        return None
    (height, width), counts, is_colored = mask.shape, Counter(), False
    step = max(1, STRIP_PIXELS // width)
    for rows in spans_of(height, step):
        strip = mask.mask.read(rows, (0, width))
        counts.update(count_values(strip))
        is_colored = strip.ndim == 3
    return MaskValues(mask.shape, dict(counts), is_colored)
