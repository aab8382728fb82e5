"""Which parts of a virtual mosaic (VRT) its sources cover: without a nodata value, GDAL reads its gaps as zeros.

Only plain mosaics are looked at. A VRT that warps, or computes pixels, is taken as it is.
"""

from xml.etree import ElementTree

import numpy as np

SOURCES = ("SimpleSource", "ComplexSource", "AveragedSource", "NoDataFromMaskSource")
Rectangle = tuple[float, float, float, float]  # left, top, width, height in pixels


def covered_parts(path: str) -> list[Rectangle] | None:
    """The rectangles that the sources of a mosaic's first band cover; None if they are not known, or are everything."""
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError):
        return None
    band = root.find("VRTRasterBand")
    if band is None or root.get("subClass") or band.get("subClass"):
        return None
    sources = [source for source in band if source.tag in SOURCES]
    places = [source.find("DstRect") for source in sources]
    if not sources or any(place is None for place in places):
        return None
    return [tuple(float(place.get(key)) for key in ("xOff", "yOff", "xSize", "ySize")) for place in places]


def covered(parts: list[Rectangle], rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
    """Where one of the parts lies in a window: (h, w) bool."""
    inside = np.zeros((rows[1] - rows[0], columns[1] - columns[0]), dtype=bool)
    for left, top, width, height in parts:
        first, last = np.floor([top + 0.5, left + 0.5]), np.floor([top + height + 0.5, left + width + 0.5])
        (row, column), (end_row, end_column) = (
            np.maximum(0, (place - (rows[0], columns[0]))).astype(int) for place in (first, last)
        )
        inside[row:end_row, column:end_column] = True
    return inside


__all__ = ["covered", "covered_parts"]
