"""Random values of random types, and random changes of nested ones."""

import math
from random import Random
from typing import Any

TEXTS = (
    *(
        "",
        " ",
        "a",
        "road",
        "255",
        "-1",
        "1e9",
        "nan",
        "null",
        "ignore",
        "#804080",
        "128,0,0",
        "rgb(1,2,3)",
        "hsl(0,0%,0%)",
    ),
    *(
        "a\nb",
        "\u202e|<b>=1",
        "\ud800",
        "é",
        "e\u0301",
        "日本",
        "\0",
        "x" * 3000,
        "[1, 2]",
        "unet",
        "upernet",
        "cross_entropy",
    ),
)
NUMBERS = (
    *(
        0,
        1,
        2,
        3,
        4,
        7,
        8,
        255,
        256,
        65535,
        65536,
        -1,
        -255,
        2**31 - 1,
        2**31,
        2**63,
        10**30,
        -(10**30),
        10**400,
    ),
    *(0.0, -0.0, 0.5, 1.0, 2.5, 1e-300, 1e300, math.nan, math.inf, -math.inf),
)
PLAIN = (None, True, False)


def json_value(rng: Random, depth: int = 0) -> Any:
    """A value that JSON can hold, or NaN or infinity, which Python's writer and reader let pass."""
    kind = rng.randrange(8 if depth < 3 else 5)
    if kind < 2:
        return rng.choice(TEXTS)
    if kind < 4:
        return rng.choice(NUMBERS)
    if kind == 4:
        return rng.choice(PLAIN)
    length = rng.choice((0, 1, 2, 3, 4, 20))
    if kind < 7:
        same = json_value(rng, depth + 1)
        return [same if kind == 5 else json_value(rng, depth + 1) for _ in range(length)]
    return {rng.choice(TEXTS): json_value(rng, depth + 1) for _ in range(length)}


def any_value(rng: Random) -> Any:
    """A value of any type, also of those that JSON does not have."""
    others = (
        b"abc",
        {1, 2},
        (1, 2),
        (4, 4, 4),
        1j,
        object(),
        int,
        len,
        range(3),
        bytearray(2),
        {1: 2},
        {(1,): None},
    )
    return rng.choice(others) if rng.random() < 0.15 else json_value(rng)


def changed(value: Any, rng: Random) -> Any:
    """The value with one change somewhere within: another type, one entry more or fewer, twice, or another key."""
    if isinstance(value, dict | list) and value and rng.random() < 0.85:
        places = list(value) if isinstance(value, dict) else list(range(len(value)))
        place = rng.choice(places)
        copy = value.copy()
        way = rng.randrange(6)
        if way < 3:
            copy[place] = changed(value[place], rng)
        elif way == 3:
            del copy[place]
        elif isinstance(copy, list):
            copy.insert(rng.randint(0, len(copy)), rng.choice((value[place], json_value(rng))))
        else:
            key = rng.choice((*TEXTS, str(place).upper(), str(place)[:-1], f"{place}s"))
            copy[key] = copy.pop(place) if way == 4 else json_value(rng)
        return copy
    near = (
        (value + 1, -value, value * 1000)
        if isinstance(value, int | float) and not isinstance(value, bool)
        else ()
    )
    return rng.choice((*near, json_value(rng), [value], {"a": value}, str(value)))
