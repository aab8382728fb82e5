"""Labels of masks of 8-bit ids: the same as those of wider types."""

import numpy as np
import pytest
from cases import each

from contextseg.processing.byte_masks import has_others, look_up_bytes, values_in
from contextseg.processing.label_maps import LabelMap

MASK = np.random.default_rng(0).integers(0, 20, (30, 40), dtype=np.uint8)


@each("ignore_index", [255, -100])
@each("entries", [None, {k: 19 - k for k in range(20)}, {k: k % 2 * 254 for k in range(20)}])
def test_masks_of_bytes_have_the_labels_of_wider_ones(entries, ignore_index):
    table = LabelMap(entries, ignore_index, num_classes=20 if entries is None else None)
    expected = table.decode(MASK.astype(np.int32))
    labels, small = table.decode(MASK), table.decode(MASK, keeps_bytes=True)
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(small, expected)


def test_ids_that_are_the_classes_are_not_copied_and_labels_can_be_written_to():
    table = LabelMap(num_classes=20)
    assert table.decode(MASK, keeps_bytes=True) is MASK
    table.decode(MASK)[0, 0] = 7


def test_labels_beyond_a_byte_are_wide():
    assert look_up_bytes(np.zeros((1, 1), np.uint8), {0: 300}).tolist() == [[300]]


@each("known", [range(20), range(0, 20, 2), [*range(20), 255], [], range(256)])
def test_unknown_values_are_found_as_in_sets(known):
    for mask in (MASK, MASK // 2 * 2, np.full((1, 1), 255, np.uint8)):
        assert has_others(mask, known) == bool(set(mask.flat) - set(known))


def test_the_values_of_a_mask_are_those_that_occur():
    for mask in (MASK, MASK[:1, :1], np.sort(MASK, axis=None).reshape(-1, 4)):
        assert values_in(mask) == np.unique(mask).tolist()


def test_unknown_ids_of_bytes_are_counted():
    with pytest.raises(ValueError, match=r"9 \(2 pixels\)"):
        LabelMap({1: 0}).decode(np.array([[1, 9, 9]], np.uint8), keeps_bytes=True)
