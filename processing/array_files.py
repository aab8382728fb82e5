"""Reads files whose pixels Pillow cannot hold: .npy, TIFF with other channels or types, 16-bit color, and rasters.

Pillow keeps at most four channels of 8 bits: it refuses other files, drops channels, or keeps only the upper
half of 16-bit colors. TIFF is read by tifffile; 16-bit color PNG by Pillow twice, once for each half (torchvision's
decoder ends the process at some damaged files).

Legend: H height, W width, C channels.
"""

from collections.abc import Callable
from functools import partial
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from .image_opening import (
    BYTES_PER_PIXEL,
    DECODING_ERRORS,
    ImageReadError,
    Source,
    describe,
    explained,
    identified,
    open_image,
    opened_file,
)
from .orientation import TURNS, UPRIGHT, turn_upright
from .raster_library import raster_module

try:
    import tifffile
except ImportError:
    tifffile = None

NPY = b"\x93NUMPY"
PNG = b"\x89PNG\r\n\x1a\n"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
HEAD = 26  # bytes; those of PNG end with bit depth and kind of color
BITS_PER_SAMPLE, SAMPLES_PER_PIXEL, ORIENTATION = 258, 277, 274  # TIFF tags
LOSSLESS = (
    1,
    5,
    8,
    32773,
    32946,
    34925,
    50000,
)  # TIFF: none, LZW, deflate, PackBits, deflate, LZMA, Zstandard
INSTALL = "Run: pip install 'contextseg[tiff]'"
COLOR_PNG = (2, 6)  # RGB and RGBA


Reader = Callable[[BinaryIO, str, int], tuple[np.ndarray, int]]


def stored_array(source: Source, pixel_limit: int, num_channels: int | None = None) -> np.ndarray | None:
    """Reads the pixels of a file that Pillow cannot hold, upright; otherwise as `oriented_array`."""
    found = oriented_array(source, pixel_limit, num_channels)
    return found and found[0]


def oriented_array(
    source: Source,
    pixel_limit: int,
    num_channels: int | None = None,
    choose: Callable[[bytes, BinaryIO], Reader | None] | None = None,
) -> tuple[np.ndarray, int] | None:
    """Reads the pixels of a file that Pillow cannot hold, and the EXIF orientation of the file.

    Args:
        source: As of `read_image`; arrays, tensors and PIL images give None.
        pixel_limit: Most pixels of a file; larger ones are rejected before they are decoded.
        num_channels: Channels that the image should have, to tell (C, H, W) from (H, W, C) in .npy files. By
            default, the shorter of the first and last axis.
        choose: Chooses the reader by the first bytes and the file. By default `reader_of`.

    Returns:
        (H, W) or (H, W, C), upright, of the stored type, and the orientation (1 to 8) that the file had; None for
        files that Pillow reads.

    Raises:
        ImageReadError: If the file is damaged or too large, or a package to read it is missing.
    """
    if isinstance(source, Image.Image | np.ndarray | Tensor) or str(source).startswith(
        ("http://", "https://")
    ):
        return None
    if hasattr(source, "read") and not getattr(source, "seekable", lambda: False)():
        return None
    name = describe(source)
    if choose is None and (raster := raster_array(source, pixel_limit, num_channels)) is not None:
        return raster, UPRIGHT
    try:
        with opened_file(source, pixel_limit) as file:
            start = file.tell()
            head = file.read(HEAD)
            file.seek(start)
            read = (choose or reader_of)(head, file) if isinstance(head, bytes) else None
            file.seek(start)
            if read is None:
                return None
            array, orientation = read(file, name, pixel_limit)
    except ImageReadError:
        raise
    except DECODING_ERRORS as error:
        if "imagecodecs" in str(error):
            raise ImageReadError(
                f"{name} is compressed in a way that needs imagecodecs. {INSTALL}"
            ) from error
        raise explained(error, name) from error
    array = channels_behind(array, num_channels) if read is read_npy else array
    return (array if orientation == UPRIGHT else turn_upright(array, orientation)), orientation


def raster_array(source: Source, pixel_limit: int, num_channels: int | None) -> np.ndarray | None:
    """Reads a raster file that says more about its pixels than a picture does; None for all other sources."""
    files = raster_module(source, "files")
    return files and files.stored_raster(source, pixel_limit, num_channels)


def stored_mask(source: Source, pixel_limit: int) -> np.ndarray | None:
    """Reads a mask whose type Pillow lacks, upright: .npy, and TIFF such as one with 64-bit ids.

    Returns None for masks that Pillow reads. Raises ImageReadError as `oriented_array` does, and for a TIFF that is
    compressed with loss or has several pages.
    """
    found = oriented_array(source, pixel_limit, choose=mask_reader_of)
    return found and found[0]


def mask_reader_of(head: bytes, file: BinaryIO) -> Reader | None:
    """As `reader_of`, for masks."""
    if head.startswith(NPY):
        return read_npy
    is_tiff = head.startswith(TIFF) and tifffile is not None
    return read_mask_tiff if is_tiff and not is_known_to_pillow(file) else None


def reader_of(head: bytes, file: BinaryIO) -> Reader | None:
    """The function that reads a file with these first bytes; None if Pillow reads it."""
    if head.startswith(NPY):
        return read_npy
    if head.startswith(PNG) and head[24] == 16 and head[25] in COLOR_PNG:
        return read_png
    if head.startswith(TIFF) and is_too_much_for_pillow(file):
        return read_tiff
    return None


def is_too_much_for_pillow(file: BinaryIO) -> bool:
    """Whether Pillow would refuse a TIFF file, drop some of its channels, or reduce them to 8 bits."""
    try:
        image = identified(file, "")
    except UnidentifiedImageError:
        return True
    except DECODING_ERRORS:  # reading it as usual explains the error
        return False
    bits = image.tag_v2.get(BITS_PER_SAMPLE, 8)
    samples = image.tag_v2.get(SAMPLES_PER_PIXEL, 1)
    is_reduced = samples > 1 and max(bits if isinstance(bits, tuple) else (bits,)) > 8
    return (is_reduced or samples > len(image.getbands())) and tifffile is not None


def is_known_to_pillow(file: BinaryIO) -> bool:
    try:
        identified(file, "")
    except UnidentifiedImageError:
        return False
    except DECODING_ERRORS:  # reading it as usual explains the error
        return True
    return True


def read_npy(file: BinaryIO, name: str, pixel_limit: int) -> tuple[np.ndarray, int]:
    version = np.lib.format.read_magic(file)
    read_header = (
        np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    )
    shape, _, kind = read_header(file)
    check_array(shape, kind, name, pixel_limit)
    file.seek(0)
    return np.load(file, allow_pickle=False), UPRIGHT


def read_png(file: BinaryIO, name: str, pixel_limit: int) -> tuple[np.ndarray, int]:
    high, low = (open_image(file, pixel_limit, partial(keep, half), name=name) for half in ("16B", "16L"))
    pixels = np.asarray(high.image).astype(np.uint16) << 8 | np.asarray(low.image)
    return pixels, high.orientation


def keep(half: str, image: Image.Image, _: BinaryIO | None) -> None:
    """Lets Pillow keep one byte of each sample of 16 bits: the upper one ("16B") or the lower one ("16L")."""
    image.tile = [tile._replace(args=tile.args.replace("16B", half)) for tile in image.tile]


def read_tiff(file: BinaryIO, name: str, pixel_limit: int) -> tuple[np.ndarray, int]:
    if tifffile is None:
        raise ImageReadError(
            f"{name} is damaged, or a TIFF file that Pillow cannot read, such as one with five channels. For the latter, "
            f"install tifffile. {INSTALL}"
        )
    with tifffile.TiffFile(file) as tiff:
        page = tiff.pages[0]
        for shape in (page.shape, page.chunks):  # tifffile allocates whole tiles, however small the image is
            check_array(shape, page.dtype, name, pixel_limit)
        tag = page.tags.get(ORIENTATION)
        array = page.asarray()
        if page.axes.startswith("S"):  # planes of samples
            array = np.moveaxis(array, 0, -1)
        return array, tag.value if tag and tag.value in TURNS else UPRIGHT


def read_mask_tiff(file: BinaryIO, name: str, pixel_limit: int) -> tuple[np.ndarray, int]:
    with tifffile.TiffFile(file) as tiff:
        page = tiff.pages[0]
        pages = sum(not page.is_reduced and not page.is_mask for page in tiff.pages)
        if page.compression not in LOSSLESS:
            raise ImageReadError(
                f"{name} is a TIFF with the compression {getattr(page.compression, 'name', page.compression)}, which may change class ids. "
                "Export the mask again as PNG."
            )
    if pages > 1:
        raise ImageReadError(
            f"{name} has {pages} pages, but a mask is one image. Export the page that belongs to the image as PNG."
        )
    file.seek(0)
    return read_tiff(file, name, pixel_limit)


def check_array(shape: tuple[int, ...], kind: np.dtype | None, name: str, pixel_limit: int) -> None:
    """Raises ImageReadError if an array is not an image, or is too large."""
    if kind is None or kind.kind not in "biuf" or len(shape) not in (2, 3) or 0 in shape:
        raise ImageReadError(
            f"{name} has the shape {tuple(shape)} and the type {kind}, but an image is (H, W), (H, W, C) or (C, H, W) of "
            "numbers. Convert it."
        )
    values = int(np.prod(shape, dtype=np.float64))
    pixels = values // min(shape[0], shape[-1]) if len(shape) == 3 else values
    if pixels > pixel_limit or values * kind.itemsize > BYTES_PER_PIXEL * pixel_limit:
        raise ImageReadError(
            f"{name} has the shape {tuple(shape)}, above the limit of {pixel_limit} pixels. "
            "Crop or resize it, or raise `pixel_limit` if you trust the file."
        )


def channels_behind(array: np.ndarray, num_channels: int | None) -> np.ndarray:
    """(H, W), (H, W, C) or (C, H, W) -> (H, W) or (H, W, C), by the wanted channels or the shorter axis."""
    if array.ndim != 3:
        return array
    first, last = array.shape[0], array.shape[-1]
    is_first = first == num_channels if num_channels in (first, last) and first != last else first < last
    return np.moveaxis(array, 0, -1) if is_first else array


__all__ = ["stored_array"]
