"""Opens images from any source: regular files only, and nothing above the pixel limit is decoded.

An image is opened (its header is read), measured, and decoded once, in this order. Special files (named pipes,
devices, sockets) are refused before they are opened, since reading them may never end. Formats that hold
other images, archives or programs are refused too: their header does not tell what decoding takes.
"""

import errno
import io
import os
import stat
import struct
import threading
import tokenize
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from .frames import count_frames, say_first_frame
from .jpeg_decoding import quicken
from .orientation import TRANSPOSITIONS, TURNS, UPRIGHT
from .png_rows import has_late_metadata, misses_rows

Source = str | os.PathLike | bytes | BinaryIO | Image.Image | np.ndarray | Tensor

PIXEL_LIMIT = 178_956_970  # where Pillow raises an error by default, too
BYTES_PER_PIXEL = 16  # of the largest files: four uncompressed channels of 32 bits
STREAM_BLOCK = 1 << 20  # bytes
DOWNLOAD_SECONDS = 60  # without an answer
REFUSED = ("BLP", "EPS", "FITS", "FPX", "ICNS", "ICO", "IPTC", "MIC", "WMF")  # see the module docstring
TILE_SIDES = (322, 323)  # TIFF tags; libtiff allocates whole tiles, however small the image is
OPENING = threading.Lock()  # Pillow's own pixel limit is a global variable
DECODING_ERRORS = (  # which Pillow raises for damaged files
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    MemoryError,
    RuntimeError,
    struct.error,
    tokenize.TokenError,
    zlib.error,
    Image.DecompressionBombError,
)
HOLDERS_OF_ORIENTATION = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")
SPECIAL_FILES = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class ImageReadError(ValueError):
    """An image or mask cannot be read; the message names it and says what to do."""


class BoundedReader(io.BufferedReader):
    """A file that never allocates more than its size, whatever length a damaged header states."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > STREAM_BLOCK:
            size = min(size, os.fstat(self.fileno()).st_size)
        return super().read(size)


class Decoded(NamedTuple):
    """A loaded image with its pixels as Pillow returns them, and the EXIF orientation that they still have."""

    image: Image.Image
    orientation: int
    name: str
    inspected: Any = None


def open_image(
    source: Source,
    pixel_limit: int = PIXEL_LIMIT,
    inspect: Callable | None = None,
    *,
    name: str | None = None,
) -> Decoded:
    """Decodes the first frame of any source but arrays, in its stored mode and not yet upright.

    Args:
        source: Path, bytes, binary file or PIL image.
        pixel_limit: Most pixels of a file; larger ones are rejected before they are decoded.
        inspect: Called before decoding with the image and its file (None for PIL images); what it returns
            becomes `inspected`.
        name: Name of the image in messages. Default: that of the source.

    Raises:
        ImageReadError: If the image is missing, damaged, too large, or not a regular file.
    """
    return _decode(source, pixel_limit, inspect, name)[0]


def open_upright(source: Source, pixel_limit: int = PIXEL_LIMIT) -> tuple[Image.Image, int]:
    """Decodes an image once, for several uses: `read_image` and `read_channels` take the result without decoding.

    Arguments and errors are those of `open_image`.

    Returns:
        The upright image in its stored mode, and the EXIF orientation of the file (1 to 8).
    """
    (image, orientation, name, frames), stored = _decode(source, pixel_limit, count_frames)
    say_first_frame(name, frames)
    if orientation == UPRIGHT:
        return image, stored
    upright = image.transpose(TRANSPOSITIONS[orientation])
    upright.format, upright.filename = image.format, getattr(image, "filename", "")
    for holder in HOLDERS_OF_ORIENTATION:  # which transpose() copies
        upright.info.pop(holder, None)
    return upright, stored


def read_orientation(source: Source, pixel_limit: int = PIXEL_LIMIT) -> int:
    """Returns the EXIF orientation (1..8) of an image; 1 (upright) if it has none that can be read.

    Only the header is read; of a PNG file with metadata behind its pixels, the whole file. Raises ImageReadError
    as `open_image` does.
    """
    if isinstance(source, np.ndarray | Tensor):
        return UPRIGHT
    with _opened(source, describe(source), pixel_limit) as (image, file):
        if image.format == "PNG" and (file is None or has_late_metadata(file)):
            image.load()
        return _tiff_orientation(image) or _orientation(image)


def read_frames(source: Source) -> int:
    """Returns the number of frames or pages of an image, as `count_frames` does. Raises ImageReadError."""
    if isinstance(source, np.ndarray | Tensor):
        return 1
    with _opened(source, describe(source), PIXEL_LIMIT) as (image, file):
        return count_frames(image, file)


def read_mode(source: Source, pixel_limit: int = PIXEL_LIMIT) -> str:
    """Returns Pillow's name for the kind of pixels, such as "I;16", from the header. Raises ImageReadError."""
    with _opened(source, describe(source), pixel_limit) as (image, _):
        return image.mode


def read_title(source: Source) -> str | None:
    """Returns the title in the metadata of an image; None if it has none. Raises ImageReadError."""
    with _opened(source, describe(source), PIXEL_LIMIT) as (image, _):
        return image.info.get("Title")


def describe(source: Source) -> str:
    """Returns a name for messages. Raises TypeError if `source` is not one of the supported types."""
    if isinstance(source, str | os.PathLike):
        return f"'{os.fspath(source)}'"
    if isinstance(source, Image.Image):
        filename = getattr(source, "filename", "")
        return f"'{filename}'" if filename else f"PIL image of mode {source.mode} and size {source.size}"
    if isinstance(source, bytes | bytearray):
        return f"image of {len(source)} bytes"
    if isinstance(source, np.ndarray | Tensor):
        return f"{type(source).__name__} of shape {tuple(source.shape)}"
    if hasattr(source, "read"):
        return f"'{getattr(source, 'name', 'file object')}'"
    raise TypeError(
        f"cannot read an image from {type(source).__name__}. "
        "Give a path, bytes, a binary file, a PIL image, a numpy array or a torch tensor."
    )


def _decode(
    source: Source, pixel_limit: int, inspect: Callable | None, name: str | None = None
) -> tuple[Decoded, int]:
    """What `open_image` returns, and the orientation of the file: they differ for TIFF, which Pillow turns."""
    name = name or describe(source)
    with _opened(source, name, pixel_limit) as (image, file):
        stored = _tiff_orientation(image)
        inspected = inspect and inspect(image, file)
        # Load once, and before anything that loads implicitly (as `getexif` of a PNG does): the second load() of
        # a damaged file raises nothing and gives a black image.
        quicken(image).load()
        if file is not None and misses_rows(image, file):
            raise EOFError(f"it has fewer than the {image.height} rows that its header states")
        if file is not None:
            image.filename = name.strip("'")  # for messages about the decoded image
        orientation = _orientation(image)
        return Decoded(image, orientation, name, inspected), stored or orientation


@contextmanager
def _opened(source: Source, name: str, pixel_limit: int) -> Iterator[tuple[Image.Image, BinaryIO | None]]:
    """The image, not yet decoded and within the limit, and its file. Explains errors of the block, too."""
    with explaining(name):
        if isinstance(source, Image.Image):
            _check_size(source, name, pixel_limit)
            yield source, None
            return
        with opened_file(source, pixel_limit) as file:
            image = identified(file, name)
            _check_size(image, name, pixel_limit)
            yield image, file


@contextmanager
def explaining(name: str) -> Iterator[None]:
    """Context manager that turns what Pillow raises for a damaged image into an ImageReadError with its name."""
    try:
        yield
    except ImageReadError:
        raise
    except DECODING_ERRORS as error:
        raise explained(error, name) from error


@contextmanager
def opened_file(source: Source, pixel_limit: int) -> Iterator[BinaryIO]:
    """The source as a binary file that can seek."""
    if isinstance(source, bytes | bytearray):
        yield io.BytesIO(source)
    elif hasattr(source, "read"):
        if isinstance(source, io.TextIOBase):
            raise ImageReadError(f"{describe(source)} is open as text. Open it in binary mode, 'rb'.")
        can_seek = getattr(source, "seekable", lambda: False)()
        yield source if can_seek else io.BytesIO(_stream(source, BYTES_PER_PIXEL * pixel_limit))
    elif str(source).startswith(("http://", "https://")):
        request = urllib.request.Request(str(source), headers={"User-Agent": "contextseg"})
        with urllib.request.urlopen(request, timeout=DOWNLOAD_SECONDS) as stream:
            yield io.BytesIO(_stream(stream, BYTES_PER_PIXEL * pixel_limit))
    else:
        with _open_regular(source) as file:
            yield file


def _open_regular(path: str | os.PathLike) -> BinaryIO:
    """Opens a regular file. Raises ImageReadError for others, without opening them."""
    kind = stat.S_IFMT(os.stat(path).st_mode)
    if kind != stat.S_IFREG:
        raise ImageReadError(
            f"'{os.fspath(path)}' is {SPECIAL_FILES.get(kind, 'a special file')}, not an image file. "
            "Give the path of a regular file."
        )
    # O_NONBLOCK: should a named pipe take the place of the file just now, opening it would wait for a writer.
    return BoundedReader(
        io.FileIO(path, opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))
    )


def _stream(source: BinaryIO, limit: int) -> bytes:
    """Reads a file that cannot seek, such as the body of an HTTP response; at most `limit` bytes."""
    blocks, length = [], 0
    while block := source.read(STREAM_BLOCK):
        if isinstance(block, str):
            raise ImageReadError(f"{describe(source)} is open as text. Open it in binary mode, 'rb'.")
        blocks.append(block)
        length += len(block)
        if length > limit:
            raise ImageReadError(
                f"{describe(source)} has more than {limit} bytes, {BYTES_PER_PIXEL} for each pixel of the limit. "
                "Check the source, or raise `pixel_limit` if you trust it."
            )
    return b"".join(blocks)


def identified(file: BinaryIO, name: str) -> Image.Image:
    """Reads the header of an image. Raises ImageReadError for `REFUSED` formats, some of which decode it at once."""
    Image.init()
    file.seek(0)
    start = file.read(16)
    for refused in filter(Image.OPEN.get, REFUSED):
        accepts = Image.OPEN[refused][1]
        if accepts and accepts(start) is True:
            raise ImageReadError(
                f"{name} is in the format {refused}, whose content cannot be checked before it is decoded. "
                "Convert it to PNG."
            )
    with OPENING:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # `pixel_limit` takes its place
        try:
            return Image.open(file, formats=[known for known in Image.ID if known not in REFUSED])
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _check_size(image: Image.Image, name: str, pixel_limit: int) -> None:
    width, height = image.size
    tile = [_tiff_tag(image, tag) or 0 for tag in TILE_SIDES]
    if max(width * height, tile[0] * tile[1]) > pixel_limit:
        tiles = f", in tiles of {tile[0]}x{tile[1]}" if all(tile) else ""
        raise ImageReadError(
            f"{name} is {width}x{height}{tiles}, above the limit of {pixel_limit} pixels. "
            "Crop or resize it, or raise `pixel_limit` if you trust the file."
        )


def _tiff_tag(image: Image.Image, tag: int) -> int | None:
    """A number in the header of a TIFF; None if it has none, and for other formats."""
    value = image.tag_v2.get(tag) if hasattr(image, "tag_v2") else None
    return value if isinstance(value, int) else None


def _tiff_orientation(image: Image.Image) -> int | None:
    """The orientation in the header of a TIFF that is not decoded yet; None if it has none."""
    code = _tiff_tag(image, ExifTags.Base.Orientation)
    return code if code in TURNS else None


def _orientation(image: Image.Image) -> int:
    try:
        # That of the base class: PngImageFile's decodes the image.
        code = Image.Image.getexif(image).get(ExifTags.Base.Orientation, UPRIGHT)
    except (*DECODING_ERRORS, Warning):  # the pixels may be fine where the EXIF block is damaged
        return UPRIGHT
    return code if isinstance(code, int) and code in TURNS else UPRIGHT


def explained(error: Exception, name: str) -> ImageReadError:
    if isinstance(error, FileNotFoundError):
        path = name[1:-1]
        if os.path.islink(path):
            return ImageReadError(
                f"{name} is a link to '{os.readlink(path)}', which does not exist. Correct the link."
            )
        return ImageReadError(f"{name} does not exist. Check the path.")
    if isinstance(error, PermissionError):
        return ImageReadError(f"{name} cannot be opened: permission denied. Change its permissions.")
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return ImageReadError(f"{name} is a link that leads back to itself. Correct the link.")
    if isinstance(error, MemoryError):
        return ImageReadError(
            f"{name} does not fit into memory. Crop or resize it, or lower `pixel_limit` so that it is rejected."
        )
    if isinstance(error, UnidentifiedImageError) and name.lower().endswith((".nii'", ".nii.gz'")):
        return ImageReadError(f"{name} is a volume, not an image. Use a model of volumes for it.")
    if isinstance(error, UnidentifiedImageError):
        return ImageReadError(
            f"{name} is empty, damaged at its start, or not an image that this Pillow can read. Open it in a "
            "text editor: failed downloads leave HTML. Replace the file, or take it out of the data."
        )
    return ImageReadError(
        f"{name} cannot be decoded: {error}. Copy or download it again, or take it out of the data."
    )
