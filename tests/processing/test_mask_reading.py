"""Masks as stored: samples that Pillow scales, lossy codecs, files with several frames."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
import torch
from cases import each
from PIL import Image

from contextseg.processing.image_reading import ImageReadError, read_image
from contextseg.processing.label_maps import LabelMap
from contextseg.processing.mask_reading import read_mask
from contextseg.processing.orientation import turn_upright

IDS = np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3), np.ones((4, 4), np.uint8))
COLORS = np.array([[0, 0, 0], [128, 64, 128], [0, 0, 142], [9, 9, 9], [255, 0, 0], [0, 255, 7]], np.uint8)


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def photo(height=12, width=16):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def packed(ids, bits):
    """Rows of samples of a few bits, each row in whole bytes."""
    planes = ids[..., None] >> np.arange(bits)[::-1] & 1
    return [np.packbits(row).tobytes() for row in planes.reshape(len(ids), -1)]


def gray_png(ids, bits, interlaced=False):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    passes = [
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ]
    parts = [ids[y::dy, x::dx] for x, y, dx, dy in passes] if interlaced else [ids]
    rows = b"".join(b"\0" + row for part in parts if part.size for row in packed(part, bits))
    header = struct.pack(">IIBBBBB", ids.shape[1], ids.shape[0], bits, 0, 0, 0, interlaced)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def gray_tiff(ids, bits, zero_is_white=False, low_bit_first=False):
    """One uncompressed strip."""
    data = b"".join(packed(ids, bits))
    if low_bit_first:
        data = bytes(int(f"{byte:08b}"[::-1], 2) for byte in data)
    tags = {256: ids.shape[1], 257: ids.shape[0], 258: bits, 259: 1, 262: int(not zero_is_white)}
    tags |= {266: 1 + low_bit_first, 273: 134}
    tags |= {277: 1, 278: ids.shape[0], 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + data


def tiff(array, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def test_palette_masks_keep_their_indices():
    ids = np.array([[0, 7], [200, 255]], np.uint8)
    image = Image.fromarray(ids)
    image.putpalette([9] * 768)
    np.testing.assert_array_equal(read_mask(encoded(image)), ids)


def test_palette_masks_become_colors_where_a_table_has_only_colors():
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.putpalette([1, 2, 3, 4, 5, 6])
    table = LabelMap({(1, 2, 3): 0, (4, 5, 6): 1})
    assert read_mask(encoded(image), table=table).tolist() == [[[1, 2, 3], [4, 5, 6]]]


@each("dtype", [bool, np.uint8, np.uint16, np.int32])
def test_gray_masks_of_every_depth_keep_their_ids(dtype):
    ids = np.array([[0, 1], [1, 0]]) if dtype is bool else np.array([[0, np.iinfo(dtype).max], [1, 2]])
    image = Image.fromarray(ids.astype(dtype))
    file = encoded(image, "TIFF" if dtype is np.int32 else "PNG")
    np.testing.assert_array_equal(read_mask(file), ids)


@each("mode", ["RGB", "RGBA"])
def test_color_masks_keep_their_colors(mode):
    colors = photo()
    np.testing.assert_array_equal(read_mask(encoded(Image.fromarray(colors).convert(mode))), colors)


@each("shape", [(4, 5), (1, 4, 5), (4, 5, 1)])
def test_array_masks_may_have_an_axis_of_one(shape):
    assert read_mask(torch.ones(shape, dtype=torch.int64)).shape == (4, 5)


def test_a_jpeg_mask_is_refused():
    with pytest.raises(ImageReadError, match=r"lossy compression \(JPEG\)"):
        read_mask(encoded(Image.new("L", (8, 8)), "JPEG"))


def test_a_float_mask_is_refused():
    with pytest.raises(ImageReadError, match="class ids are integers"):
        read_mask(np.zeros((2, 2), np.float32))
    with pytest.raises(ImageReadError, match="mode F"):
        read_mask(encoded(Image.new("F", (2, 2)), "TIFF"))


def test_a_mask_is_turned_by_its_own_orientation():
    exif = Image.Exif()
    exif[0x0112] = 8
    ids = np.arange(6, dtype=np.uint8).reshape(2, 3)
    np.testing.assert_array_equal(read_mask(encoded(Image.fromarray(ids), exif=exif)), turn_upright(ids, 8))


def test_a_mask_of_several_jpeg_frames_is_refused_too():
    frame = Image.new("RGB", (8, 8))
    file = encoded(frame, "MPO", save_all=True, append_images=[frame])
    with pytest.raises(ImageReadError, match=r"lossy compression \(MPO\)"):
        read_mask(file)


@each("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("encode", [gray_png, gray_tiff], ids=["png", "tiff"])
def test_samples_of_a_few_bits_are_the_ids(encode, bits):
    ids = np.arange(9 * 13, dtype=np.uint8).reshape(9, 13) % min(1 << bits, 200)
    np.testing.assert_array_equal(read_mask(encode(ids, bits)), ids)


@each("bits", [1, 2, 4, 8])
def test_samples_of_interlaced_and_inverted_files_are_the_ids(bits):
    ids = np.arange(9 * 13, dtype=np.uint8).reshape(9, 13) % min(1 << bits, 200)
    np.testing.assert_array_equal(read_mask(gray_png(ids, bits, interlaced=True)), ids)
    for low_bit_first in (False, bits < 8):  # Pillow cannot read that of 8 bits
        np.testing.assert_array_equal(read_mask(gray_tiff(ids, bits, True, low_bit_first)), ids)


def test_the_samples_of_an_opened_pil_image_are_the_ids():
    np.testing.assert_array_equal(read_mask(Image.open(io.BytesIO(gray_png(IDS % 4, 2)))), IDS % 4)


@pytest.mark.parametrize("file", [b"P5 3 1 2\n\0\1\2", b"P2 3 1 2\n0 1 2\n"], ids=["binary", "text"])
def test_the_samples_of_a_pgm_with_a_small_range_are_the_ids(file):
    assert read_mask(file).tolist() == [[0, 1, 2]]


def test_the_samples_of_a_16_bit_pgm_are_the_ids():
    assert read_mask(b"P5 2 1 300\n\0\x07\1\x2c").tolist() == [[7, 300]]


def test_textures_are_refused():
    with pytest.raises(ImageReadError, match=r"lossy compression \(block-compressed DDS\)"):
        read_mask(encoded(Image.fromarray(photo()), "DDS", pixel_format="DXT1"))


@each("dtype", ["int64", "uint64"])
def test_ids_of_64_bits_in_a_tiff_are_kept(dtype):
    np.testing.assert_array_equal(read_mask(tiff(IDS.astype(dtype))), IDS)


@each(
    ("file", "message"),
    {
        "lossy": (lambda: tiff(IDS, compression="jpegxl"), "compression JPEGXL, which may change"),
        "pages": (lambda: tiff(np.stack([IDS, IDS]).astype("int64")), "has 2 pages"),
        "floats": (lambda: tiff(IDS.astype("float64")), "class ids are integers"),
    },
)
def test_a_tiff_that_only_tifffile_reads_must_be_a_lossless_mask_of_integers(file, message):
    with pytest.raises(ImageReadError, match=message):
        read_mask(file())


def test_16_bit_channels_are_refused_because_pillow_cuts_them():
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 4, 0, 0, 0))
    file = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0\0\7\xff\xff"))
    with pytest.raises(ImageReadError, match="channels of 16 bits"):
        read_mask(file + chunk(b"IEND", b""))


@pytest.mark.parametrize(("bits", "levels"), [(4, range(16)), (8, (0, 255))])
def test_a_gray_bmp_that_pillow_misreads_is_refused(bits, levels):
    palette = b"".join(bytes([level] * 3 + [0]) for level in levels)
    info = struct.pack("<IiiHHIIiiII", 40, 4, 1, 1, bits, 0, 4, 0, 0, len(levels), 0)
    header = b"BM" + struct.pack("<IHHI", 58 + len(palette), 0, 0, 54 + len(palette))
    with pytest.raises(ImageReadError, match="gray palette that Pillow cannot read"):
        read_mask(header + info + palette + b"\0\1\1\0")


@each("values", [IDS, IDS > 2])
def test_gray_bmps_are_read(values):
    np.testing.assert_array_equal(read_mask(encoded(Image.fromarray(values), "BMP")), values)


LOSSY = {
    "TIFF": {"compression": "jpeg"},
    "WEBP": {"quality": 80},
    "JPEG2000": {"irreversible": True},
}
LOSSLESS = {"TIFF": {"compression": "tiff_lzw"}, "WEBP": {"lossless": True}, "JPEG2000": {}}


@pytest.mark.parametrize(
    "wrap", [bytes, io.BytesIO, lambda file: Image.open(io.BytesIO(file))], ids=["bytes", "file", "pil"]
)
@each("format", list(LOSSY))
def test_masks_are_refused_by_their_codec_and_not_by_their_format(format, wrap):
    colors = Image.fromarray(COLORS[np.kron(IDS, np.ones((8, 8), np.uint8))])
    with pytest.raises(ImageReadError, match="lossy compression .*changes class ids"):
        read_mask(wrap(encoded(colors, format, **LOSSY[format])))
    np.testing.assert_array_equal(read_mask(wrap(encoded(colors, format, **LOSSLESS[format]))), colors)


def test_lossy_gray_tiff_and_raw_codestreams_are_refused():
    mask = Image.fromarray(np.kron(IDS, np.ones((8, 8), np.uint8)))
    for options in (
        {"format": "TIFF", "compression": "jpeg"},
        {"format": "JPEG2000", "irreversible": True, "no_jp2": True},
    ):
        with pytest.raises(ImageReadError, match="lossy compression"):
            read_mask(encoded(mask, **options))
    np.testing.assert_array_equal(read_mask(encoded(mask, "JPEG2000", no_jp2=True)), mask)


def test_lossy_webp_with_transparency_and_metadata_is_refused():
    image = Image.fromarray(photo()).convert("RGBA")
    image.putalpha(Image.fromarray(photo()[..., 0]))
    with pytest.raises(ImageReadError, match=r"lossy compression \(WebP\)"):
        read_mask(encoded(image, "WEBP", quality=80, exif=b"Exif\0\0"))
    assert read_mask(encoded(image, "WEBP", lossless=True, exact=True, exif=b"Exif\0\0")).shape == (12, 16, 3)


ANIMATED = {"GIF": {}, "PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}


def frames(format):
    first, *rest = (Image.fromarray(COLORS[(IDS + shift) % 6]) for shift in range(3))
    return encoded(first, format, save_all=True, append_images=rest, **ANIMATED[format])


@each("format", list(ANIMATED))
def test_a_mask_with_several_frames_is_refused(format):
    with pytest.raises(ImageReadError, match="has 3 frames, but a mask is one image"):
        read_mask(frames(format))


@each("format", list(ANIMATED))
def test_an_image_with_several_frames_is_read_with_a_note(format, caplog):
    np.testing.assert_array_equal(read_image(frames(format)), COLORS[IDS])
    assert "has 3 frames; only the first one is used" in caplog.text


def test_overviews_in_a_tiff_are_not_frames():
    reduced = Image.fromarray(IDS[::2, ::2])
    reduced.encoderinfo = {"tiffinfo": {254: 1}}
    file = encoded(Image.fromarray(IDS), "TIFF", save_all=True, append_images=[reduced])
    assert Image.open(io.BytesIO(file)).n_frames == 2
    np.testing.assert_array_equal(read_mask(file), IDS)


def test_a_frame_of_a_pil_image_was_chosen_by_its_owner():
    animation = Image.open(io.BytesIO(frames("TIFF")))
    animation.seek(1)
    np.testing.assert_array_equal(read_mask(animation), COLORS[(IDS + 1) % 6])
