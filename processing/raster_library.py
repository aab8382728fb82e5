"""Reaches `rasters/` and the cutting of crops at the moment of use: the code of an exported image processor has neither.

Without contextseg, as in a repository on the Hub, files are read as without rasterio: TIFF and JPEG 2000 as pictures.
"""

import os
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

RASTER_SUFFIXES = {".tif", ".tiff", ".vrt", ".jp2", ".j2k"}
LIBRARY = "contextseg"


def raster_module(source: Any, name: str) -> ModuleType | None:
    """The module of `rasters/` to read a source that may be a raster file, by its ending.

    Args:
        source: Any source of an image or mask.
        name: Name of the module, such as "files".

    Returns:
        The module; None for other sources, and without contextseg also for files that may be pictures.

    Raises:
        ImportError: If the source is a virtual mosaic, and contextseg is not installed.
    """
    suffix = os.path.splitext(str(source))[1].lower() if isinstance(source, str | os.PathLike) else ""
    if suffix not in RASTER_SUFFIXES or (suffix != ".vrt" and find_spec(LIBRARY) is None):
        return None
    return library_module(f"processing.rasters.{name}", f"reading '{source}'")


def library_module(name: str, purpose: str) -> ModuleType:
    """Imports a module of the installed library, such as "processing.pair_cutting".

    The models' function of this name is its twin, because `processing` must not import `modeling`.

    Raises:
        ImportError: If contextseg is not installed; the message begins with the purpose.
    """
    try:
        return import_module(f"{LIBRARY}.{name}")
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] != LIBRARY:
            raise
        raise ImportError(
            f"{purpose} needs the contextseg library; a model's repository has only a part of it. "
            "Install it with `pip install contextseg`."
        ) from error
