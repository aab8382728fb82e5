"""Files whose pixels Pillow cannot hold: every sample arrives as stored, and errors say what to do."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import tifffile
from cases import each
from PIL import Image

from contextseg.processing import array_files
from contextseg.processing.image_opening import ImageReadError
from contextseg.processing.image_reading import read_channels, read_image
from contextseg.processing.mask_reading import read_mask

BANDS = np.arange(6 * 9 * 5, dtype=np.uint16).reshape(6, 9, 5)


def as_npy(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def as_tiff(array, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def as_png(colors, filter_byte=b"\0"):
    """A PNG with 16 bits for each of three or four channels, which Pillow cannot write."""
    height, width, channels = colors.shape
    rows = b"".join(filter_byte + row.tobytes() for row in colors.astype(">u2"))
    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


SAME_IMAGE = {
    "npy, channels last": as_npy(BANDS),
    "npy, channels first": as_npy(BANDS.transpose(2, 0, 1)),
    "TIFF, pixels": as_tiff(BANDS, photometric="minisblack", planarconfig="contig"),
    "TIFF, planes": as_tiff(BANDS.transpose(2, 0, 1), photometric="minisblack", planarconfig="separate"),
    "TIFF, tiles": as_tiff(
        BANDS, photometric="minisblack", planarconfig="contig", tile=(16, 16), compression="lzw"
    ),
}


@each("file", SAME_IMAGE)
def test_the_channels_of_a_file_arrive_as_stored(file):
    pixels = read_channels(file, 5, value_range=(0, 255))
    np.testing.assert_array_equal(pixels, BANDS.clip(max=255))


def test_the_wanted_channels_decide_which_axis_they_are():
    square = np.zeros((8, 8, 20), np.uint8)
    assert read_channels(as_npy(square), 20).shape == (8, 8, 20)
    assert read_channels(as_npy(square.transpose(2, 0, 1)), 20).shape == (8, 8, 20)


@each("file", {"PNG": as_png(BANDS[..., :3]), "TIFF": as_tiff(BANDS[..., :3], photometric="rgb")})
def test_colors_of_16_bits_keep_their_lower_bits(file):
    np.testing.assert_array_equal(read_image(file, value_range=(0, 255)), BANDS[..., :3].clip(max=255))


def test_the_alpha_channel_of_16_bits_keeps_its_lower_bits():
    pixels = read_channels(as_png(BANDS[..., :4]), 4, value_range=(0, 255))
    np.testing.assert_array_equal(pixels, BANDS[..., :4].clip(max=255))


def test_masks_can_be_npy_files_whatever_their_name(tmp_path):
    np.save(tmp_path / "mask.npy", BANDS[..., 0])
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.npy"), BANDS[..., 0])
    np.testing.assert_array_equal(read_mask((tmp_path / "mask.npy").read_bytes()), BANDS[..., 0])
    (tmp_path / "text.npy").write_text("0 0 1")
    with pytest.raises(ImageReadError, match=r"text\.npy' is empty, damaged at its start"):
        read_mask(tmp_path / "text.npy")


@each(
    "file",
    {"npy": as_npy(BANDS)[:8] + b"\xff\xff", "PNG": as_png(BANDS[..., :3])[:33] + b"\xff\xff\xff\xffIDAT"},
)
def test_a_stated_length_of_gigabytes_allocates_nothing(file, tmp_path):
    (tmp_path / "image").write_bytes(file.replace(b"NUMPY\1\0\xff\xff", b"NUMPY\3\0\xff\xff\xff\xff"))
    tracemalloc.start()
    with pytest.raises(ImageReadError, match="cannot be decoded"):
        read_image(tmp_path / "image")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@each(
    ("file", "message"),
    {
        "more channels than wanted": (as_npy(BANDS), r"has 5 channels.*--num-channels 5"),
        "no image": (as_npy(np.zeros((2, 3, 4, 5))), r"shape \(2, 3, 4, 5\).*an image is"),
        "no numbers": (as_npy(np.array([[None]])), "the type object"),
        "cut": (as_npy(BANDS)[:300], "cannot be decoded"),
        "an unfinished header": (as_npy(BANDS).replace(b"}", b" "), "cannot be decoded"),
        "an unknown filter of rows": (as_png(BANDS[..., :3], b"\x09"), "cannot be decoded"),
        "cut TIFF": (SAME_IMAGE["TIFF, pixels"][:200], "cannot be decoded"),
        "too large": (as_npy(np.zeros((40, 40, 5), np.uint8)), "above the limit of 1000 pixels"),
        "too large TIFF": (
            as_tiff(np.zeros((40, 40, 5), np.uint8), photometric="minisblack", planarconfig="contig"),
            "above the limit of 1000 pixels",
        ),
    },
)
def test_files_that_cannot_be_used_are_answered_in_words(file, message):
    with pytest.raises(ImageReadError, match=message):
        read_image(file, pixel_limit=1000)


def test_a_file_that_is_called_npy_but_is_not_one_is_read_as_what_it_is(tmp_path):
    path = tmp_path / "mask.npy"
    Image.fromarray(np.eye(3, dtype=np.uint8)).save(path, format="PNG")
    np.testing.assert_array_equal(read_mask(path), np.eye(3))
    path.write_bytes(b"PK\3\4 an archive")
    with pytest.raises(ImageReadError, match="mask.npy' is empty, damaged"):
        read_mask(path)


def test_without_tifffile_the_error_names_its_extra(monkeypatch):
    monkeypatch.setattr(array_files, "tifffile", None)
    with pytest.raises(ImageReadError, match=r"pip install 'contextseg\[tiff\]'"):
        read_channels(SAME_IMAGE["TIFF, pixels"], 5)
