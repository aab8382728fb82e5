"""Published datasets, on a few files in the folders in which they are published."""

import json
import pickle

import numpy as np
import pytest
from cases import each
from PIL import Image

from contextseg.processing.data.datasets import open_data
from contextseg.processing.data.official_layouts import (
    ADE20K,
    CITYSCAPES,
    COCO_STUFF,
    DEEPGLOBE,
    URUR,
    find_layout,
    with_split,
)
from contextseg.processing.data.report import check_data
from contextseg.scripts import check, evaluate, train

SPLIT_FOLDERS = {"train": ("training", "train", "train2017"), "val": ("validation", "val", "val2017")}


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path)


def write_pair(image, mask, ids):
    """An image and a mask of one row with these ids."""
    save(image, np.full((1, len(ids), 3), 50))
    save(mask, [ids])


def write_ade20k(root, ids=(0, 1, 150), splits=("training", "validation")):
    for split in splits:
        name = f"ADE_{split[:5].rstrip('i')}_00000001"
        write_pair(root / f"images/{split}/{name}.jpg", root / f"annotations/{split}/{name}.png", ids)
    return root


def write_cityscapes(root, ids=(0, 7, 33), kind="labelIds", splits=("train", "val")):
    for split in splits:
        for city in ("aachen", "bochum"):
            start = f"{split}/{city}/{city}_000000_000019"
            write_pair(
                root / f"leftImg8bit/{start}_leftImg8bit.png", root / f"gtFine/{start}_gtFine_{kind}.png", ids
            )
            save(root / f"gtFine/{start}_gtFine_color.png", np.zeros((1, 3, 3)))
            save(root / f"gtFine/{start}_gtFine_instanceIds.png", np.zeros((1, 3)))
    return root


def write_coco_stuff(root, ids=(0, 181, 255), suffix=".png", splits=("train2017", "val2017")):
    for split in splits:
        write_pair(
            root / f"images/{split}/000000000009.jpg", root / f"annotations/{split}/000000000009{suffix}", ids
        )
    return root


WRITERS = {"ADE20K": write_ade20k, "Cityscapes": write_cityscapes, "COCO-Stuff": write_coco_stuff}


@pytest.fixture(params=WRITERS)
def root(request, tmp_path):
    return WRITERS[request.param](tmp_path / "data")


def test_the_tables_have_as_many_classes_as_the_data_sets():
    assert [len(layout.classes) for layout in (ADE20K, CITYSCAPES, COCO_STUFF)] == [150, 19, 171]
    for layout in (ADE20K, CITYSCAPES, COCO_STUFF):
        assert len(set(layout.classes)) == len(layout.classes)
        for ids in layout.masks.values():
            assert sorted(set(ids.values()) - {"ignore"}) == list(range(len(layout.classes)))


def test_a_folder_is_known_by_what_is_in_it(root, request):
    assert find_layout(root).title == request.node.callspec.params["root"]


def test_each_split_has_its_own_files(root):
    for split in ("train", "val"):
        data = open_data(f"{root}:{split}")
        assert all(
            any(part in pair.image.parts for part in SPLIT_FOLDERS[split]) for pair in data.pairing.pairs
        )
        assert [data[index]["mask"].shape for index in range(len(data))] == [(1, 3)] * len(data)


def test_a_split_may_be_called_by_its_folder(tmp_path):
    data = open_data(f"{write_ade20k(tmp_path)}:validation")
    assert data.pairing.pairs == open_data(tmp_path, "val").pairing.pairs


def test_ade20k_ignores_0_and_counts_from_1(tmp_path):
    data = open_data(f"{write_ade20k(tmp_path, ids=(0, 1, 2, 150))}:train")
    assert data[0]["mask"].tolist() == [[255, 0, 1, 149]]
    assert (data.classes[0], data.classes[1], data.classes[149]) == ("wall", "building", "flag")


def test_cityscapes_keeps_19_of_34_ids(tmp_path):
    data = open_data(f"{write_cityscapes(tmp_path, ids=range(34))}:train")
    mask = data[0]["mask"][0]
    assert mask[[7, 8, 11, 19, 26, 28, 31, 33]].tolist() == [0, 1, 2, 6, 13, 15, 16, 18]
    assert mask[mask != 255].tolist() == list(range(19))
    assert (data.classes[18], data.palette[0]) == ("bicycle", (128, 64, 128))


def test_cityscapes_pairs_by_city(tmp_path):
    data = open_data(f"{write_cityscapes(tmp_path)}:val")
    assert [data[index]["name"] for index in range(2)] == [
        "aachen/aachen_000000_000019",
        "bochum/bochum_000000_000019",
    ]


def test_cityscapes_train_ids_are_taken_where_they_are_all_there_is(tmp_path):
    data = open_data(f"{write_cityscapes(tmp_path, ids=(0, 18, 255), kind='labelTrainIds')}:train")
    assert data[0]["mask"].tolist() == [[0, 18, 255]]


def test_coco_stuff_closes_the_gaps_of_its_ids(tmp_path):
    data = open_data(f"{write_coco_stuff(tmp_path, ids=(0, 10, 12, 89, 91, 181, 255))}:train")
    assert data[0]["mask"].tolist() == [[0, 10, 11, 79, 80, 170, 255]]
    names = [data.classes[index] for index in (0, 10, 11, 79, 80, 170)]
    assert names == ["person", "fire hydrant", "stop sign", "toothbrush", "banner", "wood"]


def test_coco_stuff_with_train_ids_beside_the_original_masks(tmp_path):
    write_coco_stuff(tmp_path, ids=(0, 181, 255))
    data = open_data(f"{write_coco_stuff(tmp_path, ids=(0, 170, 255), suffix='_labelTrainIds.png')}:val")
    assert (len(data), data[0]["mask"].tolist()) == (1, [[0, 170, 255]])


def test_an_id_that_the_data_set_does_not_have_is_named(tmp_path):
    data = open_data(
        f"{write_coco_stuff(tmp_path, ids=(11, 0))}:train"
    )  # 11 is a street sign, which no image has
    with pytest.raises(ValueError, match=r"mask of '000000000009' .* 11 \(1 pixels\)"):
        data[0]


def test_an_image_without_mask_is_named_with_the_folder_of_the_masks(tmp_path):
    root = write_cityscapes(tmp_path)
    (root / "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png").unlink()
    message = r"1 images have no mask: leftImg8bit/train/aachen/aachen_\S+png\. Add files of the same name to gtFine/train/"
    with pytest.raises(ValueError, match=message):
        open_data(f"{root}:train")
    assert len(open_data(f"{root}:train", needs_all_pairs=False)) == 1
    assert len(open_data(f"{root}:val")) == 2


def test_a_split_without_any_mask_says_which_names_are_looked_for(root):
    for pair in open_data(f"{root}:train").pairing.pairs:
        pair.mask.rename(pair.mask.with_name(f"{pair.mask.stem}.gif"))
    with pytest.raises(
        ValueError, match=r"has no pairs: .*/train\S* holds . files \*\S*[gG] .* 0 files \*\S*\.png"
    ):
        open_data(f"{root}:train")


def test_a_data_set_needs_the_name_of_a_split(root):
    with pytest.raises(
        ValueError, match="is given without a split. Choose from train, val, as in '.*data:train'"
    ):
        open_data(root)
    with pytest.raises(ValueError, match="has no split 'test'"):
        open_data(f"{root}:test")


def test_annotations_that_are_not_unpacked_are_asked_for(tmp_path):
    write_ade20k(tmp_path)
    (tmp_path / "annotations").rename(tmp_path / "elsewhere")
    with pytest.raises(
        ValueError, match="looks like ADE20K, but has no annotations/training/; it holds elsewhere/, images/"
    ):
        open_data(f"{tmp_path}:train")


@each("place", ["images/training", "images", "annotations/validation", ".."])
def test_a_folder_inside_or_around_the_data_set_is_answered_with_the_right_one(place, tmp_path):
    root = write_ade20k(tmp_path / "ADEChallengeData2016")
    with pytest.raises(ValueError, match="is not the folder of ADE20K, but '.*ADEChallengeData2016' is"):
        open_data(root / place)


def test_a_folder_of_ones_own_stays_what_it_is(tmp_path):
    write_pair(tmp_path / "images/training/a.png", tmp_path / "masks/training/a.png", (0, 1))
    (tmp_path / "annotations/training").mkdir(parents=True)
    (tmp_path / "classes.json").write_text(json.dumps(["a", "b"]))
    assert open_data(tmp_path).classes == ["a", "b"]
    assert with_split(str(tmp_path), "val") == str(tmp_path)


def test_ones_own_class_table_takes_the_place_of_the_published_one(tmp_path):
    (tmp_path / "two.json").write_text(
        json.dumps({"classes": ["room", "flag"], "label_map": {"0": "ignore", "1": 0, "150": 1}})
    )
    data = open_data(f"{write_ade20k(tmp_path)}:train", classes=tmp_path / "two.json")
    assert data[0]["mask"].tolist() == [[255, 0, 1]]


def test_data_can_be_pickled_for_workers(root):
    data = open_data(f"{root}:train")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(data))[0]["mask"], data[0]["mask"])


def test_the_check_reads_both_splits(root, capsys):
    check.main([str(root)])
    printed = capsys.readouterr().out
    assert f"{root}:train: " in printed
    assert f"{root}:val: " in printed
    assert "PROBLEM" not in printed
    assert check_data(open_data(f"{root}:val")).ignored_pixels > 0


def test_training_and_evaluation_take_their_split_of_one_folder(tmp_path):
    from tiny_runs import TINY_MODEL

    root = write_cityscapes(tmp_path / "cityscapes", ids=[7, 8] * 16)
    write_pair(
        root / "leftImg8bit/val/ulm/ulm_000000_000019_leftImg8bit.png",
        root / "gtFine/val/ulm/ulm_000000_000019_gtFine_labelIds.png",
        [7] * 32,
    )
    run = tmp_path / "run"
    options = [
        "--output",
        str(run),
        "--batch-size",
        "2",
        "--steps",
        "1",
        "--crop-size",
        "32",
        "--workers",
        "0",
        "--cpu",
    ]
    assert (
        train.main(["--train", str(root), "--val", str(root), *options, *TINY_MODEL, "--tracker", "none"])
        == 0
    )
    assert evaluate.main([str(run), "--data", str(root), "--output", str(tmp_path / "scores"), "--cpu"]) == 0
    assert json.loads((tmp_path / "scores/evaluation.json").read_text())["images"] == 3
    assert json.loads((run / "run.json").read_text())["arguments"]["val"] == str(root)


def write_urur(root):
    colors = [*URUR.palette, (255, 255, 255)]
    for split in ("train", "val", "test"):
        save(root / f"{split}/image/10.tif", np.full((1, 9, 3), 50))
        label = Image.fromarray(
            np.arange(9, dtype=np.uint8)[None]
        )  # the palette has the colors in another order
        label.putpalette([level for color in colors[::-1] for level in color] + [0] * 30)
        (root / f"{split}/label").mkdir()
        label.save(root / f"{split}/label/10.png")
    return root


def write_deepglobe(root):
    save(root / "train/119_sat.jpg", np.full((1, 7, 3), 50))
    save(root / "train/119_mask.png", [[*DEEPGLOBE.palette, (0, 0, 0)]])
    save(root / "valid/120_sat.jpg", np.full((1, 7, 3), 50))
    return root


def write_inria(root):
    for name in ("austin1", "austin6", "tyrol-w5", "tyrol-w12"):
        save(root / f"train/images/{name}.tif", np.full((1, 2, 3), 50))
        save(root / f"train/gt/{name}.tif", [[0, 255]])
    return root


@each(
    ("write", "source", "labels"),
    [
        (write_urur, "urur:test", [255, *range(7, -1, -1)]),
        (write_deepglobe, "land:train", [*range(6), 255]),
        (write_inria, "aerial:train", [0, 1]),
    ],
)
def test_scenes_from_above_are_read_by_their_colors_or_ids(write, source, labels, tmp_path):
    write(tmp_path / source.split(":")[0])
    data = open_data(f"{tmp_path}/{source}")
    assert data[0]["mask"].tolist() == [labels]


def test_inria_sets_the_first_tiles_of_each_city_aside(tmp_path):
    write_inria(tmp_path)
    names = {
        split: [pair.name for pair in open_data(f"{tmp_path}:{split}").pairing.pairs]
        for split in ("train", "val")
    }
    assert names == {"train": ["austin6", "tyrol-w12"], "val": ["austin1", "tyrol-w5"]}


def test_deepglobe_without_published_masks_of_a_split_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"valid/ holds 1 files \*_sat\.jpg .* 0 files \*_mask\.png"):
        open_data(f"{write_deepglobe(tmp_path)}:val")


def test_a_folder_of_splits_of_ones_own_is_not_a_published_one(tmp_path):
    for part in ("images", "masks"):
        save(tmp_path / f"train/{part}/a.png", np.zeros((1, 3)))
    assert find_layout(tmp_path) is None
