"""Whether the index or the color of a palette mask is its class."""

import io

import numpy as np
import pytest
from cases import each
from PIL import Image

from contextseg import SegmentationImageProcessor
from contextseg.processing.data.class_table import class_table
from contextseg.processing.label_maps import LabelMap
from contextseg.processing.mask_reading import read_mask
from contextseg.processing.palette_masks import PaletteError
from contextseg.processing.palettes import default_palette

BLACK, RED, BLUE, WHITE, OTHER = (0, 0, 0), (255, 0, 0), (0, 0, 255), (255, 255, 255), (1, 99, 3)
CLASSES = [BLACK, BLUE, RED]
TRUTH = np.repeat([[0, 1, 2]], 2, axis=0)


def palette_image(palette, indices=TRUTH):
    image = Image.fromarray(np.array(indices, np.uint8))
    image.putpalette([level for color in palette for level in color])
    return image


def stored(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def decoded(image, table=None, **content):
    table = table or class_table({"classes": ["ground", "road", "car"]} | content, None, "test").decoder()
    return table.decode(read_mask(image, table=table))


@each("format", ["PNG", "GIF", "BMP", "TIFF", "TGA"])
def test_colors_decide_where_the_palette_has_them(format):
    image = palette_image([BLACK, RED, BLUE])
    expected = np.array([0, 2, 1])[TRUTH]
    np.testing.assert_array_equal(decoded(stored(image, format), palette=CLASSES), expected)


def test_transparency_does_not_change_the_colors():
    image = palette_image([BLACK, RED, BLUE])
    file = stored(image, "PNG", transparency=bytes([0, 255, 128]))
    np.testing.assert_array_equal(decoded(file, palette=CLASSES), np.array([0, 2, 1])[TRUTH])
    np.testing.assert_array_equal(decoded(image.convert("PA"), palette=CLASSES), np.array([0, 2, 1])[TRUTH])


def test_a_palette_with_the_used_colors_alone_is_decoded_by_them():
    image = palette_image([RED, BLUE], [[0, 1, 1]])
    assert decoded(stored(image, "PNG"), palette=CLASSES).tolist() == [[2, 1, 1]]


def test_ids_that_are_no_classes_are_decoded_by_their_colors():
    image = palette_image([OTHER] * 9 + [RED, BLUE], [[9, 10]])
    assert decoded(image, palette=CLASSES).tolist() == [[2, 1]]


@pytest.mark.parametrize(
    "palette",
    [
        CLASSES,
        [(i, i, i) for i in range(256)],
        [OTHER, (3, 3, 4), (7, 8, 9)],
        [BLACK, (85, 85, 85), (170, 170, 170)],
    ],
    ids=["same order", "gray ramp", "unknown colors", "gray steps"],
)
def test_indices_stay_ids_where_no_color_speaks_against_them(palette):
    np.testing.assert_array_equal(decoded(palette_image(palette), palette=CLASSES), TRUTH)


def test_a_gray_ramp_stays_ids_where_gray_levels_are_colors_of_other_classes():
    ramp = palette_image([(i, i, i) for i in range(256)])
    np.testing.assert_array_equal(decoded(ramp, palette=[(2, 2, 2), BLACK, (1, 1, 1)]), TRUTH)


def test_the_ignore_index_needs_no_color():
    image = palette_image([*CLASSES, *[OTHER] * 253], [[0, 1, 255]])
    assert decoded(image, palette=CLASSES).tolist() == [[0, 1, 255]]


def test_an_ignored_color_is_ignored_at_every_index():
    image = palette_image([BLACK, *CLASSES[1:], WHITE], [[0, 1, 2, 3]])
    content = {"palette": [WHITE, *CLASSES[1:]], "ignore_color": BLACK}
    assert decoded(image, **content).tolist() == [[255, 1, 2, 0]]


def test_known_colors_at_other_indices_beside_unknown_colors_are_an_error_that_shows_both():
    message = (
        r"index 1 has color #ff0000 \(of class 2\), and is as an id class 1; "
        r"index 2 has color #016303 \(of no class\), and is as an id class 2"
    )
    with pytest.raises(PaletteError, match=message):
        decoded(palette_image([BLACK, RED, OTHER]), palette=CLASSES)


def test_two_colors_in_common_with_a_general_palette_are_not_taken_for_the_classes():
    palette = default_palette()
    with pytest.raises(PaletteError, match="contradict each other"):
        decoded(palette_image(palette, [[0, 1]]), palette=[palette[0], OTHER, palette[1]])


def test_ids_stated_in_a_label_map_are_not_overruled_by_colors():
    content = {"palette": CLASSES, "label_map": {"0": 0, "1": 1, "2": 2}}
    np.testing.assert_array_equal(decoded(palette_image(CLASSES), **content), TRUTH)
    with pytest.raises(PaletteError, match=r"index 1 has color #ff0000 \(of class 2\)"):
        decoded(palette_image([BLACK, RED, BLUE]), **content)


def test_ids_that_are_not_consecutive_are_stated_ids_with_colors():
    rows = [{"index": 7, "name": "road", "color": RED}, {"index": 26, "name": "car", "color": BLUE}]
    palette = [BLACK] * 26 + [BLUE]
    palette[7] = RED
    assert decoded(palette_image(palette, [[7, 26]]), classes=rows).tolist() == [[0, 1]]
    assert decoded(np.array([[RED, BLUE]], np.uint8), classes=rows).tolist() == [[0, 1]]
    palette[7], palette[26] = BLUE, RED
    with pytest.raises(PaletteError, match="index 7 has color #0000ff"):
        decoded(palette_image(palette, [[7, 26]]), classes=rows)


def test_an_index_beyond_the_palette_has_no_color():
    with pytest.raises(PaletteError, match="index 2 has no color"):
        decoded(palette_image([BLACK, RED]), palette=CLASSES)


def test_a_color_of_two_classes_decides_nothing():
    np.testing.assert_array_equal(decoded(palette_image(CLASSES), palette=[BLACK, RED, RED]), TRUTH)


@pytest.mark.parametrize(
    "make", [lambda image: image, lambda image: stored(image, "PNG")], ids=["pil", "bytes"]
)
def test_the_image_processor_goes_by_the_same_rule(make):
    processor = SegmentationImageProcessor(palette=CLASSES)
    image = palette_image([BLACK, RED, BLUE])
    labels = processor(np.zeros((2, 3, 3), np.uint8), make(image), return_tensors="pt").labels
    np.testing.assert_array_equal(labels[0], np.array([0, 2, 1])[TRUTH])
    with pytest.raises(PaletteError, match="contradict"):
        processor.decode_mask(palette_image([BLACK, RED, OTHER]))


def test_a_table_of_colors_alone_never_reads_indices():
    table = LabelMap({BLACK: 0, RED: 1})
    assert decoded(palette_image([RED, BLACK], [[0, 1]]), table).tolist() == [[1, 0]]
    with pytest.raises(ValueError, match=r"#0000ff \(2 pixels\)"):
        decoded(palette_image([RED, BLACK, BLUE]), table)
