"""Class colors, and masks as palette images that keep the class ids."""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

Palette = list[list[int]]


def check_palette(palette: Sequence[Sequence[int]]) -> Palette:
    """The palette as lists of plain ints, for JSON. Raises ValueError unless it is up to 256 8-bit colors."""
    colors = [[int(level) for level in color] for color in palette]
    if len(colors) > 256 or any(len(c) != 3 or min(c) < 0 or max(c) > 255 for c in colors):
        raise ValueError(
            "palette must have at most 256 colors [red, green, blue] from 0 to 255, one per class."
        )
    return colors


def default_palette(num_colors: int = 256) -> Palette:
    """Colors far apart for neighboring ids: the bits of an id become the high bits of red, green and blue."""
    ids = np.arange(num_colors)
    levels = np.zeros((num_colors, 3), dtype=np.int64)
    for position in range(24):
        power, band = divmod(position, 3)
        levels[:, band] |= (ids >> position & 1) << (7 - power)
    return levels.tolist()


def completed(palette: Sequence[Sequence[int]] | None, num_colors: int) -> Palette:
    """The palette with default colors for the ids, up to `num_colors` - 1, that it lacks."""
    colors = [list(color) for color in palette or ()]
    return colors + default_palette(num_colors)[len(colors) :]


def colorize(mask: np.ndarray | Tensor, palette: Sequence[Sequence[int]] | None = None) -> Image.Image:
    """(H, W) ids -> a palette image with the ids as pixel values. Raises ValueError unless they fit uint8."""
    ids = mask.cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    if ids.min() < 0 or ids.max() > 255:
        raise ValueError(
            f"a palette image has ids from 0 to 255, not {ids.min()} to {ids.max()}. "
            "Save the mask as 16-bit PNG."
        )
    image = Image.fromarray(ids.astype(np.uint8))
    image.putpalette([level for color in palette or default_palette() for level in color])
    return image
