"""Rules for the size an image is resized to: a fixed size, a shortest edge, or a maximum number of pixels.

{"height": 512, "width": 1024}      this size, whatever the aspect ratio
{"shortest_edge": 512}              keeps the aspect ratio; "longest_edge": 2048 limits the other edge
{"max_pixels": 1000000}             keeps the aspect ratio, never enlarges

Masks are resized to the same size by nearest neighbor.
"""

from collections.abc import Mapping
from math import sqrt

import numpy as np

RULES = (
    {"height", "width"},
    {"shortest_edge"},
    {"shortest_edge", "longest_edge"},
    {"max_pixels"},
)


def check_resize_rule(rule: Mapping[str, int]) -> dict[str, int]:
    """The rule as a plain dict. Raises ValueError, with the list of known rules, if it is invalid."""
    rule = dict(rule) if isinstance(rule, Mapping) or hasattr(rule, "keys") else rule
    if isinstance(rule, dict) and set(rule) in RULES:
        if all(isinstance(value, int) and value >= 1 for value in rule.values()):
            return rule
        raise ValueError(f"size={rule} is invalid. Give whole numbers of at least 1, in pixels.")
    known = ", ".join(str(sorted(keys)) for keys in RULES)
    raise ValueError(
        f"size={rule} is not a resize rule. Give a dict with exactly one of these sets of keys: {known}."
    )


def resized_size(height: int, width: int, rule: Mapping[str, int]) -> tuple[int, int]:
    """Returns (height, width) after resizing by `rule`; each is at least 1, whatever the aspect ratio."""
    if "height" in rule:
        return rule["height"], rule["width"]
    if "max_pixels" in rule:
        return _within_pixels(height, width, rule["max_pixels"])
    scale = rule["shortest_edge"] / min(height, width)
    if "longest_edge" in rule:
        scale = min(scale, rule["longest_edge"] / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _within_pixels(height: int, width: int, max_pixels: int) -> tuple[int, int]:
    if height * width <= max_pixels:
        return height, width
    scale = sqrt(max_pixels / (height * width))
    new_height = max(1, int(height * scale))
    new_width = max(1, min(int(width * scale), max_pixels // new_height))  # if the height was raised to 1
    return min(new_height, max_pixels // new_width), new_width


def resized_nearest(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) -> `size`: the value under the center of each new pixel."""
    rows, columns = (pixels_under_centers(old, new) for old, new in zip(array.shape, size, strict=True))
    return array[rows[:, None], columns]


def pixels_under_centers(old: int, new: int) -> np.ndarray:
    """(new,): the pixels of `old` ones in which the centers of `new` ones lie."""
    return ((np.arange(new) + 0.5) * old / new).astype(np.int64)
