"""Inspects one pair of image and mask: what the report of `contextseg-check` is made from."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..failures import reason
from ..image_opening import (
    ImageReadError,
    Source,
    open_image,
    read_frames,
    read_mode,
    read_orientation,
)
from ..image_reading import image_size, read_stored
from ..label_maps import NO_LABEL, without_label
from ..mask_encoding import encoding_of
from ..orientation import UPRIGHT, swaps_sides
from ..palette_masks import PaletteError, has_other_colors
from ..rasters.files import check_pair_grid
from ..samples import check_sizes
from ..value_ranges import OUTLIERS, StoredValues, UnknownRangeError, values_of
from .datasets import SegmentationData
from .pairing import Pair
from .raster_inspection import MaskValues, large_image, large_mask

FEW_VALUES = 1 << 16
DARK = 64  # of 255, which 14 bits in a 16-bit file reach
WHITE = 254.5


class Finding(NamedTuple):
    """The size and the ids of one pair, or why it cannot be used; `doubts` may be wrong with it.

    `values` are those of an image that is not 8-bit: one whose black and white are unknown, or one that is
    almost black or white as it is read.
    """

    name: str
    size: tuple[int, int] | None = None
    pixels_by_id: dict[int, int] | None = None
    is_colored: bool = False
    unreadable: str | None = None
    mismatch: str | None = None
    contradiction: str | None = None
    doubts: tuple[str, ...] = ()
    values: StoredValues | None = None


def inspect_pair(dataset: SegmentationData, index: int) -> Finding:
    """Reads an image and its mask; errors become part of the finding."""
    name = f"{index}"
    try:
        pair = dataset.sources(index)
        name = pair.name
        size, values = inspect_image(dataset, pair.image)
        mask = inspect_mask(dataset, pair.mask)
        finding = Finding(name, size, mask.counts, mask.is_colored, values=values)
    except UnknownRangeError as error:
        return Finding(name, unreadable=str(error), values=error.values)
    except PaletteError as error:
        return Finding(name, contradiction=str(error))
    except Exception as error:
        return Finding(name, unreadable=reason(error, name))
    try:
        check_sizes(size, mask.size, name)
        check_pair_grid(pair.image, pair.mask, name)
    except ValueError as error:
        return finding._replace(mismatch=str(error))
    return finding._replace(doubts=tuple(doubts_of(dataset, pair, finding)))


def inspect_image(dataset: SegmentationData, source: Source) -> tuple[tuple[int, int], StoredValues | None]:
    """Reads an image: its size, and the values that are lost."""
    if (large := large_image(dataset, source)) is not None:
        return large.size, lost_values(dataset, lambda: large.stored, large.windows)
    image = dataset.read_image(source)
    return image_size(image), lost_values(dataset, lambda: source, image)


def inspect_mask(dataset: SegmentationData, source: Source) -> MaskValues:
    """Reads a mask: its size, and its values."""
    if (large := large_mask(dataset, source, count_values)) is not None:
        return large
    mask = dataset.read_stored_mask(source)
    return MaskValues(mask.shape[:2], count_values(mask), mask.ndim == 3)


def doubts_of(dataset: SegmentationData, pair: Pair, finding: Finding) -> Iterator[str]:
    """The keys of `DOUBTS` that apply to a pair of equal sizes."""
    turn, frames = turn_and_frames(pair.image)
    mask_turn, _ = turn_and_frames(pair.mask)
    if frames > 1:
        yield "frames"
    if turn != mask_turn and fits_unturned(turn if turn != UPRIGHT else mask_turn, finding.size):
        yield "turned" if turn != UPRIGHT else "turned mask"
    mode = kind_of(pair.mask, dataset.pixel_limit)
    if mode == "1" and open_image(pair.mask, dataset.pixel_limit, encoding_of).inspected.is_inverted:
        yield "inverted"
    is_by_index = mode in ("P", "PA") and dataset.decoder.colors and not finding.is_colored
    image = pillow_image(pair.mask, dataset.pixel_limit) if is_by_index or "A" in mode else None
    if image is None:
        return
    if "A" in mode and is_transparent(image):
        yield "transparent"
    if is_by_index and has_other_colors(image, dataset.decoder):
        yield "other colors"


def turn_and_frames(source: Source) -> tuple[int, int]:
    """The EXIF orientation of an image, and its number of frames."""
    try:
        return read_orientation(source), read_frames(source)
    except ImageReadError:  # Pillow does not read this format, whose files have neither
        return UPRIGHT, 1


def fits_unturned(turn: int, size: tuple[int, int]) -> bool:
    """Whether an image of this upright (height, width) has the same size as stored."""
    return size[0] == size[1] or not swaps_sides(turn)


def kind_of(source: Source, pixel_limit: int) -> str:
    """Pillow's name for the kind of pixels of a mask; "" for what Pillow does not read."""
    try:
        return "" if isinstance(source, np.ndarray) else read_mode(source, pixel_limit)
    except ImageReadError:
        return ""


def pillow_image(source: Source, pixel_limit: int) -> Image.Image | None:
    """A mask as Pillow opens it; None if only rasterio can decode it."""
    try:
        return open_image(source, pixel_limit).image
    except ImageReadError:
        return None


def is_transparent(image: Image.Image) -> bool:
    """Whether any pixel of an image with an alpha channel is not opaque."""
    return image.getchannel("A").getextrema()[0] < 255


def count_values(mask: np.ndarray) -> dict[int, int]:
    """(H, W) ids or (H, W, 3) colors -> number of pixels by id or by 0xRRGGBB, and of those with `NO_LABEL`."""
    if (absent := without_label(mask)) is not None:
        counts = count_values(mask[~absent][None]) if not absent.all() else {}
        return counts | {NO_LABEL: int(absent.sum())}
    if mask.ndim == 3:
        red, green, blue = np.moveaxis(mask.astype(np.int32), -1, 0)
        mask = red << 16 | green << 8 | blue
    if mask.min() >= 0 and mask.max() < FEW_VALUES:
        counts = np.bincount(mask.ravel())
        return {int(value): int(counts[value]) for value in counts.nonzero()[0]}
    return {int(value): int(count) for value, count in zip(*np.unique(mask, return_counts=True), strict=True)}


def lost_values(
    dataset: Any, source: Callable[[], Source], image: Image.Image | np.ndarray
) -> StoredValues | None:
    """The values of an image that is not 8-bit, if hardly any gray levels of it are left.

    Args:
        dataset: The dataset of the image, for `value_range`, `pixel_limit` and `num_channels`.
        source: Returns the file of the image, or a file object; called only if needed.
        image: The image as it is read, on the scale 0..255.
    """
    pixels = np.asarray(image)
    is_dark = np.count_nonzero(pixels > DARK) <= OUTLIERS / 100 * pixels.size
    is_flat = np.ptp(pixels) < DARK
    is_white = dataset.value_range is not None and np.count_nonzero(pixels >= WHITE) > pixels.size / 2
    if not (is_dark or is_flat or is_white):
        return None
    stored = read_stored(source(), dataset.pixel_limit, dataset.num_channels)
    return None if stored is None else values_of(stored)
