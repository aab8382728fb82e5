"""Pairs of image and mask of which only windows are read, for training crops."""

from functools import partial
from typing import Any

import numpy as np

from ..crop_images import EncodedImage, RasterImage, encoded_image
from ..mask_reading import read_mask
from ..png_rows import is_palette
from ..rasters.georeferences import check_same_grid
from ..rasters.label_windows import EncodedLabels, LabelArray, LabelRaster
from ..rasters.windowed_files import windowed_image, windowed_mask
from ..samples import check_sizes, scale_of
from .pairing import Pair


def windowed_pair(data: Any, pair: Pair) -> dict[str, Any]:
    """Opens a pair for a `JointAugmentation`.

    Args:
        data: The `SegmentationData` of the pair.
        pair: The files.

    Returns:
        A sample: `image`, a `RasterImage` if the file can be read by windows, an `EncodedImage` if its first rows can
        be decoded without the others, else as in other samples; `mask`, a `LabelRaster` or `LabelArray`; and `name`.

    Raises:
        ImageReadError: If a file cannot be opened.
        ValueError: If image and mask differ in size, or are on different grids.
    """

    image = windowed_image(pair.image, data.num_channels, data.read_image)
    mask = windowed_mask(pair.mask, data.decoder)
    if isinstance(image, RasterImage) and isinstance(mask, LabelRaster):
        check_sizes(image.shape, mask.shape, pair.name)
        check_same_grid(image.raster, mask.mask, pair.name)
    is_large = image is not None  # only the labels of the crop are decoded then
    image = image or encoded_image(pair.image, data.read_image, data.pixel_limit, data.num_channels)
    image = data.read_image(pair.image) if image is None else image
    if mask is None:
        mask = label_array(data, pair, is_large)
    return {"image": image, "mask": mask, "name": pair.name, **scale_of(image)}


def label_array(data: Any, pair: Pair, is_large: bool) -> LabelArray:
    """Reads a mask as a whole, so that all its values are checked, but a file only once in each process.

    Later, only the rows that a crop needs are decoded. Of a mask beside a raster, only the labels of the crop are.
    """
    if is_large:
        stored = data.read_stored_mask(pair.mask)
        return LabelArray(stored, data.ignore_index, partial(data.decode, pair=pair))
    decode = partial(data.decode, pair=pair, keeps_bytes=True)
    file = encoded_image(pair.mask, partial(read_mask, pixel_limit=data.pixel_limit), data.pixel_limit)
    key = file and hash(file.rows.data)  # a file that has changed has another one
    if key in data.checked_masks:
        return EncodedLabels(file, data.ignore_index, decode)
    stored = data.read_stored_mask(pair.mask)
    labels = decode(stored)
    if file is not None and not is_by_palette(file, stored):
        data.checked_masks.add(key)
    return LabelArray(labels, data.ignore_index)


def is_by_palette(file: EncodedImage, stored: np.ndarray) -> bool:
    """Whether the colors of a palette were the classes, which depends on the indices of all pixels."""
    return stored.ndim == 3 and is_palette(file.rows.data)
