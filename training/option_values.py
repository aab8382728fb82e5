"""What the values of options may be: ranges of numbers, and parsers of texts that hold numbers.

Values of a command line, a recipe, a stored run and a dictionary in Python all pass through `check_options`.
"""

import dataclasses
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..configuration.ranges import Range, check_number, shown, whole
from .option_texts import (
    SIDE,
    byte_count,
    factors,
    height_and_width,
    integers,
    milestone,
    parse_position,
    part_and_factor,
    shorter_sides,
    spacing,
    value_limits,
    window_sides,
)

COUNT, COUNT_OR_ZERO = whole(1, 10**9), whole(0, 10**9)
RATE = Range(minimum=0, maximum=1e30)  # AdamW divides it, and float32 ends at 3e38
SHARE = Range(minimum=0, maximum=1)
SCALE = Range(minimum=0.001, maximum=100)
SCENE = whole(32, 4096)  # pixels

# Every option that is a number, of all commands: a name means the same in each.
RANGES = {
    "accumulation": COUNT,
    "batch_size": COUNT,
    "boundary_band": whole(1, 4096),  # pixels
    "clip_norm": Range(above=0),
    "color_jitter": SHARE,
    "cooldown_steps": COUNT_OR_ZERO,
    "distance": Range(minimum=0, maximum=4096),
    "ema": Range(above=0, below=1),
    "epochs": Range(above=0, maximum=10**6),
    "crops_per_image": whole(1, 10**4),  # the order of all crops of an epoch is kept in memory
    "early_stopping": COUNT,
    "eval_interval": COUNT,
    "foreground_share": SHARE,
    "head_lr_factor": Range(minimum=0, maximum=10**6),
    "jobs": whole(1, 1024),
    "label_smoothing": Range(minimum=0, below=1),
    "layer_decay": Range(above=0, maximum=1),
    "learning_rate": RATE,
    "log_interval": COUNT,
    "longer_side": SIDE,
    "lora": whole(0, 4096),
    "max_scale": SCALE,
    "min_area": Range(above=0, maximum=1),
    "min_learning_rate": RATE,
    "min_scale": SCALE,
    "momentum": Range(minimum=0, below=1),
    "nearest": Range(minimum=0, maximum=4096),
    "num_channels": whole(1, 4096),
    "overlap": Range(minimum=0, below=1),
    "patience": COUNT,
    "port": whole(1, 65535),
    "poly_power": Range(above=0, maximum=100),
    "pixel_limit": whole(1, 10**12),
    "random_erasing": SHARE,
    "repeats": COUNT,
    "resize_share": SHARE,
    "rotation": Range(minimum=0, maximum=180),
    "rotation_share": SHARE,
    "sample": COUNT,
    "scenes": COUNT,
    "scored": COUNT,
    "seed": whole(0, 2**32 - 1),
    "seeds": whole(1, 10**6),
    "size": SCENE,
    "steps": COUNT,
    "threads": whole(1, 4096),
    "threshold": SHARE,
    "timeout": Range(above=0, maximum=10**6),
    "tokens": whole(0, 256),
    "tolerance": Range(minimum=0, maximum=1000),  # millimeters
    "warmup_steps": COUNT_OR_ZERO,
    "weight_decay": Range(minimum=0, maximum=1000),
    "window_batch_size": COUNT,
    "workers": whole(0, 1024),
}
# Every option that holds numbers in a text.
PARSERS = {
    "attention_sizes": integers,
    "base_size": height_and_width,
    "batches": integers,
    "crop_size": window_sides,
    "explain": parse_position,
    "lr_factor": part_and_factor,
    "max_image_size": height_and_width,
    "memory": byte_count,
    "milestones": milestone,
    "scales": factors,
    "shorter_side": shorter_sides,
    "sizes": integers,
    "target_spacing": spacing,
    "value_range": value_limits,
    "window": window_sides,
}


def check_options(options: Any) -> None:
    """Checks all values of a dataclass of options.

    Raises ValueError with the first option whose value is not allowed.
    """
    types = get_type_hints(type(options))
    for field in dataclasses.fields(options):
        check_option(field, types[field.name], getattr(options, field.name))


def check_option(field: dataclasses.Field, kind: Any, value: Any) -> None:
    """Checks the value of one option.

    Args:
        field: Field of a dataclass; its name is a key of `RANGES` if it is a number.
        kind: Its type, resolved.
        value: Value of the option. A default is always allowed.

    Raises:
        ValueError: If the value has another type, is not among the choices, is out of range, or is a text that
            cannot be parsed.
    """
    name = f"--{field.name.replace('_', '-')}"
    if value == field.default and value in (None, ""):
        return
    check_not_empty(field.name, value)
    kinds = [plain for plain in get_args(kind) if plain is not type(None)] if is_optional(kind) else [kind]
    plain = kinds[0]
    if get_origin(plain) is Literal:
        if value not in get_args(plain):
            raise ValueError(f"{name} is {shown(value)}. Use one of {', '.join(get_args(plain))}.")
    elif plain in (int, float):
        check_number(name, value, RANGES.get(field.name, Range(whole=plain is int)))
    elif not is_of_type(value, plain):
        wanted = "true or false" if plain is bool else "a list of texts" if get_origin(plain) else "a text"
        raise ValueError(f"{name} is {shown(value)}, but must be {wanted}.")
    if field.name in PARSERS:
        for text in as_list(value):
            PARSERS[field.name](text, name)


def check_not_empty(option: str, value: Any) -> None:
    """Raises ValueError for an empty text, as a variable of a shell script gives it that was never set."""
    if any(isinstance(text, str) and not text.strip() for text in as_list(value)):
        raise ValueError(f"--{option.replace('_', '-')} is empty. Give a value, or leave it out.")


def check_order(options: Any, lower: str, upper: str) -> None:
    """Raises ValueError if the value of the option `lower` is larger than that of `upper`, if it has one."""
    least, most = getattr(options, lower), getattr(options, upper)
    if most is not None and least > most:
        names = [f"--{name.replace('_', '-')}" for name in (lower, upper)]
        raise ValueError(f"{names[0]} {least} is larger than {names[1]} {most}. Give a smaller one.")


def as_list(value: Any) -> list[Any]:
    """Returns a list as it is, and anything else as a list of one."""
    return value if isinstance(value, list) else [value]


def is_optional(kind: Any) -> bool:
    """Whether a type allows None."""
    return type(None) in get_args(kind)


def is_of_type(value: Any, kind: Any) -> bool:
    """Whether a value is an instance of a class, or of `list[str]`."""
    if get_origin(kind) is list:
        return isinstance(value, list) and all(isinstance(entry, str) for entry in value)
    return isinstance(value, kind)
