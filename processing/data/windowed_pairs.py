"""Pairs of image and mask of which only windows are read, for training crops."""

from typing import Any

import numpy as np

from ..crop_images import RasterImage
from ..rasters.georeferences import check_same_grid
from ..rasters.label_windows import LabelArray, LabelRaster
from ..rasters.windowed_files import windowed_image, windowed_mask
from ..samples import check_sizes, scale_of
from .pairing import Pair


def windowed_pair(data: Any, pair: Pair) -> dict[str, Any]:
    """Opens a pair for a `JointAugmentation`.

    Args:
        data: The `SegmentationData` of the pair.
        pair: The files.

    Returns:
        A sample: `image`, a `RasterImage` if the file can be read by windows, else as in other samples; `mask`, a
        `LabelRaster` or `LabelArray`, or class ids; and `name`.

    Raises:
        ImageReadError: If a file cannot be opened.
        ValueError: If image and mask differ in size, or are on different grids.
    """

    def decode(stored: np.ndarray) -> np.ndarray:
        return data.decode(stored, pair)

    image = windowed_image(pair.image, data.num_channels, data.read_image)
    mask = windowed_mask(pair.mask, data.decoder)
    if isinstance(image, RasterImage) and isinstance(mask, LabelRaster):
        check_sizes(image.shape, mask.shape, pair.name)
        check_same_grid(image.raster, mask.mask, pair.name)
    image = data.read_image(pair.image) if image is None else image
    if mask is None:
        stored = data.read_stored_mask(pair.mask)
        is_large = isinstance(image, RasterImage)  # only the labels of the crop are decoded then
        mask = LabelArray(stored, data.ignore_index, decode) if is_large else decode(stored)
    return {"image": image, "mask": mask, "name": pair.name, **scale_of(image)}
