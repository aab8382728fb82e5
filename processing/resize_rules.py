"""To which size an image goes: exactly a size, by its shortest edge, or down to a number of pixels.

{"height": 512, "width": 1024}      exactly, whatever the aspect ratio was
{"shortest_edge": 512}              keeps the aspect ratio; with "longest_edge": 2048 no edge becomes longer
{"max_pixels": 1000000}             keeps the aspect ratio, never enlarges
"""

from collections.abc import Mapping
from math import sqrt

RULES = (
    {"height", "width"},
    {"shortest_edge"},
    {"shortest_edge", "longest_edge"},
    {"max_pixels"},
)


def check_resize_rule(rule: Mapping[str, int]) -> dict[str, int]:
    """The rule as a plain dictionary, or an error that lists the rules there are."""
    rule = dict(rule) if isinstance(rule, Mapping) or hasattr(rule, "keys") else rule
    if isinstance(rule, dict) and set(rule) in RULES:
        if all(isinstance(value, int) and value >= 1 for value in rule.values()):
            return rule
        raise ValueError(f"size={rule} needs whole numbers of at least 1.")
    known = ", ".join(str(sorted(keys)) for keys in RULES)
    raise ValueError(f"size={rule} is no resize rule. Give a dictionary with exactly these keys: {known}.")


def resized_size(height: int, width: int, rule: Mapping[str, int]) -> tuple[int, int]:
    """(height, width) after resizing by `rule`; each at least 1, however long and thin the image is."""
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
    new_width = max(1, min(int(width * scale), max_pixels // new_height))  # where the height was lifted to 1
    return min(new_height, max_pixels // new_width), new_width
