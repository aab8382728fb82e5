"""Class colors, and masks as palette images that keep the class ids."""

import re
import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageColor
from torch import Tensor

Palette = list[list[int]]
THREE_NUMBERS = re.compile(
    r"(?:rgb)?\s*[(\[]?\s*([0-9]{1,4})\s*[,;\s]\s*([0-9]{1,4})\s*[,;\s]\s*([0-9]{1,4})\s*[)\]]?",
    re.IGNORECASE,
)
SIX_DIGITS = re.compile(r"[0-9a-fA-F]{6}")
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 80


def parse_color(value: Any) -> tuple[int, int, int]:
    """A color in any usual form -> (red, green, blue), each from 0 to 255.

    Args:
        value: Three integers, or text: "#804080", "804080", "#848", "128,64,128", "rgb(128, 64, 128)" or a
            color name of CSS.

    Raises:
        ValueError: If it is not a color.
    """
    levels = _levels_of_text(value.strip()) if isinstance(value, str) else value
    levels = list(levels) if isinstance(levels, list | tuple | np.ndarray) else []
    if len(levels) != 3 or not all(_is_level(level) for level in levels):
        raise ValueError(
            f"{shown(value)} is not a color. Write three integers from 0 to 255, such as [128, 64, 128], "
            'or "#804080".'
        )
    return int(levels[0]), int(levels[1]), int(levels[2])


def _levels_of_text(text: str) -> Sequence[int]:
    if numbers := THREE_NUMBERS.fullmatch(text):
        return [int(number) for number in numbers.groups()]
    try:
        return list(bytes.fromhex(text)) if SIX_DIGITS.fullmatch(text) else ImageColor.getrgb(text)
    except ValueError:
        return ()


def _is_level(level: Any) -> bool:
    return isinstance(level, int | np.integer) and not isinstance(level, bool) and 0 <= level <= 255


def shown(value: Any) -> str:
    """A value for messages, cut where it is long."""
    text = SHORT.repr(value)
    return text if len(text) <= SHORT.maxstring else f"{text[: SHORT.maxstring - 3]}..."


def check_palette(palette: Sequence[Any]) -> Palette:
    """The palette as lists of plain ints, for JSON. Raises ValueError unless it is a list of colors."""
    if not isinstance(palette, list | tuple | np.ndarray):
        raise ValueError(
            f"palette={shown(palette)} is not a list. Give one color per class, such as [[128, 64, 128], [0, 0, 142]]."
        )
    return [list(parse_color(color)) for color in palette]


def default_palette(num_colors: int = 256) -> Palette:
    """Colors far apart for neighboring ids: the bits of an id become the high bits of red, green and blue."""
    ids = np.arange(num_colors)
    levels = np.zeros((num_colors, 3), dtype=np.int64)
    for position in range(24):
        power, band = divmod(position, 3)
        levels[:, band] |= (ids >> position & 1) << (7 - power)
    return levels.tolist()


def class_colors(palette: Sequence[Sequence[int]] | None, num_labels: int) -> Palette:
    """One color per class: those of the palette, then default ones for the classes that it lacks."""
    given = [list(color) for color in palette or []][:num_labels]
    return given + default_palette(num_labels)[len(given) :]


def colorize(mask: np.ndarray | Tensor, palette: Sequence[Sequence[int]] | None = None) -> Image.Image:
    """(H, W) ids -> a palette image with the ids as pixel values. Raises ValueError unless they fit uint8."""
    ids = mask.cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    if ids.min() < 0 or ids.max() > 255:
        raise ValueError(
            f"a palette image has ids from 0 to 255, not {ids.min()} to {ids.max()}. "
            "Save the mask as 16-bit PNG."
        )
    image = Image.fromarray(ids.astype(np.uint8))
    image.putpalette([level for color in (palette or default_palette())[:256] for level in color])
    return image
