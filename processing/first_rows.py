"""Shortens JPEG and PNG files to their first rows, so that a decoder does not spend time on the others.

Both formats are decoded from top to bottom: the height in the header of a copy is lowered, and the pixels of the
rows that are left are those of the whole image, bit for bit. Only files whose structure is complete are shortened: a
JPEG ends with its end marker, and all chunks of a PNG are there and have their checksums. What is not understood is
not shortened.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from .image_opening import HOLDERS_OF_ORIENTATION

PNG = b"\x89PNG\r\n\x1a\n"
PNG_HEADER = struct.Struct(">IIBBBBB")  # width, height, bits, color type, compression, filter, interlace
ANIMATION, HEADER = b"acTL", b"IHDR"
TEXTS = (b"tEXt", b"zTXt", b"iTXt")
METADATA = (b"eXIf", *(kind + key.encode() for kind in TEXTS for key in HOLDERS_OF_ORIENTATION))
JPEG, END_OF_IMAGE = b"\xff\xd8\xff", b"\xff\xd9"
OTHER_FRAMES = {*range(0xC3, 0xD0)} - {0xC4, 0xC8, 0xCC}  # lossless, hierarchical, arithmetic codes
STANDALONE = range(0xD0, 0xDA)  # markers without a length: restarts, start and end of the image
SCAN = 0xDA
APPLICATION_1, APPLICATION_2 = 0xE1, 0xE2  # EXIF or XMP; profiles or further pictures
PICTURES = b"MPF\0"
# Rows decoded beyond those asked for: a block of the coarsest subsampling, 4 to 1, whose colors are interpolated with those below;
# in a progressive JPEG another one, because blocks are smoothed with the two below them where the last scans are missing.
MARGIN = 32
MARGINS = {0xC0: MARGIN, 0xC1: MARGIN, 0xC2: 2 * MARGIN}  # by marker: baseline, extended, progressive


class Rows(NamedTuple):
    """A file that can be shortened.

    Args:
        data: The file.
        size: (height, width) as stored.
        has_metadata: Whether there is metadata that may state an orientation.
        place: Position of the header of the image.
        margin: Rows decoded beyond those asked for; 0 in a PNG.
    """

    data: bytes
    size: tuple[int, int]
    has_metadata: bool
    place: int
    margin: int

    def shortened(self, rows: int) -> bytes | None:
        """The file with at least this many rows, or None if all are needed."""
        rows += self.margin
        if rows >= self.size[0]:
            return None
        if self.margin:
            return self._with(rows.to_bytes(2, "big"))
        header = self.data[self.place : self.place + 17]  # its kind and content
        header = header[:8] + rows.to_bytes(4, "big") + header[12:]
        return self._with(header + struct.pack(">I", zlib.crc32(header)))

    def _with(self, header: bytes) -> bytes:
        """A copy of the file with another header."""
        data = memoryview(self.data)  # slices of it are no copies
        return b"".join((data[: self.place], header, data[self.place + len(header) :]))


def rows_of(data: bytes) -> Rows | None:
    """The rows of a JPEG or PNG file that is complete; None for other files."""
    try:
        if data.startswith(PNG):
            return _rows_of_png(data)
        return _rows_of_jpeg(data) if data.startswith(JPEG) and data.endswith(END_OF_IMAGE) else None
    except (struct.error, IndexError):  # it ends within a header
        return None


def _rows_of_png(data: bytes) -> Rows | None:
    has_metadata, headers, position, kind = False, 0, len(PNG), b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        (checksum,) = struct.unpack_from(">I", data, end)
        if kind == ANIMATION or zlib.crc32(memoryview(data)[position + 4 : end]) != checksum:
            return None
        has_metadata |= data.startswith(METADATA, position + 4)
        headers += kind == HEADER
        position = end + 4
    width, height, *_, interlace = PNG_HEADER.unpack_from(data, 16)
    is_known = data[8:16] == b"\0\0\0\x0dIHDR" and headers == 1 and not interlace
    return Rows(data, (height, width), has_metadata, 12, 0) if is_known else None


def _rows_of_jpeg(data: bytes) -> Rows | None:
    frames, has_metadata = [], False
    for kind, position in _jpeg_segments(data):
        is_part = kind == APPLICATION_2 and data.startswith(PICTURES, position + 4)
        if kind in OTHER_FRAMES or is_part:
            return None
        has_metadata |= kind == APPLICATION_1
        if kind in MARGINS:
            frames.append((position + 5, MARGINS[kind]))
    if len(frames) != 1:
        return None
    place, margin = frames[0]
    size = struct.unpack_from(">HH", data, place)
    return Rows(data, size, has_metadata, place, margin) if size[0] else None


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """The kinds and positions of the segments before the first scan."""
    position, kind = 2, 0
    while kind != SCAN:
        marker, kind, length = struct.unpack_from(">BBH", data, position)
        if marker != 0xFF or kind < 0xC0 or kind == 0xFF or kind in STANDALONE:
            raise struct.error("not a segment")
        yield kind, position
        position += 2 + length


__all__ = ["Rows", "rows_of"]
