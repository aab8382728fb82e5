"""Raster files: values are those of the same picture in PNG, and what the file says about its pixels is followed."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from cases import each
from PIL import Image
from raster_writing import noise, rasterio, write_mosaic, write_raster

from contextseg import SegmentationImageProcessor
from contextseg.processing.image_opening import ImageReadError
from contextseg.processing.image_reading import read_image
from contextseg.processing.rasters.files import RasterFile, is_raster_file
from contextseg.processing.rasters.raster import open_raster, read_window, window_values

SHAPE = (40, 50)
PIXELS = noise(3, *SHAPE)
ALPHA = (
    np.repeat(np.uint8([[0, 128, 255, 255]]), 10, axis=0).repeat([10, 10, 15, 15], axis=1).repeat(4, axis=0)
)
RGB = ("red", "green", "blue")
TABLE = noise(16, 3, seed=1)


def values(source, num_channels=None, **options):
    """The values of a whole raster, and where it has data."""
    if num_channels:
        options |= {
            "do_convert_rgb": False,
            "image_mean": [0.5] * num_channels,
            "image_std": [0.2] * num_channels,
        }
    raster = open_raster(source, num_channels)
    pixels, valid = read_window(raster, 0, 0, *raster.shape[1:])
    return window_values(SegmentationImageProcessor(**options), pixels, valid, raster.name), valid


def whole(path, scale=1.0):
    raster = RasterFile(path)
    return raster.read_with_validity((0, raster.shape[1]), (0, raster.shape[2]), scale)


@each(
    ("pixels", "options", "picture"),
    {
        "bytes": (PIXELS, {}, PIXELS),
        "16 bits": (PIXELS.astype(np.uint16) * 257, {}, PIXELS),
        "planes in tiles": (
            PIXELS,
            {"interleave": "band", "tiled": True, "blockxsize": 16, "blockysize": 32},
            PIXELS,
        ),
        "BigTIFF in lines": (PIXELS, {"BIGTIFF": "YES", "compress": "zstd", "blockysize": 1}, PIXELS),
        "palette": (PIXELS[0] % 16, {"colors": TABLE}, np.moveaxis(TABLE[PIXELS[0] % 16], -1, 0)),
        "4 bits": (PIXELS[:1] % 16, {"NBITS": 4}, PIXELS[:1] % 16 * 17),
        "4 bits of three colors": (PIXELS % 16, {"NBITS": 4}, PIXELS % 16 * 17),
        "marked as blue, green, red": (PIXELS[::-1], {"interpretation": RGB[::-1]}, PIXELS),
        "the same in a plain file": (PIXELS[::-1], {"interpretation": RGB[::-1], "reference": False}, PIXELS),
        "without reference": (PIXELS, {"reference": False}, PIXELS),
        "alpha": (np.concatenate([PIXELS, ALPHA[None]]), {"interpretation": (*RGB, "alpha")}, PIXELS),
        "gray and alpha": (np.stack([PIXELS[0], ALPHA]), {"interpretation": ("gray", "alpha")}, PIXELS[:1]),
    },
)
def test_a_raster_gives_the_values_of_the_same_picture(pixels, options, picture, tmp_path):
    found, valid = values(write_raster(tmp_path / "a.tif", pixels, **options))
    Image.fromarray(np.broadcast_to(picture, (3, *SHAPE)).transpose(1, 2, 0).copy()).save(tmp_path / "a.png")
    expected = SegmentationImageProcessor()(tmp_path / "a.png", return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(found, expected * torch.from_numpy(valid), rtol=0, atol=0)
    np.testing.assert_array_equal(valid, ALPHA > 0 if "alpha" in options.get("interpretation", ()) else True)


HOLE = np.zeros(SHAPE, dtype=bool)
HOLE[5:9, 11:20] = True


def with_hole(value, dtype, bands=slice(None)):
    pixels = PIXELS.astype(dtype)
    pixels[bands, HOLE] = value
    return pixels


@each(
    ("pixels", "options"),
    {
        "nodata": (with_hole(0, np.uint8), {"nodata": 0}),
        "nodata of floats": (with_hole(-9999, np.float32), {"nodata": -9999}),
        "NaN": (with_hole(np.nan, np.float32), {"nodata": float("nan")}),
        "NaN in one band": (with_hole(np.nan, np.float64, 1), {}),
        "infinity": (with_hole(np.inf, np.float32), {"nodata": -9999}),
        "mask band": (PIXELS, {"valid": ~HOLE}),
        "alpha of floats": (
            np.concatenate([PIXELS, ~HOLE[None]]).astype(np.float32),
            {"interpretation": (*RGB, "alpha")},
        ),
    },
)
def test_pixels_without_data_are_not_valid_and_have_the_mean(pixels, options, tmp_path):
    path = write_raster(tmp_path / "a.tif", pixels, **options)
    found, valid = values(path, value_range=(0, 255))
    np.testing.assert_array_equal(valid, ~HOLE)
    assert (found[:, HOLE] == 0).all()
    assert found.isfinite().all()
    np.testing.assert_array_equal(
        np.asarray(read_image(path, value_range=(0, 255)))[valid], PIXELS[:, valid].T
    )


def test_bands_of_several_types_are_read_as_one_that_holds_all(tmp_path):
    bands = []
    for number, kind in enumerate((np.uint8, np.uint16), 1):
        write_raster(tmp_path / f"{number}.tif", PIXELS[:1].astype(kind) * number)
        bands.append(
            f'<VRTRasterBand dataType="{"Byte" if number == 1 else "UInt16"}" band="{number}"><SimpleSource>'
            f'<SourceFilename relativeToVRT="1">{number}.tif</SourceFilename><SourceBand>1</SourceBand></SimpleSource>'
            "</VRTRasterBand>"
        )
    path = tmp_path / "bands.vrt"
    path.write_text(f'<VRTDataset rasterXSize="50" rasterYSize="40">{"".join(bands)}</VRTDataset>')
    pixels, _ = whole(path)
    np.testing.assert_array_equal(pixels, np.stack([PIXELS[0], PIXELS[0].astype(np.uint16) * 2]))
    assert pixels.dtype == np.uint16


def test_nodata_in_one_band_alone_is_a_dark_pixel(tmp_path):
    assert whole(write_raster(tmp_path / "a.tif", with_hole(0, np.uint8, 0), nodata=0))[1].all()


def test_an_alpha_band_is_a_channel_where_so_many_are_needed(tmp_path):
    pixels = np.concatenate([PIXELS, ALPHA[None]])  # GDAL marks the fourth of four bands of bytes as alpha
    path = write_raster(tmp_path / "a.tif", pixels, interpretation=(*RGB, "alpha"))
    found, valid = values(path, num_channels=4)
    assert valid.all()
    torch.testing.assert_close(found, values(pixels, num_channels=4)[0], rtol=0, atol=0)


def test_scale_and_offset_tags_give_true_values(tmp_path):
    scales, offsets = (0.5, 2.0, 0.25), (-1.0, 0.0, 3.0)
    stored = PIXELS.astype(np.int16)
    pixels, _ = whole(write_raster(tmp_path / "a.tif", stored, scales=scales, offsets=offsets))
    assert pixels.dtype == np.float32
    true = stored * np.reshape(scales, (3, 1, 1)) + np.reshape(offsets, (3, 1, 1))
    np.testing.assert_array_equal(pixels, true.astype(np.float32))


@each(
    ("pixels", "options", "words"),
    {
        "complex": (PIXELS.astype(np.complex64), {}, "complex64"),
        "bands": (noise(5, *SHAPE), {}, "5 channels.*--num-channels 5"),
        "range": (PIXELS.astype(np.float32), {}, "value_range"),
        "scale": (PIXELS, {"scales": (1, 0, 1), "offsets": (0, 0, 0)}, "scale tags"),
    },
)
def test_what_a_model_cannot_take_is_refused_by_name(pixels, options, words, tmp_path):
    with pytest.raises(ImageReadError, match=rf"a\.tif.*{words}"):
        values(write_raster(tmp_path / "a.tif", pixels, **options))


def test_a_damaged_file_is_named(tmp_path):
    path = write_raster(tmp_path / "a.tif", noise(3, 200, 200))
    path.write_bytes(path.read_bytes()[:60000])
    for read in (read_image, whole):
        with pytest.raises(ImageReadError, match=r"a\.tif' cannot be read"):
            read(path)


@each("nodata", [None, 0])
def test_gaps_of_a_mosaic_have_no_data_and_a_lost_tile_is_named(nodata, tmp_path):
    tiles = {}
    for name, left in (("a", 0), ("b", 30)):
        write_raster(tmp_path / f"{name}.tif", noise(20, 20), nodata=nodata)
        tiles[f"{name}.tif"] = (left, 0, 20, 20)
    mosaic = write_mosaic(tmp_path / "mosaic.vrt", tiles, (20, 50), nodata)
    valid = whole(mosaic)[1]
    assert valid[:, :20].all()
    assert valid[:, 30:].all()
    assert not valid[:, 20:30].any()
    (tmp_path / "outer").mkdir()
    outer = write_mosaic(tmp_path / "outer/outer.vrt", {mosaic: (5, 10, 50, 20)}, (40, 60))
    outer.write_text(outer.read_text().replace("mosaic.vrt", "../mosaic.vrt"))
    around = np.pad(valid, ((10, 10), (5, 5)))
    np.testing.assert_array_equal(whole(outer)[1], around)
    (tmp_path / "b.tif").unlink()
    with pytest.raises(ImageReadError, match=r"mosaic\.vrt.*b\.tif"):
        whole(mosaic)


@each("options", {"all data": {}, "nodata": {"nodata": 0}})
def test_overviews_give_nearly_what_all_pixels_give(options, tmp_path):
    pixels = noise(1, 128, 192)
    pixels[:, :, :40] = 0
    path = write_raster(tmp_path / "a.tif", pixels, **options)
    full, full_valid = whole(path, 1 / 8)
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4], rasterio.enums.Resampling.average)
    assert RasterFile(path)._overview(1 / 8) == 1
    small, valid = whole(path, 1 / 8)
    np.testing.assert_array_equal(valid, full_valid)
    assert np.abs(small.astype(int) - full)[:, valid].max() <= 1


def test_overviews_that_select_pixels_are_not_used(tmp_path):
    path = write_raster(tmp_path / "a.tif", noise(1, 64, 64))
    full = whole(path, 1 / 8)[0]
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4], rasterio.enums.Resampling.nearest)
    np.testing.assert_array_equal(whole(path, 1 / 8)[0], full)


def test_scans_and_photographs_are_not_raster_files(tmp_path):
    page = Image.fromarray(PIXELS.transpose(1, 2, 0))
    page.save(tmp_path / "pages.tif", save_all=True, append_images=[page])
    turned = page.getexif()
    turned[274] = 6
    page.save(tmp_path / "turned.tif", exif=turned)
    page.convert("CMYK").save(tmp_path / "print.tif")
    page.save(tmp_path / "plain.tif")
    assert [p.stem for p in sorted(tmp_path.iterdir()) if is_raster_file(p)] == ["plain"]


def test_an_open_dataset_is_read_as_its_file(tmp_path):
    path = write_raster(tmp_path / "a.tif", with_hole(0, np.uint8), nodata=0)
    with rasterio.open(path) as dataset:
        raster = open_raster(dataset)
        pixels, valid = read_window(raster, 0, 0, *SHAPE)
        assert raster.georeference.transform == dataset.transform
        np.testing.assert_array_equal(pixels, dataset.read())
    np.testing.assert_array_equal(valid, ~HOLE)
    with rasterio.MemoryFile(path.read_bytes()) as file, pytest.raises(ImageReadError, match="local disk"):
        open_raster(file.open())


def test_a_raster_travels_to_threads_and_processes(tmp_path):
    raster = RasterFile(write_raster(tmp_path / "a.tif", PIXELS))
    sent = pickle.loads(pickle.dumps(raster))
    with ThreadPoolExecutor(4) as threads:
        windows = list(threads.map(lambda top: sent.read((top, top + 5), (3, 40)), range(30)))
    for top, window in enumerate(windows):
        np.testing.assert_array_equal(window, PIXELS[:, top : top + 5, 3:40])


def test_reading_writes_nothing_beside_the_file(tmp_path, capfd):
    path = write_raster(tmp_path / "a.tif", PIXELS, reference=False)
    whole(path, 0.25)
    assert [file.name for file in tmp_path.iterdir()] == ["a.tif"]
    assert capfd.readouterr() == ("", "")
