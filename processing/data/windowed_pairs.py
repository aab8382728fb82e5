"""Pairs of image and mask of which only windows are read, for training crops."""

from functools import partial
from typing import Any

from ..crop_images import RasterImage, encoded_image
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
    """Reads a mask as a whole; the labels of a large one are decoded for each crop."""
    stored = data.read_stored_mask(pair.mask)
    if is_large:
        return LabelArray(stored, data.ignore_index, partial(data.decode, pair=pair))
    return LabelArray(data.decode(stored, pair, keeps_bytes=True), data.ignore_index)
