"""Images of which few gray levels are left as they are read: the check finds them and names the option."""

import json
import re

import numpy as np
import pytest
from cases import each
from PIL import Image

from contextseg import check_data, open_data
from contextseg.processing.image_reading import read_image
from contextseg.processing.value_ranges import UnknownRangeError, values_of

RANDOM = np.random.default_rng(0)


def levels(limit, kind="uint16"):
    return RANDOM.integers(0, limit, (20, 60), endpoint=True).astype(kind)


def with_hot_pixel(pixels):
    pixels[3, 4] = 65535
    return pixels


@each(
    ("pixels", "expected"),
    {
        "10 bits": (levels(1023), (0, 1023)),
        "12 bits": (levels(4000), (0, 4095)),
        "14 bits": (levels(16000), (0, 16383)),
        "a hot pixel": (with_hot_pixel(levels(4095)), (0, 4095)),
        "shares": (RANDOM.random((9, 9)).astype("float32"), (0, 1)),
        "signed shares": (RANDOM.uniform(-1, 1, (9, 9)), (-1, 1)),
        "8 bits as floats": (levels(255, "float32"), (0, 255)),
        "integers": (levels(4000, "int32"), (0, 4095)),
        "Hounsfield units": (np.array([[-1024, 3071]], "int16"), (-1024, 3071)),
        "more than 16 bits": (np.array([[0, 100_000]], "int32"), (0, 100_000)),
        "an offset of 32768": (np.array([[32768, 33668]], "uint16"), (32768, 33668)),
        "partly NaN": (np.array([[np.nan, 0.5]]), (0, 1)),
    },
)
def test_the_pixels_suggest_their_range(pixels, expected):
    assert values_of(pixels).suggestion() == pytest.approx(expected)


def data_of(folder, pixels, **reading):
    for part, image in (
        ("images", pixels),
        ("masks", np.arange(pixels.size, dtype="uint8").reshape(pixels.shape) % 2),
    ):
        (folder / part).mkdir()
        Image.fromarray(image).save(folder / part / "a.tif")
    (folder / "classes.json").write_text(json.dumps(["a", "b"]))
    return open_data(folder, **reading)


@each(
    ("pixels", "reading", "option"),
    {
        "12 bits": (levels(4095), {}, "--value-range 0 4095"),
        "12 bits and a hot pixel": (
            with_hot_pixel(levels(4095)),
            {},
            "outliers up to 65535.*--value-range 0 4095",
        ),
        "another range": (levels(4095), {"value_range": (0, 1)}, "--value-range 0 4095"),
        "an offset": (levels(255) + 32768, {}, "--value-range 32768 33023"),
    },
)
def test_few_gray_levels_are_a_warning_with_the_option_to_pass(pixels, reading, option, tmp_path):
    (warning,) = check_data(data_of(tmp_path, pixels, **reading)).warnings
    assert re.search(option, warning)


@each(
    ("pixels", "reading"),
    {
        "all 16 bits": (levels(65535), {}),
        "a dark photograph": (levels(20, "uint8"), {}),
        "the right range": (levels(4095), {"value_range": (0, 4095)}),
    },
)
def test_images_with_their_gray_levels_are_no_warning(pixels, reading, tmp_path):
    assert check_data(data_of(tmp_path, pixels, **reading)).warnings == []


def test_unknown_black_and_white_are_a_problem_with_the_option_to_pass(tmp_path):
    report = check_data(data_of(tmp_path, RANDOM.random((20, 60)).astype("float32")))
    assert "--value-range 0 1 (in Python, value_range=(0, 1))" in report.problems[0]
    assert report.unreadable == []


def test_a_range_without_width_is_refused():
    with pytest.raises(ValueError, match="value_range is .* the first is smaller"):
        read_image(levels(4000), value_range=(5, 5))


def test_the_error_of_one_image_names_the_option_too():
    with pytest.raises(UnknownRangeError, match=r"--value-range 0 4095"):
        read_image(levels(4000, "int32"))
