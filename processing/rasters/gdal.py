"""rasterio as the package uses it: imported at first use, with one set of GDAL's settings, and errors with the file's name."""

import errno
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from ..atomic_write import MEGABYTE
from ..image_opening import ImageReadError

INSTALL_GEO = "Run: pip install 'contextseg[geo]'"
GDAL_OPTIONS = {
    "GDAL_CACHEMAX": 256,  # megabytes: the tiles or lines of a row of windows of a large mosaic
    "GDAL_NUM_THREADS": "1",
    "GDAL_HTTP_CONNECTTIMEOUT": "20",
    "GDAL_HTTP_TIMEOUT": "60",
}


@lru_cache(maxsize=1)
def load_rasterio() -> ModuleType | None:
    """rasterio, which is imported at first use because that takes long; None if it is not installed."""
    try:
        import rasterio
        import rasterio.features
        import rasterio.transform
        import rasterio.warp
        import rasterio.windows
    except ImportError:
        return None
    logging.getLogger("rasterio").addHandler(logging.NullHandler())  # errors are raised, with the file's name
    warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning, append=True)
    return rasterio


def open_dataset(path: str, overview: int | None = None) -> Any:
    """Opens rasterio's dataset of a file, or of one of its overviews. Raises ImageReadError."""
    if load_rasterio() is None:
        raise ImageReadError(f"'{path}' needs rasterio. {INSTALL_GEO}")
    with gdal_explained(f"'{path}'"):
        return load_rasterio().open(path, **({} if overview is None else {"overview_level": overview}))


def gdal_errors() -> tuple[type[Exception], ...]:
    """Returns what rasterio raises for errors of GDAL, of which some are not wrapped."""
    rasterio = load_rasterio()
    return rasterio.errors.RasterioError, rasterio._err.CPLE_BaseError


@contextmanager
def gdal_explained(name: str) -> Iterator[None]:
    """Context manager with GDAL's settings, which turns its errors of reading into ImageReadError with the name."""
    try:
        with load_rasterio().Env(**GDAL_OPTIONS):
            yield
    except (*gdal_errors(), MemoryError) as error:
        raise ImageReadError(
            f"{name} cannot be read: {str(error.__cause__ or error).rstrip('.')}. Copy it again, or restore the files that it consists of."
        ) from error


@contextmanager
def writing_explained(target: Path) -> Iterator[None]:
    """Context manager with GDAL's settings, which turns its errors of writing into OSError with the target's name."""
    try:
        with load_rasterio().Env(**GDAL_OPTIONS):
            yield
    except gdal_errors() as error:
        free = shutil.disk_usage(target.parent).free
        number = errno.ENOSPC if free < MEGABYTE else errno.EIO
        cause = error.__cause__ or error
        raise OSError(
            number, f"cannot be written, {free // MEGABYTE} MB are free: {cause}", str(target)
        ) from error
