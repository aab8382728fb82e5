"""Which parts of a virtual mosaic (VRT) its sources cover: without a nodata value, GDAL reads its gaps as zeros.

Only plain mosaics are looked at. A VRT that warps, or computes pixels, is taken as it is.
"""

import os
from xml.etree import ElementTree

import numpy as np

SOURCES = ("SimpleSource", "ComplexSource", "AveragedSource", "NoDataFromMaskSource")
MOST_NESTED = 8  # mosaics in mosaics that are looked into
Rectangle = tuple[float, float, float, float]  # left, top, width, height in pixels


def covered_parts(path: str, depth: int = 0) -> list[Rectangle] | None:
    """The rectangles that the sources of a mosaic's bands cover; None if they are not known, or are everything.

    Of a source that is a mosaic itself, these are the parts that its own sources cover.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError):
        return None
    bands = root.findall("VRTRasterBand")
    if not bands or root.get("subClass") or any(band.get("subClass") for band in bands):
        return None
    parts: dict[Rectangle, None] = {}
    for band in bands:
        sources = [source for source in band if source.tag in SOURCES]
        if not sources or any(source.find("DstRect") is None for source in sources):
            return None
        for source in sources:
            parts.update(dict.fromkeys(parts_of_source(source, os.path.dirname(path), depth)))
    return list(parts)


def parts_of_source(source: ElementTree.Element, folder: str, depth: int) -> list[Rectangle]:
    """The rectangles of a mosaic that one of its sources covers."""
    whole, name = rectangle(source, "DstRect"), source.find("SourceFilename")
    is_mosaic = name is not None and (name.text or "").lower().endswith(".vrt") and depth < MOST_NESTED
    if not is_mosaic or source.find("SrcRect") is None:
        return [whole]
    inner = name.text if name.get("relativeToVRT") != "1" else os.path.join(folder, name.text)
    parts = covered_parts(inner, depth + 1)
    if parts is None:
        return [whole]
    (x, y, width, height), (left, top, wide, high) = rectangle(source, "SrcRect"), whole
    found = []
    for start, row, columns, rows in parts:
        edges = np.clip([start - x, start + columns - x], 0, width) * (wide / width) + left
        lines = np.clip([row - y, row + rows - y], 0, height) * (high / height) + top
        found.append((*map(float, (edges[0], lines[0], edges[1] - edges[0], lines[1] - lines[0])),))
    return found


def rectangle(source: ElementTree.Element, name: str) -> Rectangle:
    """Left, top, width and height of a source's `SrcRect` or `DstRect`."""
    place = source.find(name)
    return tuple(float(place.get(key)) for key in ("xOff", "yOff", "xSize", "ySize"))


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
