"""Areas of the classes of a mask as polygons in GeoJSON (RFC 7946).

Polygons are those of the whole mask, written one a line as they are found; GDAL holds them all, but never the mask.
Coordinates are longitude and latitude; those of the scene's CRS, which is then named; or pixels where the scene has
no reference, which the file then says.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic_write import atomic_write
from ..plain_text import one_line
from .gdal import gdal_errors, load_rasterio, writing_explained
from .georeferences import Georeference

LONGITUDE_LATITUDE = "EPSG:4326"
DIGITS = 9  # decimal places of degrees: a tenth of a millimeter
BATCH = 1000  # polygons that are transformed together
Map = Callable[[np.ndarray], np.ndarray]


def write_polygons(
    target: Path, mask: Path, reference: Georeference | None, names: Sequence[str], crs: str = "wgs84"
) -> None:
    """Writes the polygons of a mask; a feature is one connected area of a class, with its id and name.

    Args:
        target: The GeoJSON file; its folder is created if needed.
        mask: The mask, a file of class ids that rasterio reads.
        reference: The place of the mask on Earth; None if it is unknown.
        names: Class names by id.
        crs: "wgs84" for longitude and latitude, or "scene" for the scene's own CRS.

    Raises:
        OSError: If the file cannot be written.
        ValueError: If the scene's CRS has no longitude and latitude.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as temporary, writing_explained(target):
        places, about = coordinates(reference or Georeference(), crs)
        with temporary.open("w", encoding="utf-8") as file, load_rasterio().open(mask) as dataset:
            file.write(json.dumps({"type": "FeatureCollection", **about})[:-1] + ', "features": [')
            separator = "\n"
            for feature in features(dataset, places, names, is_degrees=not about):
                file.write(separator + json.dumps(feature, ensure_ascii=False))
                separator = ",\n"
            file.write("\n]}\n")


def check_coordinates(reference: Georeference | None, crs: str) -> None:
    """Raises ValueError if polygons of a raster with this reference cannot have the coordinates that are asked for."""
    try:
        coordinates(reference or Georeference(), crs)[0](np.zeros((1, 2)))
    except gdal_errors() as error:
        raise ValueError(
            f"the raster's coordinates cannot be computed: {error}. Leave out the polygons."
        ) from error


def features(
    dataset: Any, places: Map, names: Sequence[str], *, is_degrees: bool
) -> Iterator[dict[str, Any]]:
    """Yields the connected areas of all classes of a dataset as features of GeoJSON."""
    rasterio = load_rasterio()
    found = rasterio.features.shapes(rasterio.band(dataset, 1), connectivity=4)
    to_pixels = ~dataset.transform
    of_classes = ((shape["coordinates"], int(value)) for shape, value in found if value < len(names))
    while batch := list(islice(of_classes, BATCH)):
        rings = [np.asarray(ring) for polygon, _ in batch for ring in polygon]
        points = places(
            np.concatenate(rings) if dataset.transform.is_identity else pixels_of(to_pixels, rings)
        )
        placed = iter(np.split(points, np.cumsum([len(ring) for ring in rings])[:-1]))
        for polygon, label in batch:
            corners = [next(placed) for _ in polygon]
            if is_degrees:
                corners = across_antimeridian(corners)
            yield {
                "type": "Feature",
                "properties": {"class_id": label, "class": one_line(names[label])},
                "geometry": {
                    "type": "Polygon",
                    "coordinates": [turned(ring, index == 0) for index, ring in enumerate(corners)],
                },
            }


def pixels_of(to_pixels: Any, rings: Sequence[np.ndarray]) -> np.ndarray:
    """Corners in the coordinates of a transform -> corners of pixels (N, 2), (column, row); they are whole numbers."""
    return np.round(mapped(to_pixels, np.concatenate(rings)))


def mapped(transform: Any, points: np.ndarray) -> np.ndarray:
    """Applies an affine map to points (N, 2)."""
    a, b, c, d, e, f = tuple(transform)[:6]
    x, y = points.T
    return np.stack([a * x + b * y + c, d * x + e * y + f], axis=1)


def across_antimeridian(rings: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Rings of a polygon in degrees without jumps from 180 to -180: longitudes go on beyond 180 there."""
    longitudes = [np.unwrap(ring[:, 0], period=360) for ring in rings]
    if any(lon[0] != lon[-1] for lon in longitudes):  # around a pole
        return list(rings)
    middle = longitudes[0].mean()
    shifts = [360 * np.round((middle - lon.mean()) / 360) for lon in longitudes]
    moved = [(lon + shift).round(DIGITS) for lon, shift in zip(longitudes, shifts, strict=True)]
    return [np.stack([lon, ring[:, 1]], axis=1) for lon, ring in zip(moved, rings, strict=True)]


def turned(ring: np.ndarray, is_outer: bool) -> list[list[float]]:
    """A closed ring (N, 2) in the order of RFC 7946: outer rings counterclockwise, holes clockwise."""
    x, y = ring.T
    area = (x[:-1] * y[1:] - x[1:] * y[:-1]).sum()
    return (ring if (area > 0) == is_outer else ring[::-1]).tolist()


def coordinates(reference: Georeference, crs: str) -> tuple[Map, dict[str, Any]]:
    """Returns the function from corners of pixels (N, 2) to coordinates, and what the file says about these."""
    to_scene, scene_crs = scene_coordinates(reference)
    if to_scene is None:
        about = {"crs": None, "coordinates": "pixels: column and row from the upper left corner"}
        return lambda pixels: pixels, about
    if scene_crs is None:
        about = {"crs": None, "coordinates": "those of the scene, whose coordinate system is unknown"}
        return to_scene, about
    if crs == "scene":
        code = scene_crs.to_authority()
        name = f"urn:ogc:def:crs:{code[0]}::{code[1]}" if code else scene_crs.to_wkt()
        return to_scene, {"crs": {"type": "name", "properties": {"name": name}}}
    return lambda pixels: longitude_latitude(scene_crs, to_scene(pixels)), {}


def scene_coordinates(reference: Georeference) -> tuple[Map | None, Any]:
    """Returns the function from corners of pixels (N, 2) to coordinates of the scene, and their CRS; None if unknown."""
    if reference.transform is not None:
        return lambda pixels: mapped(reference.transform, pixels), reference.crs
    rasterio = load_rasterio()
    if reference.gcps:
        transformer, crs = (
            rasterio.transform.GCPTransformer(list(reference.gcps), tps=True),
            reference.gcps_crs,
        )
    elif reference.rpcs is not None:
        transformer, crs = (
            rasterio.transform.RPCTransformer(reference.rpcs),
            rasterio.crs.CRS.from_string(LONGITUDE_LATITUDE),
        )
    else:
        return None, None
    return lambda pixels: np.stack(transformer.xy(pixels[:, 1], pixels[:, 0], offset="ul"), axis=1), crs


def longitude_latitude(crs: Any, points: np.ndarray) -> np.ndarray:
    """Coordinates (N, 2) of a CRS -> longitude and latitude. Raises ValueError if the CRS has none."""
    cause = "points outside of its area"
    try:
        placed = np.stack(load_rasterio().warp.transform(crs, LONGITUDE_LATITUDE, *points.T.tolist()), axis=1)
        if np.isfinite(placed).all():
            return placed.round(DIGITS)
    except gdal_errors() as error:
        cause = str(error)[:200]
    raise ValueError(
        f"the raster's coordinate system does not give longitude and latitude ({cause}). Use its own coordinates: "
        "--polygons-crs scene."
    )
