"""Maps of values over a photograph, such as attention and Grad-CAM, with their scale.

Legend: H, W image axes.
"""

import math

import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from .legends import color_bar, with_strip

PERCENTILE = 99.5  # the top of the scale, so that a few extreme pixels do not leave the rest dark
LOWEST = 0.4  # weight of the first color as a share of that of the last: the photograph shows where little is


def heat_overlay(
    image: Image.Image,
    heat: np.ndarray,
    *,
    strength: float = 0.7,
    colormap: str = "inferno",
    low: float | None = None,
) -> Image.Image:
    """Draws a map of values, such as attention, over the image in gray; the highest values are brightest.

    The scale goes from the minimum to the 99.5th percentile, so that a few extreme pixels do not leave the
    rest dark.

    Args:
        image: The image.
        heat: Values (H, W), of the size of the image.
        strength: Weight of the map's color where it is highest, from 0 (the photograph in gray) to 1; it falls
            to 0.4 times that where it is lowest. Default: 0.7.
        colormap: Name of a matplotlib colormap. Default: "inferno".
        low: Value of the first color. Default: the minimum.

    Returns:
        A new RGB image.

    Raises:
        ValueError: If the sizes differ.
    """
    low, high = scale_of(heat, low)
    heat = np.asarray(heat, dtype=np.float32)
    scaled = np.clip((heat - low) / (high - low), 0, 1) if high > low else np.zeros_like(heat)
    levels = np.rint(scaled * 255).astype(np.uint8)
    weights = np.rint(255 * weights_of(strength)).astype(np.uint8)
    gray = image.convert("L").convert("RGB")
    return Image.composite(
        Image.fromarray(colors_of(colormap)[levels]), gray, Image.fromarray(weights[levels])
    )


def heat_picture(
    image: Image.Image,
    heat: np.ndarray,
    label: str,
    *,
    position: tuple[int, int] | None = None,
    strength: float = 0.7,
    colormap: str = "inferno",
    low: float | None = None,
) -> Image.Image:
    """Draws `heat_overlay` with its scale below: a color bar with the values at both ends.

    The photograph keeps its size and its place at the top left.

    Args:
        image: The image.
        heat: Values (H, W), of the size of the image.
        label: What the values are, such as "attention, multiples of the mean"; it stands below the bar.
        position: (x, y) of a pixel to mark with a cross. Default: none.
        strength: As in `heat_overlay`. Default: 0.7.
        colormap: Name of a matplotlib colormap. Default: "inferno".
        low: Value of the first color. Default: the minimum.

    Returns:
        A new RGB image.

    Raises:
        ValueError: If the sizes differ.
    """
    picture = heat_overlay(image, heat, strength=strength, colormap=colormap, low=low)
    if position is not None:
        picture = with_cross(picture, position)
    low, high = scale_of(heat, low)
    ends = number_text(low, high), ("≥ " if high < np.max(heat) else "") + number_text(high, high)
    weights = weights_of(strength)[:, None]
    on_gray = weights * colors_of(colormap) + (1 - weights) * 128
    return with_strip(picture, color_bar(on_gray, ends, label, image.width))


def scale_of(heat: np.ndarray, low: float | None = None) -> tuple[float, float]:
    """The values that get the first and the last color: `low` or the minimum, and the 99.5th percentile."""
    low, high = float(np.min(heat)) if low is None else low, float(np.percentile(heat, PERCENTILE))
    return low, high if high > low else float(np.max(heat))


def number_text(value: float, largest: float) -> str:
    """The value with the decimals of three significant digits of the largest one."""
    decimals = 2 - math.floor(math.log10(abs(largest))) if largest else 0
    return f"{round(value, decimals) + 0.0:.3g}"


def weights_of(strength: float) -> np.ndarray:
    """Weight of each of the 256 colors over the photograph."""
    return strength * np.linspace(LOWEST, 1, 256)


def colors_of(colormap: str) -> np.ndarray:
    """The 256 colors (256, 3) of a matplotlib colormap, uint8."""
    return (matplotlib.colormaps[colormap](np.arange(256))[:, :3] * 255).astype(np.uint8)


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
