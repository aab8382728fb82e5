"""`classes.json` in its usual forms."""

import json

import numpy as np
import pytest

from contextseg.processing.data.class_table import ClassTable, find_class_table, read_class_table


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


def test_further_keys_are_notes(tmp_path):
    rows = [{"index": 0, "name": "a", "description": "what is left"}, {"index": 1, "name": "b"}]
    notes = {"license": "mit", "width": 480, "source_ignore_index": 30, "ignore_used": True}
    (tmp_path / "classes.json").write_text(json.dumps({"classes": rows, **notes}))
    assert read_class_table(tmp_path / "classes.json").names == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[NaN]", "NaN is not a number"),
        ("[" * 100_000, "nested too deeply"),
        ('{"classes": ["a"], "classes": ["b"]}', "key 'classes' twice"),
        ('["\\ud800"]', "as the name of class 0"),
        ({"names": 3}, "unknown key 'names'. Did you mean 'classes'"),
        ({"classes": ["a"], "colors": [RED]}, "unknown key 'colors'. Did you mean 'palette'"),
        ({"classes": [{"name": "a", "id": 7}]}, "unknown key 'id' in class 0. Did you mean 'index'"),
        ({"classes": ["a"], "ignore_indx": 3}, "Did you mean 'ignore_index'"),
        ({"classes": [{"name": "a", "colr": RED}]}, "unknown key 'colr' in class 0. Did you mean 'color'"),
        ({"classes": ["a"], "id2label": {"0": "a"}}, "does not list classes once"),
        ([], "does not list classes"),
        (None, "does not list classes"),
        ({"classes": {}}, "does not list classes"),
        ({"classes": "a"}, "does not list classes"),
        (["a", 3], "has 3 as the name of class 1"),
        (["a", " "], "has ' ' as the name of class 1"),
        ({"classes": ["a", "b"], "num_classes": 3}, "num_classes=3, but lists 2"),
        ({"classes": ["a", "a"]}, "name 'a' to two classes"),
        (["a", "a "], "name 'a' to two classes"),
        (["e\u0301", "\u00e9"], "to two classes"),
        ({"classes": [{"index": 1, "name": "a"}, {"index": 1, "name": "b"}]}, "index 1 to two classes"),
        ({"classes": [{"index": 1.5, "name": "a"}]}, "has 1.5 as the index of 'a'"),
        ({"classes": [{"index": -1, "name": "a"}]}, "has -1 as the index of 'a'"),
        ({"classes": ["a", "b"], "palette": [[0, 0, 300], [0, 0, 0]]}, "not a color"),
        ({"classes": ["a"], "palette": [[0.5, 0, 0]]}, "three integers from 0 to 255"),
        ({"classes": ["a"], "palette": {"a": RED}}, "is not a list"),
        ({"classes": ["a"], "palette": [[0, 0, 0], [1, 1, 1]]}, "2 colors for 1 classes"),
        ({"classes": ["a", "b"], "palette": [[0, 0, 0]]}, "1 colors for 2 classes"),
        ({"classes": [{"name": "a", "color": RED}, {"name": "b"}]}, "Give one to 'b', too"),
        (
            {"classes": [{"name": "a", "color": RED}], "palette": [BLUE]},
            "differs from the colors of its classes",
        ),
        ({"classes": ["a"], "palette": [RED], "ignore_color": RED}, "which is also to be ignored"),
        ({"classes": ["a"], "label_map": {"4": 1}}, "maps 4 to class 1"),
        ({"classes": ["a"], "label_map": {"4": True}}, "maps '4' to True"),
        ({"classes": ["a"], "label_map": [0]}, "is not a table"),
        ({"classes": ["a"], "ignore_index": "none"}, "'none' is not an integer"),
        ({"classes": ["a"], "ignore_index": True}, "True is not an integer"),
        ({"classes": ["a"], "ignore_index": 254.5}, "254.5 is not an integer"),
        ({"classes": ["a"], "ignore_index": 0}, "must differ from the 1 class ids"),
        ({"classes": ["a"], "label_map": {"7": 0}, "ignore_index": 0}, "must differ from the 1 class ids"),
        ({"classes": [{"index": 7, "name": "a"}], "ignore_index": 7}, "which is the index of a class"),
    ],
)
def test_a_wrong_table_is_answered_with_what_is_wrong(table_of, content, message):
    with pytest.raises(ValueError, match=message) as caught:
        table_of(content)
    assert "classes.json' is not valid" in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", '["\xe4"]'.encode("latin-1"), b"", b"9" * 5000])
def test_a_file_that_is_not_text_or_not_json_is_answered(tmp_path, content):
    (tmp_path / "classes.json").write_bytes(content)
    with pytest.raises(ValueError, match="classes.json' is not valid JSON"):
        read_class_table(tmp_path / "classes.json")


def test_keys_that_begin_with_an_underscore_are_comments(table_of):
    assert table_of({"_source": 3, "classes": [{"name": "a", "_note": "x"}]}).names == ["a"]


@pytest.mark.parametrize(
    ("count", "ignore_index"), [(255, 255), (256, 65535), (300, 65535)], ids=["255", "256", "300"]
)
def test_the_default_ignore_index_is_not_a_class(table_of, count, ignore_index):
    table = table_of([f"class {index}" for index in range(count)])
    assert table.ignore_index == ignore_index
    ids = np.array([[0, count - 1, ignore_index]])
    np.testing.assert_array_equal(table.decoder().decode(ids), ids)


@pytest.mark.parametrize(
    ("names", "palette", "message"),
    [
        ("abc", None, "names='abc' is not a list of different class names"),
        ([], None, "is not a list of different"),
        (["a", "a"], None, "is not a list of different"),
        (["a", "b"], [(0, 0, 0)], "1 colors for 2 classes"),
    ],
)
def test_a_table_made_in_python_is_checked_too(names, palette, message):
    with pytest.raises(ValueError, match=message):
        ClassTable(names, palette)


def test_a_negative_ignore_index_is_kept(table_of):
    assert table_of({"classes": ["a"], "ignore_index": -100}).ignore_index == -100


COLORS_AS_TEXT = [
    "255,0,0",
    "rgb(255, 0, 0)",
    "RGB(255,0,0)",
    "255 0 0",
    "(255, 0, 0)",
    "#f00",
    "ff0000",
    "red",
]


@pytest.mark.parametrize("text", COLORS_AS_TEXT)
def test_colors_come_in_the_forms_of_other_tools(table_of, text):
    assert table_of({"classes": [{"name": "a", "color": text}]}).palette == [RED]
    assert table_of({"classes": ["a"], "label_map": {text: 0}}).label_map == {"#ff0000": 0}


@pytest.mark.parametrize(
    ("label_map", "palette"),
    [
        ({"#0000ff": 1, "255,0,0": 0, "#ffff00": 1, "#000000": "ignore"}, [RED, BLUE]),
        ({"#0000ff": 1, "0": 0}, None),
        ({"0": 0, "1": 1}, None),
    ],
    ids=["each class", "one class", "ids"],
)
def test_the_colors_of_a_label_map_are_the_palette(table_of, label_map, palette):
    assert table_of({"classes": ["a", "b"], "label_map": label_map}).palette == palette


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
