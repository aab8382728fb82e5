"""Writes one band to a GeoTIFF: in tiles, compressed without loss, with the place on Earth of the raster it is of.

Rows are asked for as they are written, so that memory does not grow with the height. Files are complete or absent.
"""

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..atomic_write import atomic_write
from .gdal import load_rasterio, writing_explained
from .georeferences import Georeference
from .spans import spans_of

TILE = 256  # pixels on a side, and rows in memory at once
SMALLEST_OVERVIEW = 256  # pixels of the longer side
Rows = Callable[[int, int], np.ndarray]


class BandContent(NamedTuple):
    """What a band is, besides its pixels.

    Args:
        dtype: Type of the pixels, such as "uint8".
        nodata: Value of pixels without data.
        description: What the values are, in a few words.
        colors: Color table, one (red, green, blue) for each value from 0 on. Default: none.
        tags: Metadata of the band. Default: none.
        scale: Factor from stored values to what they mean. Default: 1.
    """

    dtype: str
    nodata: int
    description: str
    colors: Sequence[Sequence[int]] | None = None
    tags: Mapping[str, str] = {}
    scale: float = 1.0


def write_geotiff(
    target: Path, rows: Rows, size: tuple[int, int], content: BandContent, reference: Georeference | None
) -> None:
    """Writes a GeoTIFF of one band with overviews; BigTIFF where 4 GB might not suffice.

    Args:
        target: The file to write; its folder is created if needed.
        rows: Function of the first row and the one after the last that returns their pixels (rows, W).
        size: (H, W).
        content: What the band is.
        reference: The place on Earth; None if it is unknown.

    Raises:
        OSError: If the file cannot be written, such as on a full disk. There is then no file, or the previous one.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as temporary, writing_explained(target):
        temporary.unlink(missing_ok=True)  # GDAL reads what it overwrites, and fails if that is incomplete
        with created(temporary, size, content, reference) as dataset:
            for start, stop in spans_of(size[0], TILE):
                dataset.write(rows(start, stop)[None], window=((start, stop), (0, size[1])))
            if factors := overview_factors(size):
                dataset.build_overviews(factors, load_rasterio().enums.Resampling.nearest)
        check_written(temporary, rows, size)


@contextmanager
def created(
    path: Path, size: tuple[int, int], content: BandContent, reference: Georeference | None
) -> Iterator[Any]:
    """Context manager that yields rasterio's new dataset with everything but its pixels."""
    height, width = size
    profile = {"driver": "GTiff", "count": 1, "height": height, "width": width, "dtype": content.dtype}
    layout = {"tiled": True, "blockxsize": TILE, "blockysize": TILE, "compress": "deflate"}
    layout |= {"predictor": 1 if content.colors else 2, "bigtiff": "IF_SAFER"}
    with load_rasterio().open(path, "w", **profile, **layout, nodata=content.nodata) as dataset:
        if content.colors and len(content.colors) <= 1 << 8 * np.dtype(content.dtype).itemsize:
            table = {value: (*color, 255) for value, color in enumerate(content.colors)}
            dataset.write_colormap(1, table | {content.nodata: (0, 0, 0, 0)})
        place(dataset, reference or Georeference())
        dataset.update_tags(TIFFTAG_SOFTWARE="contextseg")
        dataset.update_tags(1, **content.tags)
        dataset.set_band_description(1, content.description)
        if content.scale != 1:
            dataset.scales = (content.scale,)
        yield dataset


def place(dataset: Any, reference: Georeference) -> None:
    """Sets the known reference of a dataset: CRS and transform, control points, or coefficients."""
    if reference.crs is not None:
        dataset.crs = reference.crs
    if reference.transform is not None:
        dataset.transform = reference.transform
    elif reference.gcps:
        dataset.gcps = (list(reference.gcps), reference.gcps_crs or load_rasterio().crs.CRS())
    if reference.rpcs is not None:
        dataset.rpcs = reference.rpcs


def overview_factors(size: tuple[int, int]) -> list[int]:
    """Factors by which the overviews are smaller: 2, 4, ..., until the longer side is short."""
    factors, side = [], max(size)
    while side > SMALLEST_OVERVIEW:
        factors.append(2 ** (len(factors) + 1))
        side = -(-side // 2)
    return factors


def check_written(path: Path, rows: Rows, size: tuple[int, int]) -> None:
    """Raises OSError unless a closed file has these pixels: GDAL does not report every failed write."""
    with load_rasterio().open(path) as dataset:
        is_whole = dataset.overviews(1) == overview_factors(size) and all(
            np.array_equal(dataset.read(1, window=((start, stop), (0, size[1]))), rows(start, stop))
            for start, stop in spans_of(size[0], TILE)
        )
    if not is_whole:
        raise OSError(errno.EIO, "what was written cannot be read back")


def read_reduced(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Returns the band of a GeoTIFF at this size (H, W), by nearest neighbor."""
    with load_rasterio().open(path) as dataset:
        return dataset.read(1, out_shape=size)


__all__ = ["BandContent", "read_reduced", "write_geotiff"]
