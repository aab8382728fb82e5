"""Masks in raster files: labels, pixels without one, and the grid that they share with their image."""

import json

import numpy as np
import pytest
from cases import each
from raster_writing import UTM, grid, noise, rasterio, write_raster

from contextseg import check_data, open_data
from contextseg.processing.label_maps import LabelMap
from contextseg.processing.mask_reading import ImageReadError, read_mask
from contextseg.processing.rasters.georeferences import Georeference, difference
from contextseg.processing.rasters.masks import RasterMask

SHAPE = (24, 30)
IDS = noise(*SHAPE) % 3
TOP = np.zeros(SHAPE, dtype=bool)
TOP[:5] = True
COLORS = np.uint8([[10, 20, 30], [200, 0, 0], [0, 200, 0]])
TABLE = LabelMap(num_classes=3)
COLORED = LabelMap(num_classes=3, palette=COLORS.tolist())
ORDER = np.uint8([2, 0, 1])


def ids_with(value, dtype):
    return np.where(TOP, dtype(value), IDS.astype(dtype))


@each(
    ("pixels", "options", "table", "unlabeled"),
    {
        "plain": (IDS, {}, TABLE, False),
        "64 bits": (IDS.astype(np.int64), {}, TABLE, False),
        "nodata": (ids_with(-9999, np.int16), {"nodata": -9999}, TABLE, TOP),
        "nodata of bytes": (ids_with(200, np.uint8), {"nodata": 200}, TABLE, TOP),
        "nodata is a class": (IDS, {"nodata": 0}, TABLE, False),
        "mask band": (IDS, {"valid": ~TOP}, TABLE, TOP),
        "colors": (np.moveaxis(COLORS[IDS], -1, 0), {}, COLORED, False),
        "colors with mask band": (np.moveaxis(COLORS[IDS], -1, 0), {"valid": ~TOP}, COLORED, TOP),
        "palette in another order": (ORDER[IDS], {"colors": COLORS[np.argsort(ORDER)]}, COLORED, False),
    },
)
def test_a_raster_has_the_labels_of_its_ids_or_colors(pixels, options, table, unlabeled, tmp_path):
    path = write_raster(tmp_path / "a.tif", pixels, **options)
    labels = table.decode(read_mask(path, table=table))
    np.testing.assert_array_equal(labels, np.where(unlabeled, 255, IDS))
    window = RasterMask(path, table).read((2, 9), (4, 30))
    np.testing.assert_array_equal(table.decode(window), labels[2:9, 4:30])


@each(
    ("pixels", "options", "words"),
    {
        "floats": (IDS.astype(np.float32), {}, "float32"),
        "two bands": (np.stack([IDS, IDS]), {}, "2 bands"),
        "JPEG": (IDS, {"compress": "jpeg"}, "lossy"),
    },
)
def test_what_cannot_be_a_mask_is_refused_by_name(pixels, options, words, tmp_path):
    with pytest.raises(ImageReadError, match=rf"a\.tif.*{words}"):
        read_mask(write_raster(tmp_path / "a.tif", pixels, **options))


def write_pair(root, image=None, **mask):
    """A folder of one image and its mask."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "classes.json").write_text(json.dumps({"classes": ["a", "b", "c"]}))
    write_raster(root / "images/scene.tif", noise(3, *SHAPE) if image is None else image, nodata=0)
    write_raster(root / "masks/scene.tif", mask.pop("pixels", IDS), **mask)
    return root


@each(
    "mask",
    {
        "another CRS": {"crs": "EPSG:32633"},
        "half a pixel aside": {"transform": grid(x=500005.0)},
        "smaller pixels": {"transform": grid(size=5.0)},
        "larger pixels": {"transform": grid(size=20.0), "pixels": IDS[::2, ::2]},
    },
)
def test_a_mask_on_another_grid_is_refused_by_name(mask, tmp_path):
    data = open_data(write_pair(tmp_path, **mask))
    with pytest.raises(ValueError, match="the mask of 'scene'"):
        data[0]
    assert "the mask of 'scene'" in " ".join(check_data(data).problems)


@each(
    "mask", {"same": {}, "inexact": {"transform": grid(x=500000.001)}, "no reference": {"reference": False}}
)
def test_a_mask_on_the_grid_of_its_image_is_taken(mask, tmp_path):
    data = open_data(write_pair(tmp_path, **mask))
    np.testing.assert_array_equal(data[0]["mask"], IDS)
    assert not check_data(data).problems


def test_pixels_without_data_in_the_image_have_no_label(tmp_path):
    data = open_data(write_pair(tmp_path, np.where(TOP, 0, noise(3, *SHAPE))))
    np.testing.assert_array_equal(data[0]["mask"], np.where(TOP, 255, IDS))


def test_pixels_without_label_are_counted_as_ignored(tmp_path):
    data = open_data(write_pair(tmp_path, pixels=ids_with(-1, np.int16), nodata=-1))
    report = check_data(data)
    assert (report.ignored_pixels, report.problems) == (TOP.sum(), [])


def test_georeferences_of_one_kind_only_are_not_compared():
    crs = rasterio.crs.CRS.from_string(UTM)
    points = Georeference(gcps=(1, 2, 3), gcps_crs=crs)
    assert difference(Georeference(crs, grid()), points, SHAPE) == ""


@each(
    ("moved", "expected"),
    {
        "not": ({}, ""),
        "by a pixel": ({"x": 10.0}, "other control points"),
        "crs": ({"crs": "EPSG:32633"}, "EPSG:32633"),
    },
)
def test_control_points_of_image_and_mask_are_compared(moved, expected):
    def reference(x=0.0, crs="EPSG:32632"):
        points = tuple(rasterio.control.GroundControlPoint(r, 0, x, 9 * r) for r in (0, 5))
        return Georeference(gcps=points, gcps_crs=rasterio.crs.CRS.from_string(crs))

    found = difference(reference(), reference(**moved), SHAPE)
    assert expected in found
    assert bool(expected) == bool(found)
