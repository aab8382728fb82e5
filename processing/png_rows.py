"""Looks into PNG files: finds those with fewer rows than their header states, which Pillow silently fills with black."""

import io
import struct
import zlib
from typing import BinaryIO

import numpy as np
from PIL import Image

PALETTE = 3
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of the PNG color types
METADATA = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
WHOLE_IMAGE = ((0, 0, 1, 1),)
ADAM7_PASSES = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)


def misses_rows(image: Image.Image, file: BinaryIO) -> bool:
    """Returns whether a decoded PNG has less pixel data than its size requires.

    Missing rows are decoded as zeros, so the data is measured only if the last row is black or the image is
    interlaced.
    """
    if image.format != "PNG" or not (image.info.get("interlace") or _last_row_is_black(image)):
        return False
    file.seek(0)
    return _stored_bytes(file) < _expected_bytes(file)


def _last_row_is_black(image: Image.Image) -> bool:
    return not np.asarray(image.crop((0, image.height - 1, image.width, image.height))).any()


def _expected_bytes(file: BinaryIO) -> int:
    file.seek(16)
    width, height, depth, color_type, _, _, interlaced = struct.unpack(">IIBBBBB", file.read(13))
    expected = 0
    for left, top, step_x, step_y in ADAM7_PASSES if interlaced else WHOLE_IMAGE:
        columns = max(0, (width - left + step_x - 1) // step_x)
        rows = max(0, (height - top + step_y - 1) // step_y)
        if columns:
            expected += rows * (1 + (columns * depth * CHANNELS[color_type] + 7) // 8)  # 1: the filter byte
    return expected


def _stored_bytes(file: BinaryIO) -> int:
    file.seek(8)
    inflate, stored = zlib.decompressobj(), 0
    while len(header := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", header)
        data = file.read(length)
        file.read(4)  # the checksum, which Pillow has verified
        while kind == b"IDAT" and data:
            stored += len(inflate.decompress(data, 1 << 20))  # in pieces, so that memory stays small
            data = inflate.unconsumed_tail
    return stored


def is_palette(data: bytes) -> bool:
    """Whether the pixels of a PNG file are indices of a palette."""
    return data[25] == PALETTE


def has_late_metadata(file: BinaryIO) -> bool:
    """Whether a PNG has metadata behind its pixels, where it may hold an EXIF orientation."""
    position, is_behind_pixels = file.tell(), False
    file.seek(8)
    try:
        while len(header := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", header)
            is_behind_pixels |= kind == b"IDAT"
            if is_behind_pixels and kind in METADATA:
                return True
            file.seek(length + 4, io.SEEK_CUR)
        return False
    finally:
        file.seek(position)  # Pillow continues where it stopped
