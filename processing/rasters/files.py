"""Raster files that rasterio reads (GeoTIFF, COG, VRT, JPEG 2000), as rasters of raster.py.

Bands are channels. Pixels have no data where all bands have their nodata value, where the mask or alpha band is
0, where a band is not finite, and in the gaps of a mosaic. An alpha band is validity, a palette becomes RGB, and
scale and offset tags are applied, which gives float32.
"""

import os
import stat
import threading
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import numpy as np

from ..image_opening import ImageReadError, read_orientation
from ..raster_library import RASTER_SUFFIXES
from .area_averaging import area_average, window_edges
from .bands import Bands
from .gdal import INSTALL_GEO, gdal_explained, load_rasterio, open_dataset
from .georeferences import Georeference, check_same_grid, georeference_of
from .spans import Span
from .virtual_mosaics import covered, covered_parts


def is_raster_file(source: Any) -> bool:
    """Whether rasterio reads this source: the path of a local file with the ending of a raster, which it can open.

    TIFF files without a georeference that have several pages, an EXIF orientation, or colors other than gray and
    RGB are photographs or scans, which `read_image` reads.
    """
    path = raster_path(source)
    if path is None:
        return False
    if path.lower().endswith(".vrt"):
        return True
    try:
        with open_dataset(path) as dataset:
            is_scan = dataset.subdatasets or "SOURCE_COLOR_SPACE" in dataset.tags(ns="IMAGE_STRUCTURE")
            return any(georeference_of(dataset)) or not (is_scan or _is_turned(path))
    except ImageReadError:
        return False


def raster_path(source: Any) -> str | None:
    """The path of a regular file with the ending of a raster, if rasterio is installed; else None."""
    if not isinstance(source, str | os.PathLike) or find_spec("rasterio") is None:
        return None
    path = os.fspath(source)
    if os.path.splitext(path)[1].lower() not in RASTER_SUFFIXES:
        return None
    try:
        return path if stat.S_ISREG(os.stat(path).st_mode) else None
    except (OSError, ValueError):
        return None


def stored_raster(source: Any, pixel_limit: int, num_channels: int | None = None) -> np.ndarray | None:
    """Reads a whole raster file that says more about its pixels than a picture does.

    Args:
        source: As of `read_image`.
        pixel_limit: Most pixels; larger rasters are refused.
        num_channels: As of `open_raster`.

    Returns:
        (H, W, C) of the raster's type, 0 where a number is not finite. None for what is not a raster file, and for
        pictures: files without georeference whose pixels all have data, and which have no scale or offset tags.

    Raises:
        ImageReadError: If the file cannot be read, or is too large.
    """
    if not is_raster_file(source):
        if str(source).lower().endswith(".vrt") and find_spec("rasterio") is None:
            raise ImageReadError(f"'{source}' is a virtual mosaic, which needs rasterio. {INSTALL_GEO}")
        return None
    raster = RasterFile(source, num_channels)
    if raster.is_picture:
        return None
    _, height, width = raster.shape
    if height * width > pixel_limit:
        raise ImageReadError(
            f"{raster.name} is {width}x{height}, above the limit of {pixel_limit} pixels. Read it by windows, crop it, or raise "
            "`pixel_limit`."
        )
    pixels = raster.read((0, height), (0, width))
    raster.close()
    if pixels.dtype.kind == "f":
        pixels = np.where(np.isfinite(pixels), pixels, 0)
    return np.moveaxis(pixels, 0, -1)


def check_pair_grid(image: Any, mask: Any, name: str) -> None:
    """Compares the grids of an image file and its mask file, if both are raster files.

    Raises:
        ImageReadError: If a file cannot be opened.
        ValueError: As `check_same_grid`.
    """
    if is_raster_file(image) and is_raster_file(mask):
        check_same_grid(RasterFile(image), RasterFile(mask), name)


def unlabeled_pixels(image: Any, num_channels: int | None = None) -> np.ndarray | None:
    """Where an image file has no data (H, W), so that labels there say nothing; None if it has data everywhere."""
    if not is_raster_file(image):
        return None
    raster = RasterFile(image, num_channels)
    if not raster.may_lack_data:
        return None
    valid = raster.valid((0, raster.shape[1]), (0, raster.shape[2]))
    return None if valid.all() else ~valid


class RasterFile:
    """A raster file, read by windows. Instances can be pickled, and used in several threads and processes.

    Args:
        path: Path of the file.
        num_channels: As of `open_raster`.

    Raises:
        ImageReadError: If the file cannot be opened, or holds no pixels that a model can take.
    """

    def __init__(self, path: str | os.PathLike, num_channels: int | None = None) -> None:
        self.path = os.fspath(path)
        self.name = f"'{self.path}'"
        self._open = threading.local()
        with gdal_explained(self.name):
            self.bands = Bands(self.dataset, num_channels, self.name)
            self.shape = (self.bands.channels, self.dataset.height, self.dataset.width)
        is_mosaic = self.path.lower().endswith(".vrt") and self.bands.is_valid
        self.parts = covered_parts(self.path) if is_mosaic else None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_open"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _open=threading.local())

    @property
    def dtype(self) -> np.dtype:
        """Type of the pixels."""
        return self.bands.dtype

    @cached_property
    def georeference(self) -> Georeference:
        """Where the raster lies."""
        with gdal_explained(self.name):
            return georeference_of(self.dataset)

    @property
    def may_lack_data(self) -> bool:
        """Whether some pixels may have no data."""
        has_floats = any("float" in kind for kind in self.dataset.dtypes)
        is_opaque = self.bands.opaque is None or bool(self.bands.opaque.all())
        is_whole = self.bands.alpha is None and self.parts is None and is_opaque
        return bool(self.bands.masked) or has_floats or not is_whole

    @property
    def is_picture(self) -> bool:
        """Whether it says no more about its pixels than a picture does."""
        is_virtual = self.path.lower().endswith(".vrt")
        return self.bands.is_plain and not is_virtual and not any(self.georeference)

    @property
    def dataset(self) -> Any:
        """rasterio's dataset of this thread and process."""
        return self._dataset(None)

    def _dataset(self, overview: int | None) -> Any:
        """The dataset, or that of one of its overviews."""
        if getattr(self._open, "process", None) != os.getpid():  # a forked process must not share the file
            self._open.datasets, self._open.process = {}, os.getpid()
        if overview not in self._open.datasets:
            self._open.datasets[overview] = open_dataset(self.path, overview)
        return self._open.datasets[overview]

    def read(self, rows: Span, columns: Span, scale: float = 1.0) -> np.ndarray:
        """The pixels (C, h, w) of a window, see `Raster.read`."""
        return self.read_with_validity(rows, columns, scale)[0]

    def valid(self, rows: Span, columns: Span, scale: float = 1.0) -> np.ndarray:
        """Where the window has data (h, w); of an area at a scale below 1, where a part of it has."""
        return self.read_with_validity(rows, columns, scale)[1]

    def read_with_validity(
        self, rows: Span, columns: Span, scale: float = 1.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """The pixels (C, h, w) of a window, and where it has data (h, w)."""
        if scale == 1:
            return self._stored(rows, columns)
        level = self._overview(scale)
        small = self._dataset(level)
        shrink = small.height / self.shape[1], small.width / self.shape[2]
        edges = (
            window_edges(span, scale, factor) for span, factor in zip((rows, columns), shrink, strict=True)
        )
        return area_average(lambda *spans: self._stored(*spans, level), *edges)

    def _stored(
        self, rows: Span, columns: Span, overview: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        window = load_rasterio().windows.Window.from_slices(rows, columns)
        with gdal_explained(self.name):
            pixels, valid = self.bands.read(self._dataset(overview), window)
        return pixels, valid if self.parts is None else valid & self.covered(rows, columns)

    def covered(self, rows: Span, columns: Span) -> np.ndarray:
        """Where a mosaic without nodata value has sources (h, w); only for those with `parts`."""
        return covered(self.parts, rows, columns)

    def _overview(self, scale: float) -> int | None:
        """The smallest overview that has at least 2 x 2 pixels for each at this scale, and is not a mere selection of pixels."""
        if self.parts is not None:
            return None
        with gdal_explained(self.name):
            factors = self.dataset.overviews(self.bands.indices[0])
            fitting = [level for level, factor in enumerate(factors) if 2 * factor * scale <= 1]
            averaged = (
                lv for lv in fitting[::-1] if self._dataset(lv).tags(1).get("RESAMPLING") != "NEAREST"
            )
            return next(averaged, None)

    def close(self) -> None:
        """Closes the file; reading opens it again."""
        for dataset in getattr(self._open, "datasets", {}).values():
            dataset.close()
        self._open.datasets = {}


def _is_turned(path: str) -> bool:
    """Whether a file has another EXIF orientation than upright."""
    try:
        return read_orientation(path, pixel_limit=1 << 62) != 1
    except ImageReadError:
        return False
