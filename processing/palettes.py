"""Colours of classes, and masks as palette images that keep the class ids."""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

Palette = list[list[int]]


def check_palette(palette: Sequence[Sequence[int]]) -> Palette:
    """The palette as lists of plain ints, which JSON keeps."""
    colours = [[int(level) for level in colour] for colour in palette]
    if len(colours) > 256 or any(len(c) != 3 or min(c) < 0 or max(c) > 255 for c in colours):
        raise ValueError("palette must be at most 256 colours [red, green, blue] of 0 to 255, one per class.")
    return colours


def default_palette(num_colours: int = 256) -> Palette:
    """Colours that differ much for neighbouring ids: the bits of an id become the high bits of red, green and blue."""
    ids = np.arange(num_colours)
    levels = np.zeros((num_colours, 3), dtype=np.int64)
    for position in range(9):
        power, band = divmod(position, 3)
        levels[:, band] |= (ids >> position & 1) << (7 - power)
    return levels.tolist()


def colorize(mask: np.ndarray | Tensor, palette: Sequence[Sequence[int]] | None = None) -> Image.Image:
    """(H, W) class ids -> a palette image: ids as pixel values, so that it is a mask file and a picture at once."""
    ids = mask.cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    if ids.min() < 0 or ids.max() > 255:
        raise ValueError(
            f"a palette image holds ids of 0 to 255, not {ids.min()} to {ids.max()}. Save the mask as 16-bit PNG."
        )
    image = Image.fromarray(ids.astype(np.uint8))
    image.putpalette([level for colour in palette or default_palette() for level in colour])
    return image
