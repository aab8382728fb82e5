"""Legends of pictures: swatches with names, and color bars. Both are strips to put below a picture."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from .fonts import drawable, font_for
from .plain_text import one_line

Color = Sequence[int]
PAPER, INK = (255, 255, 255), (30, 30, 30)
# A class with one of these names is background: it is not tinted.
BACKGROUND_NAMES = {
    "background",
    "bg",
    "backgr",
    "unlabeled",
    "unlabelled",
    "unlabel",
    "void",
    "nolabel",
    "none",
}
NAME_LENGTH = 40  # characters of a name in a legend
MAX_LINES = 8
MIN_FONT, MIN_WIDTH = 12, 240  # pixels


def is_background(name: str) -> bool:
    """Whether a class is background by its name, such as "Background", "_background_" or "no label"."""
    return "".join(filter(str.isalpha, name.lower())) in BACKGROUND_NAMES


def class_entries(
    counts: Sequence[int], names: Sequence[str], palette: Sequence[Color]
) -> list[tuple[str, Color | None]]:
    """Texts and colors of a legend: the classes present with their shares, the most frequent first.

    Args:
        counts: Number of pixels by class id.
        names: Class names by id.
        palette: One (red, green, blue) per class.

    Returns:
        (text, color) per class; the color of background is None.
    """
    total = max(1, sum(counts))
    present = sorted((index for index, count in enumerate(counts) if count), key=lambda index: -counts[index])
    return [
        (
            f"{one_line(names[index], NAME_LENGTH)} {share_text(counts[index] / total)}",
            None if is_background(names[index]) else palette[index],
        )
        for index in present
    ]


def share_text(share: float) -> str:
    """0.123 -> "12 %"; "< 1 %" for the rest."""
    return f"{100 * share:.0f} %" if share >= 0.01 else "< 1 %"


def with_strip(picture: Image.Image, strip: Image.Image) -> Image.Image:
    """Puts a strip below a picture, which keeps its place at the top left."""
    sheet = Image.new("RGB", (max(picture.width, strip.width), picture.height + strip.height), PAPER)
    sheet.paste(picture)
    sheet.paste(strip, (0, picture.height))
    return sheet


def text_size(width: int) -> int:
    """Height in pixels of the text below a picture of a width in pixels."""
    return max(MIN_FONT, round(width / 60))


def length_of(text: str, size: int) -> float:
    """Width of a text in pixels."""
    return font_for(text, size).getlength(text)


def swatches(
    entries: Sequence[tuple[str, Color | None]], width: int, max_lines: int = MAX_LINES
) -> Image.Image:
    """A strip of swatches with texts, at least `MIN_WIDTH` wide; the last line says how many do not fit."""
    size, width = text_size(width), max(MIN_WIDTH, width)
    line, margin = 2 * size, size // 2
    lines = legend_lines(entries, size, width - 2 * margin)
    if len(lines) > max_lines:
        kept = lines[: max_lines - 1]
        kept.append([(f"and {len(entries) - sum(map(len, kept))} more", PAPER, 0)])
        lines = kept
    strip = Image.new("RGB", (width, line * len(lines) + margin), PAPER)
    draw = ImageDraw.Draw(strip)
    for index, items in enumerate(lines):
        draw_legend(draw, items, size, (margin, line * index + line // 2 + margin // 2))
    return strip


def legend_lines(
    entries: Sequence[tuple[str, Color | None]], size: int, width: int
) -> list[list[tuple[str, Color | None, int]]]:
    """Lines of (text, color, offset), each at most `width` pixels long; longer texts are cut."""
    lines, x = [], width
    for text, color in entries:
        shown = cut_to(text, size, width - 3 * size)
        needed = round(length_of(shown, size)) + 3 * size
        if x + needed > width:
            lines.append([])
            x = 0
        lines[-1].append((shown, color, x))
        x += needed
    return lines


def cut_to(text: str, size: int, width: float) -> str:
    """The text, with "…" in place of what does not fit into `width` pixels."""
    text = drawable(one_line(text))
    if length_of(text, size) <= width:
        return text
    while text and length_of(text + "…", size) > width:
        text = text[:-1]
    return text.rstrip() + "…"


def draw_legend(
    draw: ImageDraw.ImageDraw,
    items: Sequence[tuple[str, Color | None, int]],
    size: int,
    start: tuple[int, int],
) -> None:
    """Draws one line of `legend_lines` with its left end and middle at `start`; None is an empty swatch."""
    left, middle = start
    for text, color, offset in items:
        x = left + offset
        if color is not PAPER:
            fill = PAPER if color is None else tuple(color)
            draw.rectangle([x, middle - size // 2, x + size, middle + size // 2], fill=fill, outline=INK)
        draw.text((x + size + size // 2, middle), text, fill=INK, font=font_for(text, size), anchor="lm")


def color_bar(colors: np.ndarray, ends: tuple[str, str], label: str, width: int) -> Image.Image:
    """A strip with a bar of colors (N, 3) from low to high, the values at its ends, and a label in the middle."""
    size, width = text_size(width), max(MIN_WIDTH, width)
    margin, bar = size // 2, size
    strip = Image.new("RGB", (width, bar + 2 * size + 2 * margin), PAPER)
    scale = np.asarray(colors, dtype=np.uint8)[
        None, np.linspace(0, len(colors) - 1, width - 2 * margin).round().astype(int)
    ]
    strip.paste(Image.fromarray(np.repeat(scale, bar, axis=0)), (margin, margin))
    draw = ImageDraw.Draw(strip)
    draw.rectangle([margin, margin, width - margin - 1, margin + bar - 1], outline=INK)
    middle = margin + bar + size + margin // 2
    for text, x, anchor in ((ends[0], margin, "lm"), (ends[1], width - margin, "rm")):
        draw.text((x, middle), text, fill=INK, font=font_for(text, size), anchor=anchor)
    room = width - 2 * margin - 2 * size - 2 * max(length_of(end, size) for end in ends)
    text = cut_to(label, size, room)
    draw.text((width // 2, middle), text, fill=INK, font=font_for(text, size), anchor="mm")
    return strip
