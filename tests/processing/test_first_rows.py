"""Files shortened to their first rows: the same pixels, and only where the file is complete."""

import io
import zlib

import numpy as np
import pytest
from cases import each
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from contextseg.processing import png_decoding
from contextseg.processing.crop_images import DecodedImage, EncodedImage, encoded_image
from contextseg.processing.data.augmentation import JointAugmentation
from contextseg.processing.data.datasets import SegmentationFolder
from contextseg.processing.first_rows import rows_of
from contextseg.processing.image_reading import ImageReadError, read_image

SIZE = (110, 40)
NOISE = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def saved(form="PNG", mode="RGB", noise=NOISE, **options):
    file = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(file, form, **options)
    return file.getvalue()


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)))


@each("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@each("options", [{}, {"progressive": True}, {"restart_marker_blocks": 7}])
@each("mode", ["RGB", "L", "CMYK"])
def test_the_first_rows_of_a_jpeg_are_those_of_the_whole_image(subsampling, options, mode):
    data = saved("JPEG", mode, subsampling=subsampling, **options)
    found = rows_of(data)
    for rows in (1, 16, SIZE[0] - found.margin - 1):
        short = pixels(found.shortened(rows))
        assert rows <= len(short) < SIZE[0]
        np.testing.assert_array_equal(short[:rows], pixels(data)[:rows])


def test_blocks_that_the_decoder_smooths_are_those_of_the_whole_image():
    data = saved("JPEG", subsampling="4:2:0", progressive=True, quality=40)
    second_scan = data.index(b"\xff\xda", data.index(b"\xff\xda") + 1)
    data = data[:second_scan] + b"\xff\xd9"  # without the high frequencies
    for rows in (16, 32):
        np.testing.assert_array_equal(pixels(rows_of(data).shortened(rows))[:rows], pixels(data)[:rows])


@each("mode", ["RGB", "L", "P", "RGBA", "1"])
def test_the_first_rows_of_a_png_are_those_of_the_whole_image(mode):
    data = saved(mode=mode)
    np.testing.assert_array_equal(pixels(rows_of(data).shortened(60)), pixels(data)[:60])


@each("form", ["PNG", "JPEG"])
def test_all_rows_are_the_file_itself(form):
    assert rows_of(saved(form)).shortened(SIZE[0]) is None


@each("form", ["PNG", "JPEG"])
def test_what_is_cut_off_or_altered_is_not_shortened(form):
    data = saved(form)
    assert all(rows_of(data[:length]) is None for length in (3, 12, len(data) // 2, len(data) - 1))
    if form == "PNG":
        assert rows_of(data[:-40] + bytes([data[-40] ^ 1]) + data[-39:]) is None


def test_files_with_two_headers_or_stray_markers_are_not_shortened():
    png, jpeg = saved(), saved("JPEG")
    assert rows_of(png[:33] + png[8:]) is None
    assert rows_of(jpeg[:2] + b"\xff\xd0\0\x02" + jpeg[2:]) is None


@each("key", ["date:create", "XML:com.adobe.xmp", "Raw profile type exif"])
def test_only_texts_that_may_state_an_orientation_are_metadata(key):
    texts = PngInfo()
    texts.add_text(key, "text")
    assert rows_of(saved(pnginfo=texts)).has_metadata == (key != "date:create")


def test_a_file_object_is_read_from_its_start_as_decoders_do():
    file = io.BytesIO(b"abc" + saved())
    file.seek(3)
    assert encoded_image(file, read_image, 1 << 30) is None


def test_other_formats_and_animations_are_not_shortened():
    frames = [Image.fromarray(NOISE), Image.fromarray(255 - NOISE)]
    assert rows_of(saved(save_all=True, append_images=frames)) is None
    assert rows_of(saved("MPO", save_all=True, append_images=frames)) is None
    assert rows_of(saved("BMP")) is None


@each("form", ["PNG", "JPEG"])
def test_a_window_of_a_file_is_that_of_the_decoded_image(form, tmp_path, monkeypatch):
    monkeypatch.setattr(png_decoding, "imagecodecs", None)
    path = tmp_path / "image"
    path.write_bytes(saved(form))
    decoded = []
    image = encoded_image(path, lambda source: decoded.append(source) or read_image(source), 1 << 30)
    for box in ((3, 5, 40, 30), (60, 0, 50, 40)):
        expected = DecodedImage(read_image(path)).window(*box)[0]
        np.testing.assert_array_equal(image.window(*box)[0], expected)
    np.testing.assert_array_equal(image(-4, 5, 40, 30)[0], DecodedImage(read_image(path))(-4, 5, 40, 30)[0])
    assert isinstance(decoded[0], io.BytesIO)
    assert decoded[1:] == [path]  # once for all that needs the last row


def test_turned_and_too_large_images_are_left_to_the_decoder_as_a_whole(tmp_path):
    exif = Image.Exif()
    path = tmp_path / "image.jpg"
    for orientation, is_encoded in ((1, True), (6, False)):
        exif[0x0112] = orientation
        path.write_bytes(saved("JPEG", exif=exif))
        assert isinstance(encoded_image(path, read_image, 1 << 30), EncodedImage) == is_encoded
    assert encoded_image(path, read_image, 1000) is None
    assert encoded_image(tmp_path / "missing.jpg", read_image, 1 << 30) is None


def test_if_the_first_rows_cannot_be_decoded_the_whole_file_decides(tmp_path):
    data = saved()
    position = data.index(b"IDAT") + 8
    broken = data[:position] + b"\0\0\0\0" + data[position + 4 :]
    length = int.from_bytes(data[position - 12 : position - 8], "big")
    end = position - 4 + length
    checksum = zlib.crc32(broken[position - 8 : end]).to_bytes(4, "big")
    path = tmp_path / "image.png"
    path.write_bytes(broken[:end] + checksum + broken[end + 4 :])
    image = encoded_image(path, read_image, 1 << 30)
    with pytest.raises(ImageReadError, match=r"image\.png' cannot be decoded"):
        image.window(0, 0, 10, 10)


@each("form", ["png", "jpg"])
def test_crops_of_files_are_those_of_decoded_images(form, tmp_path):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    Image.fromarray(NOISE).save(tmp_path / "images" / f"one.{form}")
    Image.fromarray(NOISE[..., 0] % 3).save(tmp_path / "masks" / "one.png")
    data = SegmentationFolder(tmp_path, ["a", "b", "c"])
    assert isinstance(data.windowed(0)["image"], EncodedImage)
    with pytest.raises(ValueError, match="the image has 3 channels"):
        JointAugmentation((24, 24), fill=(0,)).crop(data.windowed(0), epoch=0, index=0)
    for options in ({}, {"rotation": 20}, {"context_ratio": 2, "fill": (124.0, 116.0, 104.0)}):
        augmentation = JointAugmentation((24, 24), **options)
        for epoch in range(3):
            found, expected = (
                augmentation.crop(sample, epoch=epoch, index=0) for sample in (data.windowed(0), data[0])
            )
            for name in ("image", "mask"):
                np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(expected[name]))
