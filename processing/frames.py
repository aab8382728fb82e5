"""Counts the frames of animated and multi-page files, of which only the first can be read.

Further pictures that belong to the same photograph do not count: the previews and depth maps that phones
add to a JPEG (MPO), and the reduced copies (overviews, thumbnails) and transparency masks in a TIFF.
"""

import logging
from typing import BinaryIO

from PIL import Image, TiffTags

logger = logging.getLogger(__name__)

SUBFILE_TYPE = next(tag for tag, info in TiffTags.TAGS_V2.items() if info.name == "NewSubfileType")
REDUCED_COPY, TRANSPARENCY_MASK = 1, 4


def count_frames(image: Image.Image, file: BinaryIO | None) -> int:
    """The number of frames or pages of an opened file; 1 for a PIL image (no file), whose frame was chosen."""
    if file is None or image.format == "MPO" or not getattr(image, "is_animated", False):
        return 1
    if image.format != "TIFF":
        return image.n_frames
    pages = 0
    for page in range(image.n_frames):
        image.seek(page)
        pages += not image.tag_v2.get(SUBFILE_TYPE, 0) & (REDUCED_COPY | TRANSPARENCY_MASK)
    image.seek(0)
    return max(1, pages)


def say_first_frame(name: str, frames: int) -> None:
    """Logs a warning if an image file has several frames."""
    if frames > 1:
        logger.warning("%s has %d frames; only the first one is used.", name, frames)
