"""`classes.json` in its usual forms."""

import json

import numpy as np
import pytest

from contextseg.processing.data.class_table import find_class_table, read_class_table


@pytest.fixture
def table_of(tmp_path):
    def write_and_read(content, label_map=None):
        path = tmp_path / "classes.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return read_class_table(path, label_map)

    return write_and_read


RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.mark.parametrize(
    "content",
    [
        ["road", "car"],
        {"0": "road", "1": "car"},
        {"id2label": {"1": "car", "0": "road"}},
        {"classes": ["road", "car"]},
        {"num_classes": 2, "classes": [{"index": 1, "name": "car"}, {"index": 0, "name": "road"}]},
    ],
    ids=["list", "id2label", "id2label key", "names", "rows"],
)
def test_every_form_gives_the_same_names_in_the_order_of_ids(table_of, content):
    table = table_of(content)
    assert (table.names, table.ignore_index, table.label_map) == (["road", "car"], 255, None)


@pytest.mark.parametrize(
    "content",
    [
        {"classes": ["road", "car"], "palette": [RED, BLUE]},
        {"classes": ["road", "car"], "palette": ["#ff0000", "#0000ff"]},
        {
            "classes": [
                {"index": 1, "name": "car", "color": BLUE},
                {"index": 0, "name": "road", "colour": RED},
            ]
        },
    ],
    ids=["palette", "hexadecimal", "rows"],
)
def test_colors_follow_the_classes(table_of, content):
    assert table_of(content).palette == [RED, BLUE]


def test_ids_that_are_not_consecutive_become_a_label_map(table_of):
    table = table_of(
        {"classes": [{"index": 26, "name": "car"}, {"index": 7, "name": "road"}], "ignore_index": 0}
    )
    assert table.names == ["road", "car"]
    assert table.decoder().decode(np.array([[7, 26, 0]])).tolist() == [[0, 1, 255]]
    assert table.label_map == {"7": 0, "26": 1, "0": "ignore"}


def test_a_label_map_replaces_ids(table_of):
    decoder = table_of({"classes": ["road", "car"], "label_map": {"7": 0, "8": 1, "0": "ignore"}}).decoder()
    assert decoder.decode(np.array([[0, 7, 8]])).tolist() == [[255, 0, 1]]


def test_a_given_label_map_takes_the_place_of_the_one_in_the_file(table_of):
    table = table_of({"classes": ["road"], "label_map": {"7": 0}}, label_map={9: 0})
    assert table.label_map == {"9": 0}


def test_color_masks_are_decoded_by_the_palette_and_ignored_colors(table_of):
    table = table_of({"classes": ["road", "car"], "palette": [RED, BLUE], "ignore_color": [0, 0, 0]})
    mask = np.array([[RED, BLUE, (0, 0, 0)]], dtype=np.uint8)
    assert table.decoder().decode(mask).tolist() == [[0, 1, 255]]


def test_an_id_without_a_class_raises(table_of):
    with pytest.raises(ValueError, match=r"not in label_map: 2 \(1 pixels\)"):
        table_of(["road", "car"]).decoder().decode(np.array([[0, 1, 2, 255]]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ({"names": 3}, "is not valid: "),
        ([], "does not list classes"),
        ({"classes": ["a", "b"], "num_classes": 3}, "num_classes=3, but lists 2"),
        ({"classes": ["a", "a"]}, "name 'a' to two classes"),
        ({"classes": [{"index": 1, "name": "a"}, {"index": 1, "name": "b"}]}, "index 1 to two classes"),
        ({"classes": ["a", "b"], "palette": [[0, 0, 300], [0, 0, 0]]}, "not a color"),
        ({"classes": ["a"], "palette": [[0, 0, 0], [1, 1, 1]]}, "2 colors for 1 classes"),
        ({"classes": ["a", "b"], "palette": [[0, 0, 0]]}, "1 colors for 2 classes"),
        ({"classes": ["a"], "label_map": {"4": 1}}, "maps 4 to class 1"),
        ({"classes": ["a"], "ignore_index": "none"}, "is not valid: "),
    ],
)
def test_a_wrong_table_is_answered_with_what_is_wrong(table_of, content, message):
    with pytest.raises(ValueError, match=message):
        table_of(content)


def test_the_folder_comes_before_its_parent(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "classes.json").write_text('["parent"]')
    assert find_class_table(tmp_path / "train", None).names == ["parent"]
    (tmp_path / "train" / "classes.json").write_text('["own"]')
    assert find_class_table(tmp_path / "train", None).names == ["own"]


def test_no_table_is_found_for_a_name_of_the_hub(tmp_path, monkeypatch):
    (tmp_path / "classes.json").write_text('["not meant"]')
    monkeypatch.chdir(tmp_path)
    assert find_class_table(tmp_path.relative_to(tmp_path) / "streets", None) is None


def test_a_byte_order_mark_is_not_part_of_the_table(tmp_path):
    path = tmp_path / "classes.json"
    path.write_text('["road", "car"]', encoding="utf-8-sig")
    assert read_class_table(path).names == ["road", "car"]


@pytest.mark.parametrize("levels", [[1, 2], [1, 2, 3, 4], "#01020304"])
def test_a_color_has_three_levels(levels, table_of):
    with pytest.raises(ValueError, match="is not a color"):
        table_of({"classes": ["road"], "palette": [levels]})
