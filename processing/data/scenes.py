"""Generated scenes whose labels need context: the data of the demo, and a benchmark of how far a model sees.

A scene shows mountains in spring from above. Its white areas are either snow fields or frozen lakes, drawn by
the same code, so they look alike. A small flag tells which: red for ice, blue for snow. No white pixel is
nearer to the flag than `distance`, so a model with a smaller receptive field can do no better than guess
their class. Everything else (forest floor, path, trees, cabins, boulders) can be learned locally.

A scene depends only on (seed, index, size, distance); `swap_flag` repaints the flag and relabels the white
areas, and changes no other pixel.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = {
    "forest floor": (126, 142, 92),
    "path": (222, 184, 120),
    "tree": (34, 100, 66),
    "cabin": (176, 80, 48),
    "boulder": (124, 122, 132),
    "blue flag": (58, 78, 214),
    "red flag": (222, 44, 48),
    "snow field": (246, 248, 252),
    "frozen lake": (112, 190, 240),
}
FLOOR, PATH, TREE, CABIN, BOULDER, BLUE_FLAG, RED_FLAG, SNOW, ICE = range(len(CLASSES))
FLAGS, AMBIGUOUS = (BLUE_FLAG, RED_FLAG), (SNOW, ICE)
IGNORE_INDEX = 255

MOSS, EARTH, SAND, WHITE = (96, 112, 62), (128, 116, 80), (206, 176, 122), (229, 234, 240)
ROOF, STONE, PINE, RED, BLUE = (150, 74, 50), (142, 140, 146), (46, 88, 54), (226, 38, 44), (40, 70, 226)
FLAG_REACH = 6  # largest distance in pixels from the center to a pixel of the flag or its mast


@dataclass(frozen=True)
class Scene:
    """An image with its labels and the position of the cue.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) uint8 class ids, in the order of `CLASSES`.
        frozen: Whether the white areas are ice (red flag) rather than snow (blue flag).
        flag: Row and column of the center of the flag.
        distance: Distance in pixels from the bounding box of the flag to the nearest white pixel.
    """

    image: np.ndarray
    mask: np.ndarray
    frozen: bool
    flag: tuple[int, int]
    distance: float


class Canvas:
    """An image and its mask, painted together."""

    def __init__(self, size: int) -> None:
        self.image = np.zeros((size, size, 3), np.float32)
        self.mask = np.full((size, size), FLOOR, np.uint8)
        self.size = size

    def around(
        self, row: float, column: float, reach: float
    ) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
        """The part of the canvas around a point; its rows (h, 1) and columns (1, w) relative to the point."""
        top, left = (max(0, int(center - reach)) for center in (row, column))
        bottom, right = (min(self.size, int(center + reach) + 2) for center in (row, column))
        down = np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(row)
        across = np.arange(left, right, dtype=np.float32)[None, :] - np.float32(column)
        return (slice(top, bottom), slice(left, right)), down, across

    def paint(self, part: tuple, depth: np.ndarray, color: np.ndarray, label: int) -> None:
        """Fills where `depth`, the pixels inside the outline, is positive, with a soft edge of one pixel."""
        self._blend(part, np.clip(depth + 0.5, 0, 1), color)
        self.mask[part][depth > 0] = label

    def shade(self, part: tuple, depth: np.ndarray) -> None:
        """Darkens the image like a shadow; the mask keeps the class that the shadow falls on."""
        self._blend(part, 0.45 * np.clip(0.5 * depth + 0.5, 0, 1), np.float32((20, 26, 30)))

    def _blend(self, part: tuple, opacity: np.ndarray, color: np.ndarray) -> None:
        self.image[part] += opacity[..., None] * (color - self.image[part])


def draw_scene(
    seed: int, index: int, size: int = 128, distance: float = 64, swap_flag: bool = False
) -> Scene:
    """Draws scene number `index` of the series `seed`.

    Args:
        seed: Seed of the series.
        index: Number of the scene.
        size: Height and width in pixels, at least 64.
        distance: Smallest distance in pixels from the flag to a white pixel, from 0 to `0.7 * size`.
        swap_flag: Whether to draw the other flag, so that snow becomes ice and ice becomes snow.

    Raises:
        ValueError: If `size` or `distance` is out of range.
    """
    if size < 64:
        raise ValueError(f"size={size} leaves no room for a scene. Pass size >= 64.")
    if not 0 <= distance <= 0.7 * size:
        raise ValueError(
            f"distance={distance} does not fit into {size} pixels. Pass 0 <= distance <= {0.7 * size:g}."
        )
    rng = np.random.default_rng((seed, index))
    frozen = bool(rng.integers(2)) != swap_flag
    flag, whites = _place_flag_and_whites(rng, size, distance)

    canvas = Canvas(size)
    _draw_floor(canvas, rng)
    _draw_path(canvas, rng)
    for white in whites:
        _draw_white(canvas, rng, *white, label=ICE if frozen else SNOW)
    _draw_objects(canvas, rng)
    _draw_flag(canvas, *flag, *((RED, RED_FLAG) if frozen else (BLUE, BLUE_FLAG)))

    image = np.clip(canvas.image, 0, 255).astype(np.uint8)
    return Scene(image, canvas.mask, frozen, flag, _distance_to_flag(canvas.mask))


def write_scenes(folder: str | Path, count: int, seed: int, size: int = 128, distance: float = 64) -> Path:
    """Writes scenes 0 to `count - 1` as `images/`, `masks/` and `classes.json`, which `open_data` reads.

    Args:
        folder: Folder to write to; it is created if needed.
        count: Number of scenes.
        seed: Seed of the series.
        size: Height and width in pixels.
        distance: Smallest distance in pixels from the flag to a white pixel.

    Returns:
        The folder.
    """
    folder = Path(folder)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    palette = [channel for color in CLASSES.values() for channel in color]
    for index in range(count):
        scene = draw_scene(seed, index, size, distance)
        Image.fromarray(scene.image).save(folder / "images" / f"{index:05d}.png")
        mask = Image.fromarray(scene.mask).convert("P")
        mask.putpalette(palette)
        mask.save(folder / "masks" / f"{index:05d}.png")
    (folder / "classes.json").write_text(json.dumps(class_table(), indent=1) + "\n")
    return folder


def class_table() -> dict:
    """The content of `classes.json`: names, colors and the ignore index."""
    classes = [
        {"index": i, "name": name, "color": list(color)} for i, (name, color) in enumerate(CLASSES.items())
    ]
    return {"num_classes": len(classes), "ignore_index": IGNORE_INDEX, "classes": classes}


def _place_flag_and_whites(rng: np.random.Generator, size: int, distance: float) -> tuple[tuple, list[tuple]]:
    """The (row, column) of the flag, and the (row, column, radius) of one or two white areas."""
    margin = 2 * FLAG_REACH
    while True:  # one draw in three succeeds even at the largest distance that `draw_scene` accepts
        center, radius = rng.uniform(0.12 * size, 0.88 * size, 2), rng.uniform(0.19, 0.27) * size
        places = _points_beyond(center, _outermost(radius) + distance + FLAG_REACH, margin, size)
        if len(places):
            break
    flag = tuple(int(position) for position in rng.choice(places))
    whites = [(*center, radius)]
    radius = rng.uniform(0.08, 0.13) * size
    places = _points_beyond(flag, _outermost(radius) + distance + FLAG_REACH, margin, size)
    if len(places) and rng.random() < 0.6:
        whites.append((*rng.choice(places), radius))
    return flag, whites


def _points_beyond(point: tuple, reach: float, margin: int, size: int) -> np.ndarray:
    """(N, 2) positions inside the margin and beyond `reach` of the point, on a grid of every fourth pixel."""
    axis = np.arange(margin, size - margin, 4)
    far = np.hypot(axis[:, None] - point[0], axis[None, :] - point[1]) > reach
    return axis[np.argwhere(far)]


def _distance_to_flag(mask: np.ndarray) -> float:
    """(H, W) class ids -> distance in pixels from the bounding box of the flag to the nearest white pixel."""
    flag, white = np.argwhere(np.isin(mask, FLAGS)), np.argwhere(np.isin(mask, AMBIGUOUS))
    gap = np.maximum(flag.min(axis=0) - white, white - flag.max(axis=0)).clip(0)
    return float(np.sqrt((gap**2).sum(axis=1).min()))


def _draw_floor(canvas: Canvas, rng: np.random.Generator) -> None:
    patches = _smooth_noise(rng, canvas.size, canvas.size // 20)
    grain = _smooth_noise(rng, canvas.size, canvas.size // 3)
    blend = np.clip(0.5 + 0.9 * patches, 0, 1)[..., None]
    canvas.image[:] = (1 - blend) * np.float32(MOSS) + blend * np.float32(EARTH) + 20 * grain[..., None]


def _draw_path(canvas: Canvas, rng: np.random.Generator) -> None:
    """Draws a winding path from one side to the other, along rows or columns."""
    along = np.arange(canvas.size, dtype=np.float32) / canvas.size
    middle = rng.uniform(0.3, 0.7) + rng.uniform(-0.3, 0.3) * (along - 0.5)
    middle += rng.uniform(0.04, 0.09) * np.sin(rng.uniform(4, 8) * along + rng.uniform(0, 6.3))
    offset = along[:, None] * canvas.size - middle[None, :].astype(np.float32) * canvas.size
    depth = rng.uniform(3.5, 5) - np.abs(offset if rng.random() < 0.5 else offset.T)
    grain = 12 * _smooth_noise(rng, canvas.size, canvas.size // 4)
    canvas.paint(np.s_[:, :], depth, np.float32(SAND) + grain[..., None], PATH)


def _draw_white(
    canvas: Canvas, rng: np.random.Generator, row: float, column: float, radius: float, label: int
) -> None:
    part, down, across = canvas.around(row, column, _outermost(radius))
    waves, phases = rng.uniform(-0.09, 0.09, 3), rng.uniform(0, 6.3, 3)
    angle = np.arctan2(down, across)
    outline = radius * (
        1 + sum(w * np.cos(k * angle + p) for k, w, p in zip((2, 3, 5), waves, phases, strict=True))
    )
    depth = outline - np.hypot(down, across)
    sheen = 9 * _smooth_noise(rng, canvas.size, canvas.size // 12)[part]
    shore = 46 * np.exp(-np.maximum(depth, 0) / 2)
    color = np.float32(WHITE) + sheen[..., None] - shore[..., None] * np.float32((1, 0.75, 0.5))
    canvas.shade(part, depth + 2)
    canvas.paint(part, depth, color, label)


def _outermost(radius: float) -> float:
    """The largest radius of a white area with this mean radius."""
    return 1.27 * radius


def _draw_objects(canvas: Canvas, rng: np.random.Generator) -> None:
    """Draws cabins, boulders and trees, none of them with its center in a white area."""
    acres = (canvas.size / 128) ** 2
    for count, draw in ((3, _draw_cabin), (5, _draw_boulder), (15, _draw_tree)):
        for row, column in rng.uniform(0.03 * canvas.size, 0.97 * canvas.size, (round(count * acres), 2)):
            if canvas.mask[int(row), int(column)] < SNOW:
                draw(canvas, rng, row, column)


def _draw_cabin(canvas: Canvas, rng: np.random.Generator, row: float, column: float) -> None:
    half = rng.uniform(5, 8, 2)
    part, down, across = canvas.around(row, column, half.max() + 4)
    canvas.shade(part, np.minimum(half[0] - np.abs(down - 2.5), half[1] - np.abs(across - 2.5)))
    depth = np.minimum(half[0] - np.abs(down), half[1] - np.abs(across))
    over_ridge = (
        down if half[0] < half[1] else across
    )  # the ridge runs along the longer side; light comes from the top left
    light = np.where(over_ridge < 0, 1.18, 0.78) * np.ones_like(depth)
    canvas.paint(part, depth, light[..., None] * np.float32(ROOF), CABIN)


def _draw_boulder(canvas: Canvas, rng: np.random.Generator, row: float, column: float) -> None:
    _draw_round(canvas, row, column, rng.uniform(4, 6.5), (rng.uniform(0.05, 0.15), 3), (STONE, BOULDER))


def _draw_tree(canvas: Canvas, rng: np.random.Generator, row: float, column: float) -> None:
    _draw_round(canvas, row, column, rng.uniform(5.5, 9), (rng.uniform(0.08, 0.14), 8), (PINE, TREE))


def _draw_round(
    canvas: Canvas, row: float, column: float, radius: float, wave: tuple[float, int], look: tuple[tuple, int]
) -> None:
    """Draws a ball lit from the top left: wave = (depth, number) of its scallops, look = (color, label)."""
    part, down, across = canvas.around(row, column, 1.2 * radius + 3)
    outline = radius * (1 + wave[0] * np.cos(wave[1] * np.arctan2(down, across)))
    canvas.shade(part, outline - np.hypot(down - 2.5, across - 2.5))
    light = np.clip(1 - 0.34 * (down + across) / radius, 0.55, 1.6)
    canvas.paint(part, outline - np.hypot(down, across), light[..., None] * np.float32(look[0]), look[1])


def _draw_flag(canvas: Canvas, row: int, column: int, color: tuple[int, int, int], label: int) -> None:
    """Draws a flag of 9 x 7 pixels on a mast. Only these pixels depend on the class of the white areas."""
    part, down, across = canvas.around(row, column, FLAG_REACH)
    canvas.shade(part, np.minimum(6 - np.abs(down), 1 - np.abs(across + 4)))
    mast = np.minimum(6.5 - np.abs(down), 0.5 - np.abs(across + 5))
    cloth = np.minimum(3.5 - np.abs(down + 3), 4.5 - np.abs(across))
    canvas.paint(part, mast, np.float32((250, 250, 250)), label)
    canvas.paint(part, cloth, np.float32(color), label)


def _smooth_noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """(size, size) values in -1..1 that vary smoothly over `cells` x `cells` patches."""
    spread = _smoothing_matrix(size, cells)
    return spread @ rng.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32) @ spread.T


@lru_cache
def _smoothing_matrix(size: int, cells: int) -> np.ndarray:
    """(size, cells + 1) weights of a smooth interpolation between knots."""
    position = np.linspace(0, cells, size, endpoint=False, dtype=np.float32)
    left = position.astype(int)
    share = position - left
    share = share * share * (3 - 2 * share)
    matrix = np.zeros((size, cells + 1), np.float32)
    matrix[np.arange(size), left], matrix[np.arange(size), left + 1] = 1 - share, share
    return matrix
