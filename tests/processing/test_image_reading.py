import io
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import each
from PIL import ExifTags, Image

from contextseg.processing.image_opening import read_orientation
from contextseg.processing.image_reading import (
    ImageReadError,
    read_channels,
    read_image,
)
from contextseg.processing.mask_reading import read_mask
from contextseg.processing.orientation import TURNS, turn_back, turn_upright

DATA = Path(os.environ.get("CONTEXTSEG_DATA", Path(__file__).parents[3] / "shared" / "data"))
ODD_IMAGES = DATA / "odd-images"
MANIFEST = ODD_IMAGES / "manifest.json"
ODD_FILES = json.loads(MANIFEST.read_text())["files"] if MANIFEST.exists() else []


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def photo(height=12, width=16):
    """Smooth, so that JPEG keeps it."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.stack([red, green, np.full_like(red, 90)], -1).astype(np.uint8)


def png_with(width, height, data, interlaced=0):
    """A gray PNG with this size in its header and these bytes, filter bytes included, as its pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, interlaced))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.skipif(not ODD_FILES, reason=f"no {MANIFEST}; set CONTEXTSEG_DATA")
@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Image appears to be a malformed MPO")
def test_every_odd_image_behaves_as_its_manifest_says():
    wrong = []
    for entry in ODD_FILES:
        expected = entry["expect"]
        try:
            image = read_image(ODD_IMAGES / entry["file"])
        except ImageReadError as error:
            fine = "error" in expected["outcome"] and entry["file"] in str(error)
        else:
            mean = np.asarray(image).mean((0, 1))
            far = np.abs(mean - expected.get("mean_rgb", mean)).max() > expected.get("mean_tolerance", 0)
            fine = "ok" in expected["outcome"] and list(image.size) == expected.get("size", list(image.size))
            fine = fine and not far and image.mode == "RGB"
        wrong += [] if fine else [entry["file"]]
    assert wrong == []


@pytest.mark.skipif(not ODD_FILES, reason=f"no {MANIFEST}; set CONTEXTSEG_DATA")
def test_a_real_png_with_too_few_rows_is_refused():
    with pytest.raises(ImageReadError, match="fewer than the 3000 rows"):
        read_image(ODD_IMAGES / "too_few_rows.png")


@each("make", [Path, str, lambda path: path.read_bytes(), lambda path: path.open("rb"), Image.open])
def test_a_file_can_come_as_path_bytes_file_or_pil_image(tmp_path, make):
    path = tmp_path / "photo.png"
    Image.fromarray(photo()).save(path)
    np.testing.assert_array_equal(read_image(make(path)), photo())


@each(
    "array",
    [
        photo(),
        photo().transpose(2, 0, 1),
        torch.from_numpy(photo()),
        torch.from_numpy(photo()).permute(2, 0, 1),
    ],
)
def test_arrays_and_tensors_can_have_their_channels_first_or_last(array):
    np.testing.assert_array_equal(read_image(array), photo())


def test_an_array_three_pixels_high_has_its_channels_last_and_a_tensor_first():
    array = photo(3, 3)
    np.testing.assert_array_equal(read_image(array), array)
    np.testing.assert_array_equal(read_image(torch.from_numpy(array)), array.transpose(1, 2, 0))
    np.testing.assert_array_equal(
        read_image(array, input_data_format="channels_first"), array.transpose(1, 2, 0)
    )


@each("orientation", range(1, 9))
def test_exif_orientation_is_applied_and_can_be_taken_back(orientation):
    stored = photo()
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encoded(Image.fromarray(stored), exif=exif)
    upright = read_image(file)
    assert upright.size == ((12, 16) if orientation >= 5 else (16, 12))
    assert read_orientation(file) == orientation
    for channel in range(3):
        mask = torch.from_numpy(np.array(upright)[..., channel])
        np.testing.assert_array_equal(turn_back(mask, orientation), stored[..., channel])


@each("orientation", range(2, 9))
def test_turning_upright_is_what_pillow_does(orientation):
    methods = [None, None, "FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE"]
    methods += ["ROTATE_270", "TRANSVERSE", "ROTATE_90"]
    expected = Image.fromarray(photo()).transpose(Image.Transpose[methods[orientation]])
    np.testing.assert_array_equal(turn_upright(photo(), orientation), expected)
    assert len(TURNS) == 8


def test_a_tiff_is_turned_once():
    exif = Image.Exif()
    exif[0x0112] = 6
    file = encoded(Image.fromarray(photo()), "TIFF", exif=exif)
    np.testing.assert_array_equal(read_image(file), turn_upright(photo(), 6))
    assert read_orientation(file) == 6


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@each("block", [b"Exif\0\0II*\0garbage", b"Exif\0\0", b"nonsense"])
def test_bad_exif_does_not_stop_loading(block):
    file = encoded(Image.fromarray(photo()), "JPEG", exif=block)
    assert read_image(file).size == (16, 12)
    assert read_orientation(file) == 1


def test_palette_images_become_colors_and_lose_their_alpha():
    image = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8))
    image.putpalette([255, 0, 0, 0, 0, 255])
    pixels = np.asarray(read_image(encoded(image, transparency=bytes([0, 128]))))
    np.testing.assert_array_equal(pixels, [[[255, 0, 0], [0, 0, 255]], [[0, 0, 255], [255, 0, 0]]])


@each("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_every_8_bit_mode_becomes_rgb(mode):
    white = Image.new("RGB", (3, 2), "white").convert(mode)
    assert np.asarray(read_image(white)).tolist() == [[[255, 255, 255]] * 3] * 2


def test_lab_is_converted_with_color_management():
    red = Image.merge("LAB", [Image.new("L", (3, 2), level) for level in (136, 208, 195)])
    assert (
        np.abs(np.asarray(read_image(red))[0, 0].astype(int) - (255, 0, 0)).max() <= 12
    )  # 8 bits for L, a and b


@each(("dtype", "format"), [("<u2", "PNG"), ("<u2", "TIFF"), (">u2", "TIFF")])
def test_16_bit_gray_is_divided_by_257(dtype, format):
    gray = np.array([[0, 257, 32768], [40000, 65534, 65535]], dtype)
    file = encoded(Image.fromarray(gray), format)
    expected = np.round(gray / 257).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(read_image(file))[..., 1], expected)
    np.testing.assert_array_equal(np.asarray(read_image(gray))[..., 2], expected)


def test_float_images_need_a_value_range():
    floats = np.array([[-1.0, 0.0, 1.0, 2.0]], np.float32)
    for source in (floats, encoded(Image.fromarray(floats), "TIFF")):
        with pytest.raises(ImageReadError, match="value_range"):
            read_image(source)
        assert np.asarray(read_image(source, value_range=(-1, 1)))[0, :, 0].tolist() == [0, 128, 255, 255]


def test_nan_is_refused():
    with pytest.raises(ImageReadError, match="NaN"):
        read_image(np.full((2, 2), np.nan, np.float32), value_range=(0, 1))


def test_value_range_leaves_8_bit_images_alone():
    np.testing.assert_array_equal(read_image(photo(), value_range=(0, 1)), photo())


def test_only_the_first_frame_is_read():
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    file = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.asarray(read_image(file))[0, 0].tolist() == [255, 0, 0]


def test_channels_are_kept_where_asked():
    six = np.arange(24, dtype=np.uint8).reshape(2, 2, 6)
    np.testing.assert_array_equal(read_channels(six, 6), six)
    np.testing.assert_array_equal(read_channels(torch.from_numpy(six).permute(2, 0, 1), 6), six)
    rgba = Image.fromarray(six[..., :4])
    np.testing.assert_array_equal(read_channels(encoded(rgba), 4), six[..., :4])
    np.testing.assert_array_equal(read_channels(encoded(rgba), 3), six[..., :3])


def test_16_bit_channels_keep_their_precision():
    gray = np.array([[1, 2, 65535]], np.uint16)
    np.testing.assert_allclose(
        read_channels(encoded(Image.fromarray(gray)), 1)[..., 0], gray / 257, rtol=1e-6
    )


def test_a_wrong_number_of_channels_is_named():
    with pytest.raises(ImageReadError, match="3 channels, but 5 are needed"):
        read_channels(encoded(Image.fromarray(photo())), 5)


@each(
    "content",
    {
        "empty": b"",
        "html": b"<!DOCTYPE html><title>404</title>",
        "truncated jpeg": encoded(Image.fromarray(photo(60, 80)), "JPEG")[:-300],
        "truncated png": encoded(
            Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8))
        )[:2000],
        "too few rows": png_with(4, 9, b"\0\x40\x40\x40\x40" * 3),
        "too few passes": png_with(2, 2, b"\0\x40", interlaced=1),
    },
)
def test_a_damaged_file_raises_an_error_that_names_it(tmp_path, content):
    path = tmp_path / "street_0042.png"
    path.write_bytes(content)
    with pytest.raises(ImageReadError, match=r"street_0042\.png.*take it out of the data"):
        read_image(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ImageReadError, match=r"nowhere\.png' does not exist"):
        read_image(tmp_path / "nowhere.png")


@each(("mode", "size"), [("1", (9, 5)), ("L", (1, 1)), ("RGB", (5, 3)), ("I;16", (3, 9))])
def test_a_black_image_is_not_taken_for_a_damaged_one(mode, size):
    assert np.asarray(read_image(encoded(Image.new(mode, size)))).max() == 0


def test_an_interlaced_image_is_not_taken_for_a_damaged_one():
    file = png_with(2, 2, b"\0\x10" + b"\0\x20" + b"\0\x30\x40", interlaced=1)
    assert np.asarray(read_image(file))[..., 0].tolist() == [[0x10, 0x20], [0x30, 0x40]]


def test_the_pixel_limit_is_the_callers_and_not_pillows(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    file = encoded(Image.fromarray(photo()))
    assert read_image(file, pixel_limit=12 * 16).size == (16, 12)
    with pytest.raises(ImageReadError, match="16x12, above the limit of 191 pixels.*raise `pixel_limit`"):
        read_image(file, pixel_limit=191)
    assert Image.MAX_IMAGE_PIXELS == 50


@each("source", [None, 3, {"path": "a.png"}])
def test_what_is_no_image_at_all_is_a_type_error(source):
    with pytest.raises(TypeError, match="Give a path"):
        read_image(source)


def test_true_is_white():
    mask = np.array([[False, True]])
    assert np.asarray(read_image(mask))[..., 0].tolist() == [[0, 255]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value):
    with pytest.raises(ImageReadError, match="NaN or infinite"):
        read_image(np.array([[0.5, value]], np.float32), value_range=(0, 1))


def test_a_stream_that_cannot_go_back_is_read():
    class Stream(io.BytesIO):
        def seekable(self):
            return False

        def seek(self, *_):
            raise io.UnsupportedOperation("seek")

    stream = Stream(encoded(Image.new("L", (3, 2), 7), "PNG"))
    assert (read_mask(stream) == np.full((2, 3), 7)).all()


def test_32_bit_integers_of_a_tiff_need_a_range_as_they_are():
    file = encoded(Image.fromarray(np.array([[0, 70_000]], np.int32)), "TIFF")
    with pytest.raises(ImageReadError, match="0 to 70000: black and white are unknown"):
        read_image(file)
    assert np.asarray(read_image(file, value_range=(0, 70_000)))[..., 0].tolist() == [[0, 255]]


@pytest.mark.parametrize("code", [0, 9])
def test_an_orientation_that_does_not_exist_is_upright(code):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = code
    assert read_orientation(encoded(Image.new("L", (3, 2)), "JPEG", exif=exif)) == 1


def test_values_beyond_float32_are_black_or_white():
    pixels = read_channels(np.array([[-1e300, 0.5, 1e300]]), 1, value_range=(0, 1))
    np.testing.assert_array_equal(pixels[..., 0], [[0, 127.5, 255]])
