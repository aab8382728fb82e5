"""Raster files that rasterio reads: GeoTIFF, COG, VRT, JPEG 2000, as rasters of rasters.py.

Bands are channels. Pixels have no data where all bands have their nodata value, where the mask or alpha band is
0, and where a band is not finite. An alpha band is validity, a palette becomes RGB, scale and offset tags are applied.
"""

import logging
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, lru_cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from .area_averaging import area_average, window_edges
from .image_opening import ImageReadError, read_orientation

RASTER_SUFFIXES = {".tif", ".tiff", ".vrt", ".jp2", ".j2k"}
INSTALL = "Run: pip install 'contextseg[geo]'"
GDAL_OPTIONS = {
    "GDAL_CACHEMAX": 256,  # megabytes: two rows of tiles of a large mosaic
    "GDAL_NUM_THREADS": "1",
    "GDAL_HTTP_CONNECTTIMEOUT": "20",
    "GDAL_HTTP_TIMEOUT": "60",
}
Span = tuple[int, int]


class Georeference(NamedTuple):
    """Where a raster lies on Earth, in rasterio's types.

    Args:
        crs: Coordinate reference system; None if unknown.
        transform: Affine map from (column, row) to coordinates; None if there is none.
        gcps: Ground control points.
        gcps_crs: Coordinate reference system of the control points.
        rpcs: Rational polynomial coefficients; None if there are none.
    """

    crs: Any = None
    transform: Any = None
    gcps: tuple = ()
    gcps_crs: Any = None
    rpcs: Any = None


@lru_cache(maxsize=1)
def load_rasterio() -> ModuleType | None:
    """rasterio, which is imported at first use because that takes long; None if it is not installed."""
    try:
        import rasterio
        import rasterio.windows
    except ImportError:
        return None
    logging.getLogger("rasterio").addHandler(logging.NullHandler())  # errors are raised, with the file's name
    warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning, append=True)
    return rasterio


def is_raster_file(source: Any) -> bool:
    """Whether rasterio reads this source: the path of a local file with the ending of a raster, if it can be opened.

    TIFF files with several pages or an EXIF orientation, but without a georeference, are photographs or scans,
    which `read_image` reads.
    """
    if not isinstance(source, str | os.PathLike) or find_spec("rasterio") is None:
        return False
    path = os.fspath(source)
    if os.path.splitext(path)[1].lower() not in RASTER_SUFFIXES or not _is_regular(path):
        return False
    try:
        with _opened(path) as dataset:
            return _is_referenced(dataset) or (not dataset.subdatasets and not _is_turned(path))
    except ImageReadError:
        return False


class RasterFile:
    """A raster file, read by windows. Instances can be pickled, and used in several threads and processes.

    Args:
        path: Path of the file.
        num_channels: As of `open_raster`.

    Raises:
        ImageReadError: If the file cannot be opened or read.
    """

    def __init__(self, path: str | os.PathLike, num_channels: int | None = None) -> None:
        self.path = os.fspath(path)
        self.name = f"'{self.path}'"
        self._open = threading.local()
        dataset = self.dataset
        interpretation = [kind.name for kind in dataset.colorinterp]
        is_alpha = [kind == "alpha" for kind in interpretation]
        if num_channels == dataset.count:
            is_alpha = [False] * dataset.count
        self.bands = [band for band, alpha in enumerate(is_alpha, 1) if not alpha]
        self.shape = (len(self.bands), dataset.height, dataset.width)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_open"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _open=threading.local())

    @property
    def dataset(self) -> Any:
        """rasterio's dataset of this thread and process."""
        opened = getattr(self._open, "dataset", None)
        if opened is None or self._open.process != os.getpid():
            opened = _open_dataset(self.path)
            self._open.dataset, self._open.process = opened, os.getpid()
        return opened

    @cached_property
    def georeference(self) -> Georeference:
        """Where the raster lies."""
        return georeference_of(self.dataset)

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
        if scale != 1:
            return area_average(self._stored, window_edges(rows, scale), window_edges(columns, scale))
        return self._stored(rows, columns)

    def _stored(self, rows: Span, columns: Span) -> tuple[np.ndarray, np.ndarray]:
        rasterio = load_rasterio()
        window = rasterio.windows.Window.from_slices(rows, columns)
        with explaining(self.name):
            pixels = self.dataset.read(self.bands, window=window)
            valid = self.dataset.dataset_mask(window=window) > 0
        if pixels.dtype.kind == "f":
            valid &= np.isfinite(pixels).all(0)
        return pixels, valid

    def close(self) -> None:
        """Closes the file; reading opens it again."""
        if getattr(self._open, "dataset", None) is not None:
            self._open.dataset.close()
            self._open.dataset = None


def georeference_of(dataset: Any) -> Georeference:
    """The georeference of rasterio's dataset. An identity transform is that of a file without one."""
    points, points_crs = dataset.gcps
    transform = None if dataset.transform.is_identity else dataset.transform
    return Georeference(dataset.crs, transform, tuple(points), points_crs, dataset.rpcs)


@contextmanager
def explaining(name: str) -> Iterator[None]:
    """Context manager with GDAL's settings, which turns what rasterio raises into an ImageReadError with the name."""
    rasterio = load_rasterio()
    try:
        with rasterio.Env(**GDAL_OPTIONS):
            yield
    except rasterio.errors.RasterioError as error:
        cause = error.__cause__ or error
        raise ImageReadError(
            f"{name} cannot be read: {cause}. Copy it again, or restore its parts."
        ) from error


def _open_dataset(path: str) -> Any:
    if load_rasterio() is None:
        raise ImageReadError(f"'{path}' needs rasterio. {INSTALL}")
    with explaining(f"'{path}'"):
        return load_rasterio().open(path)


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    with _open_dataset(path) as dataset:
        yield dataset


def _is_regular(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False


def _is_referenced(dataset: Any) -> bool:
    return any(georeference_of(dataset))


def _is_turned(path: str) -> bool:
    """Whether a TIFF file has another orientation than upright."""
    try:
        return read_orientation(path, pixel_limit=1 << 62) != 1
    except ImageReadError:
        return False
