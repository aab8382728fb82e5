"""What the encoding of a mask file does to its ids: lossy compression, and samples that Pillow scales.

Lossy compression is recognized by the codec, not by the file format: TIFF can contain JPEG or WebP, and
JPEG 2000 and WebP have lossless modes. A JPEG 2000 file that was cut to a target size after a reversible
transform is not recognized, because its header is that of a lossless file.
"""

from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

LOSSY_FORMATS = ("JPEG", "MPO", "AVIF", "HEIF")  # also the rare lossless ones
BLOCK_COMPRESSION = "bcn"  # Pillow's codec for textures (DDS)
LOSSY_TIFF = {"jpeg": "JPEG", "tiff_jpeg": "JPEG", "tiff_sgilog": "LogLuv", "tiff_sgilog24": "LogLuv"}
TIFF_OFFSETS = (273, 324)  # of the strips, or of the tiles
SAMPLE_BITS = {"L;2": 2, "L;4": 4}  # by Pillow's raw mode
BMP_BITS = {"1": 1, "L": 8}  # by Pillow's mode
INVERTED = {"1;I": 1, "L;I": 8, "L;2I": 2, "L;4I": 4}  # TIFF where 0 is white
START_OF_CODESTREAM, SIZE, CODING_STYLE, COMPONENT_STYLE, START_OF_TILE = (
    0xFF4F,
    0xFF51,
    0xFF52,
    0xFF53,
    0xFF90,
)
REVERSIBLE = 1


class Encoding(NamedTuple):
    """How a mask is stored.

    Args:
        lossy: Name of the lossy compression; "" if there is none.
        largest: The largest sample, which Pillow scales to 255 or 65535. None: samples are not scaled.
        is_inverted: Whether Pillow inverts the samples.
        is_cut: Whether Pillow drops the low byte of 16-bit channels.
        is_misread: Whether Pillow takes the pixels of a gray BMP for ones of another size.
    """

    lossy: str = ""
    largest: int | None = None
    is_inverted: bool = False
    is_cut: bool = False
    is_misread: bool = False


def encoding_of(image: Image.Image, file: BinaryIO | None) -> Encoding:
    """Describes the storage of an image that is not decoded yet. `file` is None for PIL images."""
    tile = next(iter(getattr(image, "tile", ())), None)  # None if a PIL image is decoded already
    codec, arguments = (tile.codec_name, _arguments(tile.args)) if tile else ("", ("",))
    raw = str(arguments[0])
    layout = raw.removesuffix("R")  # "R": a TIFF with reversed bits
    largest = None
    if codec in ("ppm", "ppm_plain"):
        largest = arguments[-1] if isinstance(arguments[-1], int) else None
    elif layout in SAMPLE_BITS or layout in INVERTED:
        largest = (1 << (SAMPLE_BITS | INVERTED)[layout]) - 1
    is_cut = image.mode not in ("I", "F") and not image.mode.startswith("I;") and ";16" in raw
    file = file or getattr(image, "fp", None)
    return Encoding(_lossy(image, file), largest, layout in INVERTED, is_cut, _is_misread_bmp(image, file))


def stored_samples(mask: np.ndarray, encoding: Encoding) -> np.ndarray:
    """(H, W) gray values as Pillow decodes them -> the samples in the file."""
    if mask.dtype == bool:
        return (mask != encoding.is_inverted).astype(np.uint8)
    if encoding.largest is None:
        return mask
    white = 255 if mask.dtype == np.uint8 else 65535
    samples = (mask.astype(np.int64) * encoding.largest + white // 2) // white
    return (encoding.largest - samples if encoding.is_inverted else samples).astype(mask.dtype)


def _arguments(arguments: object) -> tuple:
    return arguments if isinstance(arguments, tuple) else (arguments,)


def _lossy(image: Image.Image, file: BinaryIO | None) -> str:
    if image.format in LOSSY_FORMATS:
        return image.format
    if any(tile.codec_name == BLOCK_COMPRESSION for tile in getattr(image, "tile", ())):
        return f"block-compressed {image.format}"
    compression = image.info.get("compression")
    if image.format == "TIFF" and compression in LOSSY_TIFF:
        return f"{LOSSY_TIFF[compression]} in TIFF"
    if file is None:  # a PIL image that is loaded already
        return ""
    position = file.tell()
    try:
        if image.format == "TIFF" and compression == "webp":
            start = next(image.tag_v2[tag] for tag in TIFF_OFFSETS if tag in image.tag_v2)
            return "WebP in TIFF" if _is_lossy_webp(file, *_arguments(start)[:1]) else ""
        if image.format == "WEBP":
            return "WebP" if _is_lossy_webp(file) else ""
        if image.format == "JPEG2000":
            return "irreversible JPEG 2000" if _is_irreversible_jpeg2000(file) else ""
        return ""
    finally:
        file.seek(position)


def _is_misread_bmp(image: Image.Image, file: BinaryIO | None) -> bool:
    """Whether a BMP with a gray palette has another number of bits than Pillow assumes for its mode."""
    if image.format not in ("BMP", "DIB") or image.mode not in BMP_BITS or file is None:
        return False
    position = file.tell()
    file.seek(14 if image.format == "BMP" else 0)  # behind the header of the file
    header = file.read(16)
    file.seek(position)
    place = 10 if header[0] == 12 else 14  # a header of 12 bytes has short sides
    return int.from_bytes(header[place : place + 2], "little") != BMP_BITS[image.mode]


def _is_lossy_webp(file: BinaryIO, start: int = 0) -> bool:
    """Whether the first frame of a WebP is a chunk "VP8 " (lossy) and not "VP8L"."""
    file.seek(start + 12)  # "RIFF", size, "WEBP"
    while len(header := file.read(8)) == 8:
        kind, length = header[:4], int.from_bytes(header[4:], "little")
        if kind in (b"VP8 ", b"VP8L"):
            return kind == b"VP8 "
        file.seek(16 if kind == b"ANMF" else length + length % 2, 1)  # the chunks of a frame are inside ANMF
    return False


def _is_irreversible_jpeg2000(file: BinaryIO) -> bool:
    """Whether any component is coded with the irreversible 9-7 wavelet transform."""
    file.seek(_codestream(file) + 2)
    wide = False
    while len(header := file.read(4)) == 4:
        marker, length = int.from_bytes(header[:2], "big"), int.from_bytes(header[2:], "big")
        content = file.read(max(0, length - 2))
        if marker == START_OF_TILE:
            break
        if marker == SIZE:
            wide = int.from_bytes(content[34:36], "big") > 256  # then component numbers have two bytes
        place = {CODING_STYLE: 9, COMPONENT_STYLE: 7 if wide else 6}.get(marker)
        if place is not None and content[place : place + 1] != bytes([REVERSIBLE]):
            return True
    return False


def _codestream(file: BinaryIO) -> int:
    """Position of the JPEG 2000 codestream, which the file is itself, or holds in a box "jp2c"."""
    position = 0
    file.seek(0)
    while len(header := file.read(16)) >= 8:
        length, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if length >> 16 == START_OF_CODESTREAM:
            return position
        head = 16 if length == 1 else 8  # a length of 1: the true one follows the kind
        if kind == b"jp2c":
            return position + head
        length = int.from_bytes(header[8:16], "big") if length == 1 else length
        if length < head:
            break
        position += length
        file.seek(position)
    return 0
