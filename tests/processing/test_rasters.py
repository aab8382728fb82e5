"""Windows of rasters in memory: arrays, memory maps, decoded images, and rasters of one's own."""

import numpy as np
import pytest
import torch
from cases import each
from PIL import Image

from contextseg import SegmentationImageProcessor
from contextseg.processing.image_opening import ImageReadError
from contextseg.processing.rasters.area_averaging import area_average, window_edges
from contextseg.processing.rasters.raster import ArrayRaster, Raster, open_raster, read_window, window_values


def noise(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, 200, shape).astype(dtype)


class LazyArray:
    """What zarr and its like have: a shape, a type, and slices."""

    def __init__(self, array):
        self.array, self.shape, self.ndim, self.dtype = array, array.shape, array.ndim, array.dtype

    def __getitem__(self, window):
        return self.array[window]


class Slide:
    """The least that a raster is."""

    shape = (3, 40, 50)

    def read(self, rows, columns, scale=1.0):
        assert scale == 1
        return noise(3, 40, 50)[:, slice(*rows), slice(*columns)]


@each("source", {"planes": noise(4, 30, 20), "pixels": np.moveaxis(noise(4, 30, 20), 0, -1)})
def test_channels_of_an_array_are_its_shorter_end(source):
    raster = open_raster(LazyArray(source))
    assert raster.shape == (4, 30, 20)
    np.testing.assert_array_equal(raster.read((3, 9), (5, 20)), noise(4, 30, 20)[:, 3:9, 5:20])


def test_a_memory_map_is_read_by_windows(tmp_path):
    np.save(tmp_path / "a.npy", noise(30, 20, dtype=np.uint16))
    raster = open_raster(np.load(tmp_path / "a.npy", mmap_mode="r"))
    np.testing.assert_array_equal(raster.read((3, 9), (0, 4)), noise(1, 30, 20, dtype=np.uint16)[:, 3:9, :4])


@each("mode", ["RGB", "L", "P", "1", "CMYK", "LA", "RGBA", "I;16"])
def test_a_picture_gives_the_values_that_its_processor_makes_of_it(mode, tmp_path):
    picture = Image.fromarray(noise(12, 9, dtype=np.uint16) if mode == "I;16" else noise(12, 9, 3))
    picture = picture if mode == "I;16" else picture.convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    picture.save(path)
    processor = SegmentationImageProcessor()
    raster = open_raster(path)
    values = window_values(processor, *read_window(raster, 0, 0, 12, 9))
    torch.testing.assert_close(values, processor(path, return_tensors="pt").pixel_values[0], rtol=0, atol=0)


def test_a_picture_has_no_data_where_it_is_transparent(tmp_path):
    picture = noise(20, 30, 4)
    picture[5:9, :7, 3] = 0
    Image.fromarray(picture).save(tmp_path / "a.png")
    pixels, valid = read_window(open_raster(tmp_path / "a.png"), 0, 0, 20, 30)
    np.testing.assert_array_equal(pixels, picture[..., :3].transpose(2, 0, 1))
    np.testing.assert_array_equal(valid, picture[..., 3] > 0)
    assert read_window(open_raster(tmp_path / "a.png", num_channels=4), 0, 0, 20, 30)[1].all()


def test_a_raster_of_ones_own_needs_a_shape_and_read_only():
    raster = open_raster(Slide())
    assert isinstance(raster, Raster)
    pixels, valid = read_window(raster, -2, 45, 5, 9)
    assert not valid[:2].any()
    assert not valid[:, 5:].any()
    assert valid[2:, :5].all()
    np.testing.assert_array_equal(pixels[:, 2:, :5], noise(3, 40, 50)[:, :3, 45:])


def test_a_window_beside_the_raster_has_no_data():
    pixels, valid = read_window(Slide(), 100, 0, 4, 6)
    assert pixels.shape == (3, 4, 6)
    assert not pixels.any()
    assert not valid.any()


def test_values_without_data_are_the_mean_whatever_is_stored():
    pixels, valid = noise(3, 8, 8, dtype=np.float32), np.ones((8, 8), dtype=bool)
    pixels[:, 2], valid[2] = np.nan, False
    values = window_values(SegmentationImageProcessor(value_range=(0, 255)), pixels, valid)
    assert (values[:, 2] == 0).all()
    assert values.isfinite().all()


def test_unknown_black_and_white_name_the_raster_whatever_a_window_holds():
    pixels = np.zeros((3, 4, 4), dtype=np.int16)
    with pytest.raises(ImageReadError, match=r"scene\.tif' has int16 values.*value_range"):
        window_values(SegmentationImageProcessor(), pixels, np.ones((4, 4), dtype=bool), "'scene.tif'")


@each("factor", [1, 2, 3, 5])
def test_whole_areas_are_means_of_blocks(factor):
    array = noise(2, 30, 60, dtype=np.float64)
    blocks = array.reshape(2, 30 // factor, factor, 60 // factor, factor).mean((2, 4))
    np.testing.assert_allclose(ArrayRaster(array).read((0, 30), (0, 60), 1 / factor), blocks)


@each(("rows", "scale"), [((0, 31), 0.3), ((5, 28), 0.45), ((7, 8), 0.1), ((0, 31), 0.9)])
def test_areas_of_any_size_keep_the_mean_of_the_window(rows, scale):
    array = noise(1, 31, 17, dtype=np.float64)
    small = ArrayRaster(array).read(rows, (0, 17), scale)
    assert small.shape == (1, max(1, round((rows[1] - rows[0]) * scale)), max(1, round(17 * scale)))
    assert small.mean() == pytest.approx(array[:, slice(*rows)].mean())


def test_means_over_areas_leave_out_what_has_no_data():
    pixels, valid = np.full((1, 4, 8), 7.0), np.ones((4, 8), dtype=bool)
    pixels[:, :, 3:], valid[:, 3:] = np.nan, False
    means, found = area_average(
        lambda rows, columns: (
            pixels[:, slice(*rows), slice(*columns)],
            valid[slice(*rows), slice(*columns)],
        ),
        window_edges((0, 4), 0.5),
        window_edges((0, 8), 0.5),
    )
    np.testing.assert_array_equal(means, [[[7, 7, 0, 0]] * 2])
    np.testing.assert_array_equal(found, [[True, True, False, False]] * 2)


def test_an_array_has_no_data_where_it_is_not_finite():
    array = np.full((4, 4, 2), 3.0)
    array[0, 0, 1], array[2:, 2:] = np.inf, np.nan
    pixels, valid = read_window(ArrayRaster(array), 0, 0, 4, 4, 0.5)
    np.testing.assert_array_equal(valid, [[True, True], [True, False]])
    assert (pixels[:, valid] == 3).all()


def test_a_window_across_the_border_is_reduced_with_its_outside():
    raster = ArrayRaster(np.full((1, 8, 8), 9, dtype=np.uint8))
    pixels, valid = read_window(raster, -4, -4, 16, 16, 0.25)
    np.testing.assert_array_equal(pixels[0], np.pad(np.full((2, 2), 9), 1))
    np.testing.assert_array_equal(valid, np.pad(np.ones((2, 2), dtype=bool), 1))


@each("source", ["/vsicurl/http://a/b.tif", "s3://bucket/b.tif", "/nowhere/b.tif"])
def test_what_is_not_on_this_machine_is_refused_by_name(source):
    with pytest.raises(ImageReadError, match=source):
        open_raster(source)


def test_numbers_that_are_not_pixels_are_refused():
    with pytest.raises(ImageReadError, match="complex64"):
        open_raster(np.zeros((3, 4, 4), dtype=np.complex64))
