"""Masks over images with a legend, and grids of images with titles and a legend.

Legend: H, W image axes. Drawing functions return new RGB images; masks are arrays (H, W).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from .atomic_write import atomic_write
from .fonts import font_for
from .legends import (
    INK,
    PAPER,
    class_entries,
    cut_to,
    draw_legend,
    is_background,
    legend_lines,
    swatches,
    with_strip,
)

Palette = Sequence[Sequence[int]]
BAND_PIXELS = 1 << 22  # pixels that are tinted at a time


def mask_image(mask: np.ndarray, palette: Palette, ignore_index: int | None = None) -> Image.Image:
    """(H, W) class ids -> an RGB image of their colors; ignored pixels are black."""
    ids = np.asarray(mask)
    ignored = np.zeros_like(ids, dtype=bool) if ignore_index is None else ids == ignore_index
    ids = np.where(ignored, 0, ids)
    if ids.size and not 0 <= ids.min() <= ids.max() < len(palette):
        raise ValueError(
            f"the mask has class ids from {ids.min()} to {ids.max()}, but there are {len(palette)} colors. "
            "Give one color per class."
        )
    colors = np.asarray(palette, dtype=np.uint8)[ids]
    colors[ignored] = 0
    return Image.fromarray(colors)


def mask_overlay(
    image: Image.Image,
    mask: np.ndarray,
    palette: Palette,
    *,
    strength: float = 0.5,
    ignore_index: int | None = None,
    names: Sequence[str] | None = None,
) -> Image.Image:
    """Tints an image with the colors of its classes; with class names, a legend is added below.

    Args:
        image: The image; it is converted to RGB.
        mask: Class ids (H, W), of the size of the image.
        palette: One (red, green, blue) per class, 0 to 255.
        strength: Weight of the class color, from 0 to 1. Default: 0.5.
        ignore_index: Id of pixels that keep their color. Default: none.
        names: Class names by id. With them, a legend below the image tells the color and the share of each
            class that is present, and a class that is background by its name ("background", "bg",
            "unlabeled", "void", "no label" or "none", in any case) keeps the image's colors. Default: none.

    Returns:
        A new RGB image. Without `names` it has the size of the image; with them, the image keeps its size and
        its place at the top left.

    Raises:
        ValueError: If the sizes differ, or an id has no color and is not ignored.
    """
    ids, tinted = np.asarray(mask), image.convert("RGB").copy()
    if ids.shape != (image.height, image.width):
        raise ValueError(
            f"a mask of {' x '.join(map(str, ids.shape))} does not fit an image of {image.height} x {image.width} "
            "(height x width). Give a mask of the size of the image."
        )
    weights = [0 if names and is_background(name) else round(255 * strength) for name in names or palette]
    weights, rows = np.array(weights, dtype=np.uint8), max(1, BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):  # in bands, to save memory
        band = ids[top : top + rows]
        colors = mask_image(band, palette, ignore_index)
        weight = np.where(band == ignore_index, 0, weights[np.where(band == ignore_index, 0, band)])
        tinted.paste(colors, (0, top), Image.fromarray(weight.astype(np.uint8)))
    if names is None:
        return tinted
    counts = np.bincount(ids[ids != ignore_index].ravel(), minlength=len(names)).tolist()
    return with_strip(tinted, swatches(class_entries(counts, names, palette), image.width))


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
    size = max(12, cell_width // 20)
    line = 2 * size
    top = line if titles else 0
    width = columns * (cell_width + gap) + gap
    legend_rows = legend_lines(list((legend or {}).items()), size, width - 2 * gap)
    height = top + sum(heights) + gap * (len(rows) + 1) + line * len(legend_rows)
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        center = gap + column * (cell_width + gap) + cell_width // 2
        text = cut_to(title, size, cell_width)
        draw.text((center, top // 2 + gap // 2), text, fill=INK, font=font_for(text, size), anchor="mm")
    y = top + gap
    for row, row_height in zip(cells, heights, strict=True):
        for column, cell in enumerate(row):
            sheet.paste(cell, (gap + column * (cell_width + gap), y))
        y += row_height + gap
    for entries in legend_rows:
        draw_legend(draw, entries, size, (gap, y + line // 2))
        y += line
    return sheet


def fitted(image: Image.Image, width: int) -> Image.Image:
    """RGB at the given width; small images are enlarged by nearest neighbor."""
    height = max(1, round(image.height * width / image.width))
    method = Image.Resampling.LANCZOS if image.width > width else Image.Resampling.NEAREST
    return image.convert("RGB").resize((width, height), method)


def save_png(image: Image.Image, target: Path) -> None:
    """Writes a PNG file and the folders that it needs; the file is never left incomplete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as temporary:
        image.save(temporary, format="PNG")
