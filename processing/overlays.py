"""Masks and heat maps over images, markers, and grids of images with titles and a legend.

Legend: H, W image axes. Drawing functions return new RGB images; masks and heat maps are arrays (H, W).
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .atomic_write import atomic_write
from .palettes import completed

Palette = Sequence[Sequence[int]]
BACKGROUND, INK = (255, 255, 255), (30, 30, 30)


def mask_image(mask: np.ndarray, palette: Palette, ignore_index: int | None = None) -> Image.Image:
    """(H, W) class ids, any number of them -> an RGB image of their colors; ignored pixels are black.

    Classes that the palette lacks have default colors.
    """
    ignored = np.zeros_like(mask, dtype=bool) if ignore_index is None else mask == ignore_index
    ids = np.where(ignored, 0, mask)
    if ids.min() < 0:
        raise ValueError(
            f"class ids are 0 or more, not {ids.min()}. Pass it as ignore_index if it is no class."
        )
    image = np.asarray(completed(palette, ids.max() + 1), dtype=np.uint8)[ids]
    image[ignored] = 0
    return Image.fromarray(image)


def mask_overlay(
    image: Image.Image,
    mask: np.ndarray,
    palette: Palette,
    *,
    strength: float = 0.5,
    ignore_index: int | None = None,
) -> Image.Image:
    """Tints an image with the colors of its classes.

    Args:
        image: The image; it is converted to RGB.
        mask: Class ids (H, W), of the size of the image.
        palette: One (red, green, blue) per class, 0 to 255.
        strength: Weight of the class color, from 0 to 1. Default: 0.5.
        ignore_index: Id of pixels that keep their color. Default: none.

    Returns:
        A new RGB image.

    Raises:
        ValueError: If the sizes differ, or an id is negative and not ignored.
    """
    tinted = Image.blend(image.convert("RGB"), mask_image(mask, palette, ignore_index), strength)
    if ignore_index is not None:
        tinted.paste(image.convert("RGB"), mask=Image.fromarray(mask == ignore_index))
    return tinted


def heat_overlay(
    image: Image.Image, heat: np.ndarray, *, strength: float = 0.8, colormap: str = "inferno"
) -> Image.Image:
    """Draws a map of values, such as attention, over the image in gray; the highest values are brightest.

    The scale goes from the minimum to the 99.5th percentile, so that a few extreme pixels do not leave the
    rest dark.

    Args:
        image: The image.
        heat: Values (H, W), of the size of the image.
        strength: Weight of the map's color, from 0 to 1. Default: 0.8.
        colormap: Name of a matplotlib colormap. Default: "inferno".

    Returns:
        A new RGB image.

    Raises:
        ValueError: If the sizes differ.
    """
    heat = np.asarray(heat, dtype=np.float64)
    low, high = heat.min(), np.percentile(heat, 99.5)
    high = high if high > low else heat.max()
    scaled = np.clip((heat - low) / (high - low), 0, 1) if high > low else np.zeros_like(heat)
    colors = (matplotlib.colormaps[colormap](scaled)[..., :3] * 255).astype(np.uint8)
    return Image.blend(image.convert("L").convert("RGB"), Image.fromarray(colors), strength)


def with_cross(
    image: Image.Image, position: tuple[int, int], *, color: tuple[int, int, int] = (0, 255, 255)
) -> Image.Image:
    """The image with a cross at `position` (x, y), outlined so that it shows on any background."""
    marked = image.convert("RGB")
    draw = ImageDraw.Draw(marked)
    arm = max(4, round(0.025 * max(image.size)))
    thin = max(1, arm // 5)
    x, y = position
    for ink, width, reach in (((0, 0, 0), thin + 2, arm + 1), (color, thin, arm)):
        draw.line([x - reach, y, x + reach, y], fill=ink, width=width)
        draw.line([x, y - reach, x, y + reach], fill=ink, width=width)
    return marked


def image_grid(
    rows: Sequence[Sequence[Image.Image]],
    titles: Sequence[str] = (),
    legend: Mapping[str, Sequence[int]] | None = None,
    *,
    cell_width: int = 320,
    gap: int = 8,
) -> Image.Image:
    """Draws rows of images of equal width, with a title above each column and a legend of colors below."""
    cells = [[fitted(image, cell_width) for image in row] for row in rows]
    heights = [max(cell.height for cell in row) for row in cells]
    columns = max(len(row) for row in cells)
    font = sans(max(12, cell_width // 20))
    line = 2 * font.size
    top = line if titles else 0
    width = columns * (cell_width + gap) + gap
    swatches = legend_lines(legend or {}, font, width - 2 * gap)
    height = top + sum(heights) + gap * (len(rows) + 1) + line * len(swatches)
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        center = gap + column * (cell_width + gap) + cell_width // 2
        draw.text((center, top // 2 + gap // 2), title, fill=INK, font=font, anchor="mm")
    y = top + gap
    for row, row_height in zip(cells, heights, strict=True):
        for column, cell in enumerate(row):
            sheet.paste(cell, (gap + column * (cell_width + gap), y))
        y += row_height + gap
    for entries in swatches:
        draw_legend(draw, entries, font, (gap, y + line // 2))
        y += line
    return sheet


def legend_lines(
    legend: Mapping[str, Sequence[int]], font: ImageFont.FreeTypeFont, width: int
) -> list[list[tuple[str, Sequence[int], int]]]:
    """Lines of (name, color, offset), each at most `width` pixels long."""
    lines, x = [], width
    for name, color in legend.items():
        needed = round(font.getlength(name)) + 3 * font.size
        if x + needed > width:
            lines.append([])
            x = 0
        lines[-1].append((name, color, x))
        x += needed
    return lines


def draw_legend(
    draw: ImageDraw.ImageDraw,
    entries: list[tuple[str, Sequence[int], int]],
    font: ImageFont.FreeTypeFont,
    start: tuple[int, int],
) -> None:
    left, middle = start
    side = round(font.size)
    for name, color, offset in entries:
        x = left + offset
        draw.rectangle([x, middle - side // 2, x + side, middle + side // 2], fill=tuple(color), outline=INK)
        draw.text((x + side + side // 2, middle), name, fill=INK, font=font, anchor="lm")


def fitted(image: Image.Image, width: int) -> Image.Image:
    """RGB at the given width; small images are enlarged by nearest neighbor."""
    height = max(1, round(image.height * width / image.width))
    method = Image.Resampling.LANCZOS if image.width > width else Image.Resampling.NEAREST
    return image.convert("RGB").resize((width, height), method)


@lru_cache
def sans(size: int) -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib, so that images look the same on every machine."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", size)


def save_png(image: Image.Image, target: Path) -> None:
    """Writes a PNG file and the folders that it needs; the file is never left incomplete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as temporary:
        image.save(temporary, format="PNG")
