"""Damaged `classes.json`: a table, or one sentence with the path."""

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
from fuzzing.limits import Outcomes, check_message
from fuzzing.mutations import WAYS
from fuzzing.values import changed, json_value

from contextseg.processing.data.class_table import ClassTable, read_class_table

SECONDS, MEGABYTES = 2, 64
NAMES = ["road", "sky", "tree"]
COLORS = [[128, 64, 128], [70, 130, 180], [107, 142, 35]]
ROWS = [{"index": index, "name": name, "color": COLORS[index]} for index, name in enumerate(NAMES)]
TABLES = [
    NAMES,
    {"0": "road", "1": "sky", "2": "tree"},
    {"id2label": {"0": "road", "1": "sky"}, "ignore_index": 7},
    {"classes": NAMES, "ignore_index": 255, "palette": COLORS, "num_classes": 3},
    {"classes": NAMES, "palette": ["#804080", "70,130,180", "olive"], "ignore_color": [0, 0, 0]},
    {"classes": ROWS, "ignore_colour": "#000", "license": "none"},
    {"classes": [{"index": 7, "name": "road"}, {"index": 26, "name": "car"}], "ignore_index": 0},
    {"classes": NAMES, "label_map": {"7": 0, "26": 1, "#804080": 2, "0": "ignore", "9": None}},
    {"classes": NAMES, "label_map": {"255": 0, "0": 1}, "ignore_index": -100},
    {"classes": [f"class {index}" for index in range(300)]},
]
MASKS = [np.array([[0, 1, 2]]), np.array([[0, 255, 300]]), np.array([[[128, 64, 128]]], np.uint8)]


def content(number: int) -> bytes:
    """The content of the file of a case: changed values in four of five cases, changed bytes in the others."""
    rng = Random(f"classes {number}")
    table = TABLES[number % len(TABLES)]
    for _ in range(rng.choice((1, 1, 2, 4))):
        table = changed(table, rng)
    if rng.random() < 0.05:
        table = json_value(rng)
    data = json.dumps(table, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    if rng.random() < 0.05:
        data = rng.choice(
            (b"[" * 10**5, b'{"classes":' * 10**5, b"[" + b"9" * 10**6 + b"]", b"", b"\xef\xbb\xbf" + data)
        )
    if rng.random() < 0.2 and data:
        data = rng.choice(WAYS)(data, b'{"classes": ["a", "a"], "classes": 3}', rng)
    return data


def case(path: Path, number: int) -> str:
    path.write_bytes(content(number))
    try:
        table = read_class_table(path)
    except ValueError as error:
        check_message(str(error), str(path))
        return "refused"
    use(table)
    return "read"


def use(table: ClassTable) -> None:
    """Decodes masks with a table: labels, or one sentence about values without a class."""
    decoder = table.decoder()
    for mask in MASKS:
        try:
            labels = decoder.decode(mask, "the mask")
        except ValueError as error:
            check_message(str(error), "the mask")
        else:
            assert set(np.unique(labels).tolist()) <= {*range(len(table.names)), table.ignore_index}


def run(numbers: range, folder: Path) -> None:
    Outcomes("classes.json", SECONDS, MEGABYTES).run(
        lambda number: case(folder / "classes.json", number), numbers
    )


def test_20_damaged_class_files_are_read_or_refused(tmp_path):
    run(range(20), tmp_path)


@pytest.mark.slow
def test_200_damaged_class_files_are_read_or_refused(tmp_path):
    run(range(200), tmp_path)
