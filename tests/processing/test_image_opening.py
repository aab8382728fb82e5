import contextlib
import io
import os
import socket
import struct
import threading
import zlib

import numpy as np
import pytest
import torch
from cases import each
from PIL import Image, ImageFile, PngImagePlugin

from contextseg import Inference, SegmentationImageProcessor
from contextseg.processing.image_opening import (
    ImageReadError,
    open_image,
    open_upright,
    read_orientation,
)
from contextseg.processing.image_reading import read_image
from contextseg.processing.mask_reading import read_mask
from contextseg.processing.orientation import TRANSPOSITIONS

READERS = (read_image, read_mask, read_orientation, open_upright)
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".tif": "TIFF", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF"}


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def rotated(code, **options):
    exif = Image.Exif()
    exif[0x0112] = code
    return {"exif": exif, **options}


def png(width, height, *chunks):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(kind, data) for kind, data in [(b"IHDR", header), *chunks, (b"IEND", b"")]
    )


@pytest.fixture
def decodes(monkeypatch):
    """The number of times that Pillow decodes a file."""
    counts = []
    prepare = ImageFile.ImageFile.load_prepare

    def counted(self):
        counts.append(self.format)
        return prepare(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load_prepare", counted)
    return counts


def special_files(folder):
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "to_pipe.png").symlink_to(folder / "pipe.png")
    with contextlib.chdir(folder), contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind("socket.png")  # a path of its own may be too long for a socket
    return {
        "pipe": "a named pipe",
        "to_pipe": "a named pipe",
        "folder": "a folder",
        "zero": "a device",
        "socket": "a socket",
    }


@each("read", READERS)
def test_only_regular_files_are_opened(tmp_path, read):
    kinds = special_files(tmp_path)
    for name, kind in kinds.items():
        with pytest.raises(ImageReadError, match=f"{name}.png' is {kind}, not an image file"):
            read(tmp_path / f"{name}.png")


def test_a_pipe_that_takes_the_place_of_a_file_does_not_wait(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").touch()
    regular = os.stat(tmp_path / "b.png")
    monkeypatch.setattr(os, "stat", lambda _, **__: regular)
    with pytest.raises(ImageReadError, match=r"a\.png"):
        read_image(str(tmp_path / "a.png"))


@each(
    ("make", "said"),
    {
        "lost": (lambda path: path.symlink_to("nothing"), "is a link to 'nothing', which does not exist"),
        "loop": (lambda path: path.symlink_to(path), "leads back to itself"),
        "missing": (lambda _: None, "does not exist. Check the path"),
    },
)
def test_a_path_to_nothing_is_explained(tmp_path, make, said):
    make(tmp_path / "a.png")
    with pytest.raises(ImageReadError, match=said):
        read_image(tmp_path / "a.png")


@each("read", READERS)
@pytest.mark.parametrize("suffix", FORMATS)
def test_what_is_above_the_limit_is_never_decoded(read, suffix, decodes):
    data = encoded(Image.new("L", (40, 30)), FORMATS[suffix])
    with pytest.raises(ImageReadError, match="is 40x30, above the limit of 1199 pixels"):
        read(data, pixel_limit=1199)
    assert decodes == []


@each("read", READERS)
def test_a_bomb_is_refused_by_its_header(read, decodes):
    with pytest.raises(ImageReadError, match="50000x50000, above the limit"):
        read(png(50_000, 50_000, (b"IDAT", zlib.compress(b"\0" * 1000))))
    assert decodes == []


def test_a_small_tiff_of_huge_tiles_is_refused():
    """libtiff allocates a whole tile."""
    tags = {256: 9, 257: 9, 258: 8, 259: 8, 262: 1, 277: 1, 322: 100_000, 323: 100_000, 324: 200, 325: 8}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    data = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(300)
    with pytest.raises(ImageReadError, match="9x9, in tiles of 100000x100000, above the limit"):
        read_image(data)


@each("read", READERS)
@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_a_chunk_that_unpacks_to_more_than_pillow_allows_is_an_error_or_left_out(read, kind):
    bomb = zlib.compress(b"\0" * 3_000_000)
    data = png(1, 1, (kind, b"name\0\0" + bomb), (b"IDAT", zlib.compress(b"\0\0")))
    with contextlib.suppress(ImageReadError):
        read(data)


def test_formats_that_hold_other_images_are_refused():
    with pytest.raises(ImageReadError, match="in the format ICO.*Convert it to PNG"):
        read_image(encoded(Image.new("RGB", (16, 16)), "ICO"))


def test_memory_that_does_not_suffice_is_an_error_of_the_file(monkeypatch):
    def load(_):
        raise MemoryError

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    with pytest.raises(ImageReadError, match="does not fit into memory"):
        read_image(encoded(Image.new("L", (3, 3))))


class Stream:
    """A file that cannot go back, such as the body of an HTTP response."""

    def __init__(self, data, endless=False):
        self.file, self.endless = io.BytesIO(data), endless

    def read(self, size=-1):
        return self.file.read(size) or (b"\0" * size if self.endless else b"")


def test_a_stream_is_read_to_its_end_but_not_for_ever():
    data = encoded(Image.new("RGB", (7, 5)))
    assert read_image(Stream(data)).size == (7, 5)
    with pytest.raises(ImageReadError, match="more than 1600 bytes"):
        read_image(Stream(data, endless=True), pixel_limit=100)


def test_a_socket_is_read_as_a_file():
    here, there = socket.socketpair()
    data = encoded(Image.new("RGB", (7, 5)))
    sending = threading.Thread(target=lambda: (there.sendall(data), there.close()))
    sending.start()
    with here, here.makefile("rb") as file:
        assert read_image(file).size == (7, 5)
    sending.join()


def test_a_text_file_object_is_refused():
    with pytest.raises(ImageReadError, match="is open as text. Open it in binary mode"):
        read_image(io.StringIO("no image"))


@each("code", range(2, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF", "JPEG", "WEBP"])
def test_an_upright_image_and_the_orientation_of_its_file(code, format):
    """TIFF is the one that Pillow turns by itself."""
    stored = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8))
    image, orientation = open_upright(encoded(stored, format, **rotated(code)))
    assert orientation == code
    plain = Image.open(io.BytesIO(encoded(stored, format)))
    assert np.array_equal(
        np.asarray(image), np.asarray(plain.convert(image.mode).transpose(TRANSPOSITIONS[code]))
    )
    assert read_orientation(image) == 1
    assert np.array_equal(np.asarray(read_image(image)), np.asarray(image.convert("RGB")))


def test_the_orientation_of_a_file_is_read_without_decoding_it(decodes):
    for format in ("PNG", "TIFF", "JPEG", "WEBP"):
        assert read_orientation(encoded(Image.new("L", (8, 8)), format, **rotated(6))) == 6
        assert read_orientation(encoded(Image.new("L", (8, 8)), format)) == 1
    assert decodes == []


def test_an_orientation_behind_the_pixels_of_a_png_is_found():
    exif = Image.Exif()
    exif[0x0112] = 8
    data = png(1, 1, (b"IDAT", zlib.compress(b"\0\0")), (b"eXIf", exif.tobytes()[6:]))
    assert read_orientation(data) == open_image(data).orientation == 8


class Segmenter(torch.nn.Module):
    device, dtype, config = torch.device("cpu"), torch.float32, None

    def forward(self, pixel_values):
        return type("Output", (), {"logits": pixel_values})()


@pytest.mark.parametrize("suffix", FORMATS)
def test_one_image_is_decoded_once(tmp_path, suffix, decodes):
    Image.new("RGB", (20, 10)).save(tmp_path / f"a{suffix}")
    path, processor = tmp_path / f"a{suffix}", SegmentationImageProcessor()
    several = Inference(scales=(0.5, 1.0, 1.5), flip=True)
    uses = {
        "the processor": lambda: processor(path, return_tensors="pt"),
        "the processor, and then the orientation": lambda: (
            processor(path),
            processor.read_orientation(path),
        ),
        "inference at three scales": lambda: several(Segmenter(), processor, path),
    }
    for name, use in uses.items():
        decodes.clear()
        use()
        assert len(decodes) == 1, name


@each("subsampling", ["4:4:4", "4:2:0"])
def test_jpeg_files_have_the_pixels_that_pillow_decodes(subsampling):
    noise = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG", subsampling=subsampling)
    np.testing.assert_array_equal(open_image(file).image, Image.open(file))
