"""Parsers of options that hold values in a text, such as 360x480, 0.75,1,1.25, or global_tokens=10.

Most are called with the text and, for their messages, the name of the option; all raise ValueError.
"""

import ast
import json
import math
import re
from typing import Any

from ..configuration.ranges import Range, check_number, shown, whole
from ..processing.plain_text import one_line

LONGEST = 80  # characters of an option in a message
SIDE = whole(1, 32768)  # pixels of a crop, a window or a resized image
SIDE_STEP = 32  # between the lengths of a range, as in DETR and its successors
LEAST_MEMORY, MOST_MEMORY = 256 << 20, 1 << 50  # bytes
BYTES = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*((?:[kmgt]i?)?b?)", re.IGNORECASE)
SPACING = Range(above=0, maximum=1000)  # millimeters
FACTOR = Range(above=0, maximum=1000)


def height_and_width(text: str, option: str) -> tuple[int, int]:
    """Parses the value of `option`: `"512"` -> (512, 512), `"360x480"` -> (360, 480).

    Raises ValueError for anything else.
    """
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(is_count(part) for part in parts):
        raise ValueError(
            f"{option} {one_line(text, LONGEST)} is not a size. Write a number of pixels, or HEIGHTxWIDTH."
        )
    for part in parts:
        check_number(option, int(part), SIDE)
    return int(parts[0]), int(parts[-1])


def window_sides(text: str, option: str) -> int | tuple[int, ...]:
    """Parses the value of --window: `"64"` -> 64, `"360x480"` -> (360, 480), `"64x128x128"` -> (64, 128, 128).

    Raises ValueError for anything else.
    """
    parts = text.lower().split("x")
    if len(parts) > 3 or not all(is_count(part) for part in parts):
        raise ValueError(
            f"{option} {one_line(text, LONGEST)} is not a size. Write a number of pixels, or HEIGHTxWIDTH; "
            "SLICESxROWSxCOLUMNS for volumes."
        )
    for part in parts:
        check_number(option, int(part), SIDE)
    return int(text) if len(parts) == 1 else tuple(map(int, parts))


def volume_size(text: str, option: str) -> tuple[int, int, int]:
    """Parses a size of volumes: `"64x128x128"` -> (64, 128, 128), `"64"` -> (64, 64, 64)."""
    numbers = window_sides(text, option)
    if isinstance(numbers, int):
        return (numbers,) * 3
    if len(numbers) == 2:
        raise ValueError(
            f"{option} {text} has two numbers, but volumes have three axes. Write SLICESxROWSxCOLUMNS, such as 64x128x128, "
            "or one number for all of them."
        )
    return numbers


def spacing(text: str, option: str = "--target-spacing") -> tuple[float, float, float]:
    """Parses a voxel spacing in millimeters: `"3x0.76x0.76"` -> (3.0, 0.76, 0.76), `"1"` -> (1.0, 1.0, 1.0)."""
    numbers = [number(part) for part in text.lower().replace(",", "x").split("x")]
    if len(numbers) not in (1, 3) or None in numbers:
        raise ValueError(
            f"{option} {one_line(text, LONGEST)} is not a spacing. Write SLICESxROWSxCOLUMNS in millimeters, such as "
            "3x0.76x0.76, or one number for all of them."
        )
    for value in numbers:
        check_number(option, value, SPACING)
    return tuple(numbers * 3 if len(numbers) == 1 else numbers)


def crop_size(text: str) -> tuple[int, int]:
    """Parses --crop-size, see `height_and_width`."""
    return height_and_width(text, "--crop-size")


def shorter_sides(text: str, option: str = "--shorter-side") -> tuple[int, ...]:
    """Parses the value of --shorter-side: `"800"` -> (800,), `"480-800"` -> (480, 512, ..., 800)."""
    parts = text.split("-")
    if len(parts) > 2 or not all(is_count(part) for part in parts):
        raise ValueError(
            f"{option} {one_line(text, LONGEST)} is not a length. Write a number of pixels, or a range such as 480-800."
        )
    first, last = int(parts[0]), int(parts[-1])
    if first > last:
        raise ValueError(f"{option} {text} starts with the larger value. Write {last}-{first}.")
    check_number(option, last, SIDE)
    return (*range(first, last, SIDE_STEP), last)


def integers(text: str, option: str) -> list[int]:
    """Parses numbers of pixels, of images, ...: `"1,2"` -> [1, 2]."""
    parts = text.split(",")
    if not all(is_count(part) for part in parts):
        raise ValueError(
            f"{option} is '{one_line(text, LONGEST)}'. Give whole numbers separated by commas, such as 1,2."
        )
    for part in parts:
        check_number(option, int(part), SIDE)
    return [int(part) for part in parts]


def factors(text: str, option: str = "--scales") -> tuple[float, ...]:
    """Parses the value of --scales: `"0.75,1,1.25"` -> (0.75, 1.0, 1.25)."""
    numbers = [number(part) for part in text.split(",")]
    if None in numbers:
        raise ValueError(
            f"{option} {one_line(text, LONGEST)} is not a list of factors. Write them as 0.75,1,1.25."
        )
    for value in numbers:
        check_number(option, value, FACTOR)
    return tuple(numbers)


def part_and_factor(text: str, option: str = "--lr-factor") -> tuple[str, float]:
    """Parses one value of --lr-factor: `"global_tokens=10"` -> ("global_tokens", 10.0)."""
    part, _, written = text.partition("=")
    factor = number(written)
    if factor is None or not part:
        raise ValueError(
            f"{option} {one_line(text, LONGEST)} is not PART=FACTOR. Write for example {option} global_tokens=10."
        )
    check_number(f"the factor of {option} {text}", factor, Range(minimum=0, maximum=1e6))
    return part, factor


def byte_count(text: str, option: str = "--memory") -> int:
    """Parses an amount of memory: `"500MB"` -> 500,000,000, `"1.5GiB"` -> 1,610,612,736, `"2000000000"` -> that.

    Raises ValueError for anything else, and for amounts below 256 MiB.
    """
    found = BYTES.fullmatch(text.strip())
    if found is None:
        raise ValueError(
            f"{option} {one_line(text, LONGEST)} is not an amount of memory. Write for example 500MB, 2GB or 1.5GiB."
        )
    unit = found[2].lower()
    base = 1024 if "i" in unit else 1000
    count = float(found[1]) * base ** " kmgt".index(unit.rstrip("ib")[:1] or " ")
    if not LEAST_MEMORY <= count <= MOST_MEMORY:
        raise ValueError(f"{option} {text} is out of range. Give from 256MiB to 1024TiB.")
    return int(count)


def milestone(text: str, option: str = "--milestones") -> float:
    """Parses one value of --milestones, an epoch or a step."""
    place = number(text)
    if place is None or not math.isfinite(place):
        raise ValueError(f"{option} {one_line(text, LONGEST)} is not a number. Give epochs or steps.")
    check_number(option, place, Range(above=0))
    return place


def parse_position(text: str, option: str = "--explain") -> tuple[int, int]:
    """Parses the position of a pixel: `"120,45"` -> (120, 45), from the left and from the top."""
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(
            f"{option} {one_line(text, LONGEST)} is not a position. Write X,Y in pixels from the left and the top, such as 120,45."
        )
    return int(parts[0]), int(parts[1])


def value_limits(text: str, option: str = "--value-range") -> tuple[float, float]:
    """Parses the values of black and white: `"0,4095"` or `"0 4095"` -> (0.0, 4095.0)."""
    limits = [number(part) for part in text.replace(",", " ").split()]
    if len(limits) != 2 or not all(limit is not None and math.isfinite(limit) for limit in limits):
        raise ValueError(
            f"{option} {one_line(text, LONGEST)} is not a range. Write LOW HIGH, such as {option} 0 4095."
        )
    if limits[0] >= limits[1]:
        raise ValueError(
            f"{option} {one_line(text, LONGEST)} does not begin with the smaller value. Write LOW HIGH."
        )
    return tuple(limits)


def parse_overrides(settings: list[str]) -> dict[str, Any]:
    """Parses --set: `["embed_dim=32", "depths=[2,2,2,2]"]` -> values by field name."""
    overrides = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name:
            raise ValueError(
                f"--set {shown(setting)} has no value. Write --set NAME=VALUE, such as --set embed_dim=32."
            )
        overrides[name.strip().replace("-", "_")] = parse_value(text.strip())
    return overrides


def parse_value(text: str) -> Any:
    """Parses a number, list, boolean or null, in JSON or Python syntax; otherwise a string."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return text


def is_count(text: str) -> bool:
    """Whether a text is a whole number above 0, and short enough to be parsed."""
    text = text.strip()
    return text.isdecimal() and len(text) < 20 and int(text) > 0


def number(text: str) -> float | None:
    """Returns the number that a text is, NaN and infinity included; None if it is not a number."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return None
