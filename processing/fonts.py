"""Fonts for texts in pictures: the one that comes with matplotlib, or an installed one with the text's script."""

from functools import lru_cache
from pathlib import Path

import matplotlib
from PIL import ImageFont

SANS = str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf")
MISSING = "□"  # in place of a character that no installed font has


def font_file(text: str) -> str:
    """The font that comes with matplotlib, so that pictures look the same on every machine; for a text with
    other scripts, the first installed font that has all of its characters, if there is one.
    """
    wanted = frozenset(map(ord, text)) - characters_of(SANS)
    return installed_font(wanted) or SANS if wanted else SANS


def drawable(text: str) -> str:
    """The text with "□" for each character that its font lacks."""
    known = characters_of(font_file(text))
    return "".join(character if ord(character) in known else MISSING for character in text)


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont:
    """The font of a text for PIL, in a size in pixels."""
    return open_font(font_file(text), size)


@lru_cache(maxsize=64)
def open_font(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)


@lru_cache(maxsize=256)
def installed_font(wanted: frozenset[int]) -> str | None:
    """The first installed font that has these code points and those of ASCII letters, or None."""
    from matplotlib.font_manager import fontManager

    needed = wanted | set(map(ord, "Aa0"))
    fonts = sorted(
        fontManager.ttflist, key=lambda font: (font.style != "normal", font.weight != 400, font.name)
    )
    fonts = [font for font in fonts if "LastResort" not in font.name.replace(" ", "")]  # draws boxes
    return next((font.fname for font in fonts if needed <= characters_of(font.fname)), None)


@lru_cache(maxsize=512)
def characters_of(file: str) -> frozenset[int]:
    """The code points that a font file has glyphs for; none if it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(file).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()
