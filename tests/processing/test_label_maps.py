import json
import warnings

import numpy as np
import pytest
from cases import each

from contextseg.processing.label_maps import LabelMap, normalize_label_map

COLORS = {(128, 64, 128): 0, "#FF0000": 1, (0, 0, 0): "ignore"}


def test_ids_become_the_classes_of_the_table():
    decoded = LabelMap({0: "ignore", 7: 0, 8: 1, 9: 1}).decode(np.array([[0, 7], [8, 9]], np.uint8))
    np.testing.assert_array_equal(decoded, [[255, 0], [1, 1]])
    assert decoded.dtype == np.int64


def test_colors_become_the_classes_of_the_table():
    mask = np.array([[[128, 64, 128], [255, 0, 0], [0, 0, 0]]], np.uint8)
    np.testing.assert_array_equal(LabelMap(COLORS, ignore_index=-100).decode(mask), [[0, 1, -100]])


def test_a_palette_numbers_its_colors():
    mask = np.array([[[9, 9, 9], [0, 1, 2]]], np.uint8)
    np.testing.assert_array_equal(LabelMap(palette=[[0, 1, 2], [9, 9, 9]]).decode(mask), [[1, 0]])


@each("ids", [[0, 3], [0, 60_000], [0, 24_000_000], [0, 2**31 - 1], [-1, 3]])
def test_ids_of_every_size_can_be_mapped(ids):
    table = LabelMap({ids[0]: "ignore", ids[1]: 4})
    np.testing.assert_array_equal(table.decode(np.array([ids, ids], np.int32)), [[255, 4]] * 2)


@each("dtype", ["uint8", ">u2", "int64"])
def test_a_table_lookup_equals_a_loop_over_the_entries(dtype):
    mask = np.random.default_rng(0).integers(0, 50, (30, 40)).astype(dtype)
    expected = sum(np.where(mask == value, 49 - value, 0) for value in range(50))
    np.testing.assert_array_equal(LabelMap({value: 49 - value for value in range(50)}).decode(mask), expected)


def test_unknown_ids_are_named_with_their_pixel_count():
    mask = np.array([[1, 1, 1], [7, 7, 9]], np.uint8)
    with pytest.raises(
        ValueError, match=r"a\.png has 2 values.*7 \(2 pixels\), 9 \(1 pixels\).*known values: 1\."
    ):
        LabelMap({1: 0}).decode(mask, "a.png")


def test_of_many_known_ids_the_first_and_the_last_are_named():
    with pytest.raises(ValueError, match=r"known values: 0, 1, .*28, 29, \.\.\., 299\.$"):
        LabelMap({value: value for value in range(300)}, 999).decode(np.array([[300]]))


def test_unknown_colors_are_named_with_their_pixel_count():
    with pytest.raises(ValueError, match=r"#010203 \(4 pixels\)"):
        LabelMap(COLORS).decode(np.full((2, 2, 3), (1, 2, 3), np.uint8))


def test_colors_without_a_table_are_refused():
    with pytest.raises(ValueError, match="has colors, but label_map has none"):
        LabelMap().decode(np.zeros((2, 2, 3), np.uint8))


def test_without_a_table_ids_are_classes():
    np.testing.assert_array_equal(LabelMap().decode(np.array([[3, 255]], np.uint8)), [[3, 255]])


def test_masks_of_0_and_255_warn_until_the_table_says_what_255_is():
    mask = np.array([[0, 255]], np.uint8)
    with pytest.warns(UserWarning, match="255 is the foreground, pass label_map"):
        LabelMap().decode(mask)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(LabelMap({0: 0, 255: 1}).decode(mask), [[0, 1]])
        LabelMap().decode(np.array([[0, 1, 255]], np.uint8))


def test_a_table_survives_json():
    entries = normalize_label_map(COLORS)
    assert entries == {"#804080": 0, "#ff0000": 1, "#000000": "ignore"}
    assert normalize_label_map(json.loads(json.dumps(entries))) == entries
    assert normalize_label_map({"7": None, np.uint8(8): np.int64(2)}) == {"7": "ignore", "8": 2}


@each("key", ["road", "#12345", (1, 2), (0, 0, 256), 1.5])
def test_a_key_that_is_no_mask_value_is_refused(key):
    with pytest.raises(ValueError, match="Give an id such as 7, or a color"):
        LabelMap({key: 0})


@each("label", [-1, "road", 40_000, 1.0])
def test_a_label_that_is_no_class_is_refused(label):
    with pytest.raises(ValueError, match="Give a class id"):
        LabelMap({0: label})


def test_one_value_cannot_have_two_classes():
    with pytest.raises(ValueError, match="has 1 twice"):
        LabelMap({1: 0, "1": 2})
    with pytest.raises(ValueError, match="the same color for several classes"):
        LabelMap(palette=[[0, 0, 0], [0, 0, 0]]).decode(np.zeros((1, 1, 3), np.uint8))


@pytest.mark.parametrize("index", [1 << 8, 1 << 16, 1 << 24])
def test_the_first_id_beyond_a_table_can_be_mapped(index):
    decoded = LabelMap({0: 1, index: 4}).decode(np.array([[0, index]], np.int32))
    np.testing.assert_array_equal(decoded, [[1, 4]])


def test_the_last_class_id_is_that_of_the_16_bit_table():
    assert normalize_label_map({0: 32767}) == {"0": 32767}
    with pytest.raises(ValueError, match="class id from 0 to 32767"):
        normalize_label_map({0: 32768})


def test_a_negative_entry_is_not_the_last_id_of_the_table():
    with pytest.raises(ValueError, match=r"not in label_map: 255 \(1 pixels\)"):
        LabelMap({-1: "ignore", 3: 0}).decode(np.array([[3, 255]], np.uint8))


@pytest.mark.parametrize(
    ("count", "end"), [(10, r"10 \(1 pixels\)\. Add"), (11, r"10 \(1 pixels\), \.\.\.\. Add")]
)
def test_ten_unknown_ids_are_named(count, end):
    with pytest.raises(ValueError, match=end):
        LabelMap({0: 0}).decode(np.arange(1, count + 1, dtype=np.uint8)[None])


def test_a_mask_of_background_alone_needs_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LabelMap().decode(np.zeros((2, 2), np.uint8))


def test_ids_in_three_equal_channels_are_named_as_such():
    mask = np.repeat(np.array([[[0], [1], [2]]], np.uint8), 3, axis=2)
    for table in (LabelMap(), LabelMap({(128, 64, 128): 0})):
        with pytest.raises(ValueError, match="red, green and blue are equal in every pixel"):
            table.decode(mask)


@each("ignore_index", [True, 1.5, "255", None, 1, 2**40])
def test_an_ignore_index_is_an_integer_that_is_not_a_class(ignore_index):
    with pytest.raises(ValueError, match="ignore_index="):
        LabelMap({0: 0, 1: 1}, ignore_index)


def test_renumbered_classes_keep_their_ids_and_colors():
    table = LabelMap({7: 0, 8: 1, "#ff0000": 1, "#000000": "ignore"}, -1).renumbered([1, 0])
    assert table.decode(np.array([[7, 8]])).tolist() == [[1, 0]]
    assert table.decode(np.array([[[255, 0, 0], [0, 0, 0]]], np.uint8)).tolist() == [[0, -1]]


def test_an_ignore_index_is_not_a_class_of_a_palette_beyond_256_colors():
    with pytest.raises(ValueError, match="ignore_index=255 must differ from the 300 class ids"):
        LabelMap(palette=[(index % 256, index // 256, 7) for index in range(300)])
