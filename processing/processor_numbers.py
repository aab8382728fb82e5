"""Checks of the numbers and switches of image processors and of reading, which would otherwise give NaN, or fail far from the cause."""

from collections.abc import Callable, Mapping
from math import isfinite
from numbers import Integral, Real
from typing import Any


def is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and isfinite(value)


def is_positive(value: Any) -> bool:
    return is_number(value) and value > 0


def is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def each_channel(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """The check for one number for all channels, or a list of one per channel."""
    return lambda value: all(map(check, value)) and len(value) > 0 if is_list(value) else check(value)


def is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def is_range(value: Any) -> bool:
    return is_list(value) and len(value) == 2 and all(map(is_number, value)) and value[0] < value[1]


DATA_FORMATS = ("channels_first", "channels_last")
# Option: what it may be, if it is not None; and that in words.
NUMBER_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "image_mean": (each_channel(is_number), "a number, or one for each channel"),
    "image_std": (each_channel(is_positive), "a number above 0, or one for each channel"),
    "rescale_factor": (is_positive, "a number above 0"),
    "value_range": (is_range, "(low, high), two numbers of which the first is smaller"),
    **dict.fromkeys(
        ("pixel_limit", "num_channels"),
        (lambda value: is_whole(value) and value > 0, "a whole number above 0"),
    ),
    "resample": (lambda value: is_whole(value) and 0 <= value <= 5, "one of PIL's filters, 0 to 5"),
    "input_data_format": (lambda value: value in DATA_FORMATS, "channels_first or channels_last"),
    "data_format": (lambda value: value == "channels_first", "channels_first, which models take"),
    **dict.fromkeys(
        ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb", "do_pad", "do_reduce_labels"),
        (lambda value: isinstance(value, bool), "True or False"),
    ),
}


def check_processor_numbers(options: Mapping[str, Any]) -> None:
    """Raises ValueError for the first option of `NUMBER_RULES` whose value it cannot have; None is always allowed."""
    for name, (is_allowed, words) in NUMBER_RULES.items():
        value = options.get(name)
        if value is not None and not is_allowed(value):
            raise ValueError(f"{name} is {value!r:.80}, but must be {words}.")
