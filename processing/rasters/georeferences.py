"""Where rasters lie on Earth, and whether two of them have the same grid of pixels."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

TOLERANCE = 0.05  # of a pixel, by which the corners of equal grids may differ


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


def georeference_of(dataset: Any) -> Georeference:
    """The georeference of rasterio's dataset. An identity transform is that of a file without one."""
    points, points_crs = dataset.gcps
    transform = None if dataset.transform.is_identity else dataset.transform
    return Georeference(dataset.crs, transform, tuple(points), points_crs, dataset.rpcs)


def check_same_grid(image: Any, mask: Any, name: str) -> None:
    """Compares the grids of an image and its mask, where both have a georeference.

    Args:
        image: Raster of the image; any object without a georeference fits.
        mask: Raster of the mask.
        name: Name of the pair in messages.

    Raises:
        ValueError: If they differ in coordinate reference system, position, rotation or size of pixels.
    """
    one, other = (getattr(raster, "georeference", None) for raster in (image, mask))
    if one is None or other is None:
        return
    found = difference(one, other, image.shape[-2:])
    if found:
        raise ValueError(
            f"the mask of '{name}' is on another grid than its image: {found}. Warp it onto the grid of the image by nearest "
            "neighbor, for example with gdalwarp -r near, or `rio warp --like`."
        )


def difference(one: Georeference, other: Georeference, size: Sequence[int]) -> str:
    """How two georeferences of rasters of this (height, width) differ, in words; "" if they do not, or cannot be compared."""
    if one.crs and other.crs and one.crs != other.crs:
        return f"{crs_name(other.crs)} in place of {crs_name(one.crs)}"
    if one.transform is None and other.transform is None:
        return points_difference(one, other)
    if one.transform is None or other.transform is None:
        return ""
    height, width = size
    corners = np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]])
    places = np.linalg.solve(matrix_of(one.transform), matrix_of(other.transform) @ corners)
    shifts = np.abs(places - corners).max(0)
    if shifts.max() <= TOLERANCE:
        return ""
    worst = shifts.argmax()
    return (
        f"{described(other.transform)} in place of {described(one.transform)}, so that its pixel {tuple(corners[:2, worst].tolist())} "
        f"(column, row) lies on pixel ({places[0, worst]:.6g}, {places[1, worst]:.6g}) of the image"
    )


def points_difference(one: Georeference, other: Georeference) -> str:
    """How the control points of two rasters differ in words, where both have some; "" if they do not."""
    if not (one.gcps and other.gcps):
        return ""
    if one.gcps_crs != other.gcps_crs:
        return f"control points in {crs_name(other.gcps_crs)} in place of {crs_name(one.gcps_crs)}"
    places = [sorted((p.row, p.col, p.x, p.y) for p in points) for points in (one.gcps, other.gcps)]
    return "" if places[0] == places[1] else "other control points"


def matrix_of(transform: Any) -> np.ndarray:
    """An affine map as a matrix (3, 3)."""
    rows = (transform.a, transform.b, transform.c), (transform.d, transform.e, transform.f), (0, 0, 1)
    return np.array(rows, dtype=np.float64)


def crs_name(crs: Any) -> str:
    """A short name of a coordinate reference system, such as EPSG:32632."""
    return str(crs) if len(str(crs)) < 40 else str(crs)[:40] + "..."


def described(transform: Any) -> str:
    """Origin and pixel size of a transform, for messages."""
    return (
        f"origin ({transform.c:.10g}, {transform.f:.10g}) and pixels of {transform.a:.6g} x {transform.e:.6g}"
    )
