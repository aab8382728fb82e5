"""Palette masks: whether the index or the color of a pixel is its class.

Annotation tools and exports order palettes freely, so an index is only trusted where no color speaks against
it. Let the used indices be those that occur in the mask, and a known color one that the table maps:

1. Indices are ids if the table has no colors, if no used index has a known color, if the palette is the gray
   ramp (index i has color (i, i, i)), or if every known color gives the class that its index gives, too.
2. Colors decide if every used index has a known color. Where they contradict the indices, the palette must
   also have the colors of all classes or only known colors, and no `label_map` may state the ids.
3. Everything else is an error that shows the indices and their colors.

A table that has colors but no ids always goes by the colors.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

from .byte_masks import values_in
from .label_maps import LabelMap


class PaletteError(ValueError):
    """The indices and colors of a palette mask contradict each other; the message shows both."""


class Entry(NamedTuple):
    """A palette entry that occurs in a mask: its color 0xRRGGBB, and its class by color and by index."""

    index: int
    color: int | None
    by_color: int | None
    by_index: int | None

    @property
    def is_contradictory(self) -> bool:
        return None not in (self.by_color, self.by_index) and self.by_color != self.by_index


def decode_palette(image: Image.Image, table: LabelMap | None, name: str) -> np.ndarray:
    """A palette image -> its indices (H, W), or its colors (H, W, 3) where these decide.

    Raises PaletteError if indices and colors contradict each other.
    """
    indices = np.asarray(image)
    indices = indices[..., 0] if image.mode == "PA" else indices
    if table is None or not table.colors:
        return indices
    palette = np.array(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
    if colors_decide(values_in(indices), palette, table, name):
        complete = np.zeros((256, 3), dtype=np.uint8)  # a damaged palette may lack entries
        complete[: len(palette)] = palette
        return complete[indices]
    return indices


def has_other_colors(image: Image.Image, table: LabelMap) -> bool:
    """Whether the ids that a palette image uses have colors other than gray, none of which the table maps."""
    indices = np.asarray(image)
    used = values_in(indices[..., 0] if image.mode == "PA" else indices)
    palette = np.array(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
    ids = [index for index in used if index < len(palette)]
    colors = palette[[index for index in ids if table.class_of_id(index) != table.ignore_index]].tolist()
    colored = [_as_number(color) for color in colors if len(set(color)) > 1]
    return bool(colored) and not any(number in table.colors for number in colored)


def colors_decide(used: list[int], palette: np.ndarray, table: LabelMap, name: str) -> bool:
    """Whether the colors of a palette (N, 3) are the classes, by the rule of this module."""
    if not table.has_ids:
        return True
    colors = [_as_number(color) for color in palette.tolist()]
    entries = [_entry(index, colors, table) for index in used]
    known = [entry for entry in entries if entry.by_color is not None]
    if not known or _is_gray_ramp(colors, used):
        return False
    agrees = all(entry.by_index == entry.by_color for entry in known)
    if len(known) < len(entries):
        if agrees:
            return False
        raise PaletteError(_contradiction(entries, name))
    if any(entry.is_contradictory for entry in entries) and (
        table.states_ids or not _is_of_these_classes(colors, table)
    ):
        raise PaletteError(_contradiction(entries, name))
    return True


def _as_number(color: list[int]) -> int:
    """[red, green, blue] -> 0xRRGGBB."""
    red, green, blue = color
    return red << 16 | green << 8 | blue


def _entry(index: int, colors: list[int], table: LabelMap) -> Entry:
    color = colors[index] if index < len(colors) else None
    return Entry(index, color, table.colors.get(color), table.class_of_id(index))


def _is_gray_ramp(colors: list[int], used: list[int]) -> bool:
    length = max(2, used[-1] + 1)
    return colors[:length] == [level * 0x010101 for level in range(length)]


def _is_of_these_classes(colors: list[int], table: LabelMap) -> bool:
    """Whether a palette has a color of every class, or apart from padding at its end only known colors."""
    classes = {table.colors[color] for color in colors if color in table.colors}
    if classes >= set(table.colors.values()) - {table.ignore_index}:
        return True
    length = next((i + 1 for i in reversed(range(len(colors))) if colors[i] != colors[-1]), 1)
    return all(color in table.colors for color in colors[:length])


def _contradiction(entries: list[Entry], name: str) -> str:
    wrong = [entry for entry in entries if entry.by_color != entry.by_index]
    shown = "; ".join(map(_shown, wrong[:5])) + ("; ..." if len(wrong) > 5 else "")
    return (
        f"{name} is a palette image whose indices and colors contradict each other: {shown}. Correct the colors "
        "or ids of the classes, or save the mask as gray ids without a palette."
    )


def _shown(entry: Entry) -> str:
    color = "no color" if entry.color is None else f"color #{entry.color:06x}"
    by_color = "of no class" if entry.by_color is None else f"of class {entry.by_color}"
    by_index = "without a class" if entry.by_index is None else f"class {entry.by_index}"
    return f"index {entry.index} has {color} ({by_color}), and is as an id {by_index}"
