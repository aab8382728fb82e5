"""The generated scenes: what they promise about the cue, and that they are reproducible."""

import json

import numpy as np
import pytest
from cases import each
from PIL import Image

from contextseg.processing.data.scenes import (
    AMBIGUOUS,
    CLASSES,
    FLAGS,
    ICE,
    RED_FLAG,
    SNOW,
    draw_scene,
    write_scenes,
)


def test_a_scene_depends_on_seed_and_index_only():
    first = draw_scene(seed=3, index=5)
    draw_scene(seed=3, index=4)
    again = draw_scene(seed=3, index=5)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.mask, again.mask)


def test_other_seeds_and_indices_give_other_scenes():
    images = [draw_scene(seed, index, size=64, distance=20).image for seed in (0, 1) for index in (0, 1)]
    assert len({image.tobytes() for image in images}) == 4


@each(("size", "distance"), [(64, 0), (128, 64), (128, 89), (192, 100)])
def test_no_white_pixel_is_nearer_to_the_flag_than_the_distance(size, distance):
    for index in range(20):
        scene = draw_scene(0, index, size, distance)
        flag, white = (np.argwhere(np.isin(scene.mask, kind)) for kind in (FLAGS, AMBIGUOUS))
        nearest = np.sqrt(((flag[:, None] - white) ** 2).sum(axis=2).min())
        assert distance <= scene.distance <= nearest


def test_only_the_flag_in_the_image_distinguishes_the_white_classes():
    for index in range(20):
        scene, swapped = draw_scene(0, index), draw_scene(0, index, swap_flag=True)
        repainted = (scene.image != swapped.image).any(axis=2)
        assert 40 < repainted.sum() <= 9 * 7
        assert np.isin(scene.mask[repainted], FLAGS).all()


def test_swapping_the_flag_exchanges_the_labels_that_hang_on_it_and_no_other():
    scene, swapped = draw_scene(1, 0), draw_scene(1, 0, swap_flag=True)
    assert scene.frozen != swapped.frozen
    exchanged = np.arange(len(CLASSES))
    exchanged[[*FLAGS, *AMBIGUOUS]] = [*FLAGS[::-1], *AMBIGUOUS[::-1]]
    assert np.array_equal(swapped.mask, exchanged[scene.mask])


def test_a_red_flag_flies_where_the_white_is_ice():
    for index in range(10):
        scene = draw_scene(0, index)
        assert scene.frozen == (ICE in scene.mask) == (RED_FLAG in scene.mask)


def test_a_scene_has_one_kind_of_white_and_it_is_large():
    for index in range(20):
        scene = draw_scene(2, index)
        kinds = set(np.unique(scene.mask)) & set(AMBIGUOUS)
        assert kinds == {ICE if scene.frozen else SNOW}
        assert np.isin(scene.mask, AMBIGUOUS).mean() > 0.04


def test_both_kinds_of_white_are_equally_frequent():
    frozen = [draw_scene(0, index, size=64, distance=0).frozen for index in range(400)]
    assert 0.4 < np.mean(frozen) < 0.6


def test_every_class_occurs_in_a_set():
    seen = np.unique([draw_scene(0, index).mask for index in range(10)])
    assert seen.tolist() == list(range(len(CLASSES)))


@each(("size", "distance", "message"), [(32, 0, "size >= 64"), (128, 100, "distance <= 89.6")])
def test_impossible_scenes_are_refused_with_what_is_possible(size, distance, message):
    with pytest.raises(ValueError, match=message):
        draw_scene(0, 0, size, distance)


def test_written_scenes_hold_the_same_pixels_and_class_ids(tmp_path):
    write_scenes(tmp_path, count=2, seed=7, size=64, distance=20)
    scene = draw_scene(7, 1, size=64, distance=20)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "images" / "00001.png")), scene.image)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "masks" / "00001.png")), scene.mask)
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == ["00000.png", "00001.png"]


def test_written_masks_carry_the_palette_of_the_class_table(tmp_path):
    write_scenes(tmp_path, count=1, seed=0, size=64, distance=0)
    table = json.loads((tmp_path / "classes.json").read_text())
    palette = Image.open(tmp_path / "masks" / "00000.png").getpalette()
    assert [entry["name"] for entry in table["classes"]] == list(CLASSES)
    assert [tuple(entry["color"]) for entry in table["classes"]] == list(CLASSES.values())
    assert tuple(palette[3 * ICE : 3 * ICE + 3]) == CLASSES["frozen lake"]
