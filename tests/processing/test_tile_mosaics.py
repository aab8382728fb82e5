"""FLAIR-HUB's tiles become one image per area, and the mosaics are data like any other."""

import numpy as np
import pytest
from raster_writing import grid, noise, write_raster

from contextseg import check_data, open_data
from contextseg.processing.data.tile_mosaics import write_flair_mosaics
from contextseg.processing.image_opening import ImageReadError
from contextseg.scripts import mosaic

SIDE = 8
PIXELS, IDS = noise(4, 2 * SIDE, 3 * SIDE), noise(2 * SIDE, 3 * SIDE) % 19
PLACES = {1: (0, 0), 2: (0, 1), 3: (0, 2), 4: (1, 0)}  # a corner and more are not there


@pytest.fixture
def tiles(tmp_path):
    """One area of four tiles, which lie in a grid of two rows and three columns."""
    for number, (row, column) in PLACES.items():
        window = slice(row * SIDE, (row + 1) * SIDE), slice(column * SIDE, (column + 1) * SIDE)
        place = grid(500000 + column * SIDE * 0.2, 5400000 - row * SIDE * 0.2, size=0.2)
        for kind, pixels in (("AERIAL_RGBI", PIXELS[:, *window]), ("AERIAL_LABEL-COSIA", IDS[window])):
            folder = tmp_path / f"hub/D004-2021_{kind}/AA-S1"
            folder.mkdir(parents=True, exist_ok=True)
            write_raster(folder / f"{kind}_D004-2021_AA-S1_{number}.tif", pixels, transform=place)
    return tmp_path / "hub"


def test_a_mosaic_has_the_pixels_and_labels_of_its_tiles_and_gaps_without_label(tiles, tmp_path):
    assert mosaic.main([str(tiles), "--output", str(tmp_path / "train")]) == 0
    data = open_data(tmp_path / "train", num_channels=4)
    assert (len(data), data[0]["name"], len(data.classes)) == (1, "D004-2021_AA-S1", 15)
    expected, there = np.where(IDS > 14, 255, IDS), np.ones(IDS.shape, dtype=bool)
    there[SIDE:, SIDE:] = False
    np.testing.assert_array_equal(data[0]["mask"], np.where(there, expected, 255))
    np.testing.assert_array_equal(data[0]["image"][there], PIXELS[:, there].T)
    assert check_data(data).problems == []


def test_a_split_file_chooses_tiles_by_path_or_name(tiles, tmp_path):
    split = tmp_path / "train.csv"
    split.write_text(
        "AERIAL_RGBI,fold\nD004-2021_AERIAL_RGBI/AA-S1/AERIAL_RGBI_D004-2021_AA-S1_2.tif,1\nD004-2021_AA-S1_3,1\n"
    )
    assert write_flair_mosaics(tiles, tmp_path / "train", split) == 1
    mask = open_data(tmp_path / "train")[0]["mask"]
    np.testing.assert_array_equal(mask, np.where(IDS > 14, 255, IDS)[:SIDE, SIDE:])
    split.write_text("D099_elsewhere_1\n")
    with pytest.raises(ValueError, match=r"train\.csv' names none of the 4 tiles"):
        write_flair_mosaics(tiles, tmp_path / "other", split)


def test_tiles_that_cannot_be_merged_are_named(tiles, tmp_path):
    tile = tiles / "D004-2021_AERIAL_RGBI/AA-S1/AERIAL_RGBI_D004-2021_AA-S1_2.tif"
    for options, words in (
        ({"transform": grid(size=0.3)}, "not on the grid"),
        ({"reference": False}, "no coordinates"),
    ):
        write_raster(tile, PIXELS[:, :SIDE, :SIDE], **options)
        with pytest.raises((ValueError, ImageReadError), match=rf"S1_2\.tif' .*{words}"):
            write_flair_mosaics(tiles, tmp_path / "train")
    (tiles / "D004-2021_AERIAL_LABEL-COSIA/AA-S1/AERIAL_LABEL-COSIA_D004-2021_AA-S1_4.tif").unlink()
    with pytest.raises(ValueError, match=r"AA-S1_4\.tif' has no label"):
        write_flair_mosaics(tiles, tmp_path / "train")
