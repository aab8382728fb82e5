"""Pairs of images and masks: from folders, from `datasets`, and the errors for what is not a dataset."""

import io
import json
import os
import pickle
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from cases import each, slow_but
from PIL import Image

from contextseg.processing.data.class_table import ClassTable, class_table
from contextseg.processing.data.datasets import (
    DatasetPairs,
    SegmentationFolder,
    open_data,
    split_source,
)
from contextseg.processing.data.pairing import listed
from contextseg.processing.data.report import check_data
from contextseg.processing.image_reading import ImageReadError
from contextseg.scripts import check

DATA = Path(os.environ.get("CONTEXTSEG_DATA", Path(__file__).parents[3] / "shared" / "data"))
CLASSES = ["sky", "road", "car"]


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path)


def encoded(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_pair(folder, name, *, size=(6, 8), suffix=".png", mask=None, value=50):
    save(folder / "images" / f"{name}{suffix}", np.full((*size, 3), value))
    save(
        folder / "masks" / f"{name}.png",
        np.arange(size[0] * size[1]).reshape(size) % 3 if mask is None else mask,
    )


@pytest.fixture
def folder(tmp_path):
    """Three pairs in tmp/train, classes.json in tmp."""
    for index, name in enumerate(("b", "a", "night/a")):
        write_pair(tmp_path / "train", name, value=10 * index)
    (tmp_path / "classes.json").write_text(json.dumps({"classes": CLASSES}))
    return tmp_path / "train"


@pytest.fixture
def rows(folder):
    """The folder as a dataset of `datasets` with columns image and mask."""
    pairs = SegmentationFolder(folder).pairing.pairs
    columns = {"image": [str(pair.image) for pair in pairs], "mask": [str(pair.mask) for pair in pairs]}
    return (
        datasets.Dataset.from_dict(columns)
        .cast_column("image", datasets.Image())
        .cast_column("mask", datasets.Image())
    )


def test_samples_come_by_name_with_subfolders_as_part_of_it(folder):
    data = SegmentationFolder(folder)
    assert [data[i]["name"] for i in range(len(data))] == ["a", "b", "night/a"]
    assert [data[i]["image"].getpixel((0, 0))[0] for i in range(3)] == [10, 0, 20]


def test_a_sample_is_an_rgb_image_and_int64_class_ids(folder):
    sample = SegmentationFolder(folder)[0]
    assert (sample["image"].mode, sample["image"].size) == ("RGB", (8, 6))
    assert (sample["mask"].dtype, sample["mask"].shape) == (np.int64, (6, 8))


def test_suffixes_may_differ_and_be_upper_case(folder):
    write_pair(folder, "c", suffix=".JPG")
    assert SegmentationFolder(folder)[2]["name"] == "c"


def test_hidden_and_other_files_are_left_out(folder):
    (folder / "images" / "notes.txt").write_text("not an image")
    (folder / "masks" / "._a.png").write_bytes(b"left by a copy from a Mac")
    assert len(SegmentationFolder(folder)) == 3


def test_masks_go_through_the_label_map(folder):
    data = SegmentationFolder(folder, classes=["ground", "car"], label_map={0: "ignore", 1: 0, 2: 1})
    assert np.unique(data[0]["mask"]).tolist() == [0, 1, 255]


def test_color_masks_are_decoded_by_the_palette(folder):
    colors = np.array([[255, 0, 0], [0, 255, 0]], dtype=np.uint8)
    ids = np.eye(6, 8, dtype=int)
    write_pair(folder, "a", mask=colors[ids])
    (folder / "classes.json").write_text(json.dumps({"classes": ["a", "b"], "palette": colors.tolist()}))
    np.testing.assert_array_equal(SegmentationFolder(folder)[0]["mask"], ids)


@each("is_folder", [True, False])
def test_palette_masks_are_decoded_by_their_colors(folder, rows, is_folder):
    colors = [[0, 0, 0], [0, 0, 255], [255, 0, 0]]
    for path in folder.glob("masks/**/*.png"):
        mask = Image.fromarray(np.asarray(Image.open(path)))
        mask.putpalette([level for color in (colors[0], colors[2], colors[1]) for level in color])
        mask.save(path)
    table = class_table({"classes": CLASSES, "palette": colors}, None, "test")
    (folder.parent / "classes.json").write_text(json.dumps({"classes": CLASSES, "palette": colors}))
    data = SegmentationFolder(folder) if is_folder else DatasetPairs(rows, table)
    np.testing.assert_array_equal(data[0]["mask"], np.array([0, 2, 1])[np.arange(48).reshape(6, 8) % 3])


def test_classes_can_be_numbered_in_another_order(folder):
    data = SegmentationFolder(folder)
    before, names = data[0]["mask"], [CLASSES[i] for i in (2, 0, 1)]
    data.number_classes_as(names)
    assert data.classes == names
    np.testing.assert_array_equal(data[0]["mask"], np.array([1, 2, 0])[before])


def test_images_of_many_channels_are_arrays(folder):
    for path in folder.rglob("images/**/*.png"):
        save(path, np.zeros((6, 8)))
    assert SegmentationFolder(folder, num_channels=1)[0]["image"].shape == (6, 8, 1)


def test_data_sets_can_be_pickled_for_workers(folder, rows):
    for data in (SegmentationFolder(folder), DatasetPairs(rows, SegmentationFolder(folder).table)):
        copy = pickle.loads(pickle.dumps(data))
        np.testing.assert_array_equal(copy[1]["mask"], data[1]["mask"])


def test_an_unreadable_image_is_named_when_it_is_reached(folder):
    (folder / "images" / "b.png").write_bytes(b"damaged")
    data = SegmentationFolder(folder)
    assert data[0]["name"] == "a"
    with pytest.raises(ImageReadError, match=r"b\.png"):
        data[1]


def test_a_mask_of_another_size_is_named(folder):
    write_pair(folder, "b", mask=np.zeros((5, 8)))
    with pytest.raises(ValueError, match="the mask of 'b' is 8x5, but its image is 8x6"):
        SegmentationFolder(folder)[1]


def test_an_unknown_id_is_named_with_its_mask(folder):
    write_pair(folder, "b", mask=np.full((6, 8), 9))
    with pytest.raises(ValueError, match=r"mask of 'b' .* 9 \(48 pixels\)"):
        SegmentationFolder(folder)[1]


def test_images_without_masks_and_masks_without_images_are_counted_and_named(folder):
    for index in range(7):
        save(folder / "images" / f"extra{index}.png", np.zeros((2, 2, 3)))
    save(folder / "masks" / "lonely.png", np.zeros((2, 2)))
    with pytest.raises(
        ValueError, match=r"7 images have no mask: images/extra0\.png.*and 2 more.*masks/lonely\.png"
    ):
        SegmentationFolder(folder)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere/at/all", "does not exist; '.*' holds classes.json, train/"),
        (".", "has no images/ and masks/; they are in train. Give '.*train'"),
        ("train/images", "one level too deep. Give '.*train'"),
        ("train/images/night", "must have a folder images/ and a folder masks/"),
        ("classes.json", "is a file"),
    ],
)
def test_a_wrong_folder_is_answered_with_the_right_one(folder, place, message):
    with pytest.raises(ValueError, match=message):
        open_data(folder.parent / place)


def test_names_that_never_match_are_shown_side_by_side(tmp_path):
    save(tmp_path / "images" / "1.png", np.zeros((2, 2, 3)))
    save(tmp_path / "masks" / "1_mask.png", np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"1\.png.*1_mask\.png.*same name"):
        SegmentationFolder(tmp_path)


def test_two_images_of_one_name_are_both_named(folder):
    write_pair(folder, "a", suffix=".bmp")
    with pytest.raises(ValueError, match=r"a\.png' and .*a\.bmp'|a\.bmp' and .*a\.png'"):
        SegmentationFolder(folder)


def test_a_missing_class_table_is_proposed_from_the_masks(folder):
    (folder.parent / "classes.json").unlink()
    with pytest.raises(ValueError, match=r'"class 0", "class 1", "class 2".*contain the ids 0, 1, 2'):
        SegmentationFolder(folder)


def test_the_proposal_for_binary_masks_maps_255_to_an_object(folder):
    (folder.parent / "classes.json").unlink()
    for name in ("a", "b", "night/a"):
        write_pair(folder, name, mask=np.eye(6, 8) * 255)
    with pytest.raises(ValueError, match='"label_map": {"0": 0, "255": 1}'):
        SegmentationFolder(folder)


def test_a_data_set_of_datasets_gives_the_samples_of_the_folder(folder, rows):
    expected = SegmentationFolder(folder)
    data = DatasetPairs(rows, expected.table, name="streets")
    for index in range(3):
        np.testing.assert_array_equal(np.asarray(data[index]["image"]), np.asarray(expected[index]["image"]))
        np.testing.assert_array_equal(data[index]["mask"], expected[index]["mask"])
    assert data[2]["name"] == "streets[2]"


def test_a_saved_data_set_opens_by_folder_and_split(rows, tmp_path):
    saved = tmp_path / "saved"
    datasets.DatasetDict({"train": rows, "val": rows.select([0])}).save_to_disk(saved)
    data = open_data(f"{saved}:val", classes=CLASSES)
    assert (len(data), data.classes) == (1, CLASSES)
    with pytest.raises(ValueError, match="has the splits train, val"):
        open_data(saved, classes=CLASSES)


HUB_LAYOUTS = {
    "as on the Hub": "data/{}-00000-of-00001.parquet",
    "one file a split": "{}.parquet",
    "converted": "default/{}/0000.parquet",
    "arrow": "{}.arrow",
}


@pytest.mark.parametrize("layout", slow_but(HUB_LAYOUTS, "as on the Hub"))
@pytest.mark.parametrize("card", ["---\nlicense: mit\n---\n", pytest.param(None, marks=pytest.mark.slow)])
def test_a_folder_as_downloaded_from_the_hub_opens(layout, card, rows, tmp_path):
    folder = tmp_path / "set"
    for split in ("train", "validation"):
        path = folder / HUB_LAYOUTS[layout].format(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".arrow":
            rows.save_to_disk(folder.parent / split)
            shutil.copy(next((folder.parent / split).glob("*.arrow")), path)
        else:
            rows.to_parquet(path)
    (folder / "classes.json").write_text(json.dumps(CLASSES))
    if card:
        (folder / "README.md").write_text(card)
    data = open_data(f"{folder}:validation")
    assert (len(data), data.classes, data[0]["mask"].shape) == (3, CLASSES, (6, 8))


def test_the_check_goes_through_all_splits_of_a_folder_for_datasets(rows, tmp_path):
    datasets.DatasetDict({"train": rows, "val": rows.select([0])}).save_to_disk(tmp_path / "set")
    assert check.splits(str(tmp_path / "set"), "segmentation") == [
        f"{tmp_path}/set:train",
        f"{tmp_path}/set:val",
    ]


@pytest.mark.slow
@each("classes", [CLASSES, dict(enumerate(CLASSES))])
def test_an_opened_dataset_and_names_in_any_form_are_taken_as_they_are(classes, rows):
    data = open_data(rows, classes=classes)
    assert (data.classes, data[1]["mask"].shape) == (CLASSES, (6, 8))


@each(
    ("reading", "message"),
    {
        "empty": ({"value_range": (5, 5)}, "value_range is .* the first is smaller"),
        "NaN": ({"value_range": (float("nan"), 1)}, "value_range is"),
        "no channels": ({"num_channels": 0}, "num_channels is 0, but must be a whole number above 0"),
        "no pixels": ({"pixel_limit": -1}, "pixel_limit is -1"),
    },
)
def test_options_of_reading_out_of_range_are_refused_at_once(reading, message, folder):
    with pytest.raises(ValueError, match=message):
        open_data(folder, **reading)


def test_the_check_of_anything_but_a_dataset_says_what_to_give(folder):
    with pytest.raises(TypeError, match="got a str. Give it the dataset that open_data"):
        check_data(str(folder))


def test_a_table_opens_by_its_own_path(rows, tmp_path):
    rows.to_parquet(tmp_path / "streets.parquet")
    assert open_data(tmp_path / "streets.parquet")[1]["mask"].shape == (6, 8)


def test_a_dataset_card_says_which_files_are_the_splits(rows, tmp_path):
    rows.to_parquet(tmp_path / "set" / "all" / "a.parquet")
    files = "configs:\n- config_name: default\n  data_files:\n  - split: night\n    path: all/*\n"
    (tmp_path / "set" / "README.md").write_text(f"---\n{files}---\n")
    assert len(open_data(f"{tmp_path}/set:night", classes=CLASSES)) == 3


IDS = np.arange(48, dtype=np.uint8).reshape(6, 8) % 3
CELLS = {
    "array": (datasets.Array2D((6, 8), "uint8"), IDS),
    "lists": (datasets.Sequence(datasets.Sequence(datasets.Value("int64"))), IDS.tolist()),
    "bytes": (datasets.Value("binary"), encoded(IDS)),
    "struct": (
        {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
        {"bytes": encoded(IDS), "path": None},
    ),
}


@each(("kind", "cell"), CELLS)
def test_masks_in_columns_of_any_kind_are_read(kind, cell):
    features = datasets.Features({"image": datasets.Array3D((6, 8, 3), "uint8"), "mask": kind})
    content = {"image": [np.zeros((6, 8, 3), np.uint8)], "mask": [cell]}
    sample = DatasetPairs(datasets.Dataset.from_dict(content, features=features), ClassTable(CLASSES))[0]
    np.testing.assert_array_equal(sample["mask"], IDS)


@each(
    ("convert", "message"),
    {
        "a stream": (lambda rows: rows.to_iterable_dataset(), "streaming"),
        "all splits": (lambda rows: datasets.DatasetDict(train=rows), "DatasetDict with the splits train"),
        "streams": (
            lambda rows: datasets.IterableDatasetDict(train=rows.to_iterable_dataset()),
            "without streaming",
        ),
        "a list": (list, "not a datasets.Dataset"),
        "no rows": (lambda rows: rows.select([]), "has no rows"),
        "numbers as masks": (
            lambda rows: rows.remove_columns("mask").add_column("mask", [1, 2, 3]),
            "'mask' has values of the type int64, not images",
        ),
    },
)
def test_what_is_not_rows_is_answered_in_words(convert, message, rows):
    with pytest.raises(ValueError, match=message):
        DatasetPairs(convert(rows), ClassTable(CLASSES), mask_column="mask")


def test_rows_without_class_names_are_answered_with_a_proposal(rows):
    with pytest.raises(ValueError, match='"class 2".*--classes.*contain the ids 0, 1, 2'):
        DatasetPairs(rows)


def test_an_imagefolder_with_metadata_opens(folder, tmp_path):
    lines = [{"file_name": f"images/{n}.png", "mask_file_name": f"masks/{n}.png"} for n in ("a", "b")]
    place = folder.rename(tmp_path / "set")
    (place / "images").rename(place / "photos")
    for line in lines:
        line["file_name"] = line["file_name"].replace("images", "photos")
    (place / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    assert open_data(place)[1]["mask"].shape == (6, 8)


def test_class_names_come_from_a_list_of_class_labels(rows):
    labeled = rows.add_column("classes", [[0, 1, 2]] * 3)
    labeled = labeled.cast_column("classes", datasets.Sequence(datasets.ClassLabel(names=CLASSES)))
    assert DatasetPairs(labeled).classes == CLASSES


def test_columns_of_unusual_names_are_asked_for(rows, folder):
    table = SegmentationFolder(folder).table
    unusual = rows.rename_columns({"image": "left", "mask": "right"})
    with pytest.raises(ValueError, match="image columns left, right.*--image-column"):
        DatasetPairs(unusual, table)
    assert len(DatasetPairs(unusual, table, image_column="left", mask_column="right")) == 3


def test_the_only_other_image_column_is_the_other_one(rows, folder):
    data = DatasetPairs(rows.rename_column("mask", "truth"), SegmentationFolder(folder).table)
    assert (data.image_column, data.mask_column) == ("image", "truth")


def test_a_damaged_row_is_named(rows, folder):
    broken = rows.map(lambda row: row).cast_column("image", datasets.Image(decode=False))
    broken = broken.map(lambda _: {"image": {"bytes": b"damaged", "path": None}})
    with pytest.raises(ImageReadError, match=r"streets\[0\]\['image'\]"):
        DatasetPairs(
            broken.cast_column("image", datasets.Image()), SegmentationFolder(folder).table, name="streets"
        )[0]


@each(
    ("source", "expected"),
    [
        ("me/streets:train", ("me/streets", "train")),
        ("me/streets", ("me/streets", None)),
        ("C:/data", ("C:/data", None)),
        ("data/train", ("data/train", None)),
    ],
)
def test_a_split_can_be_part_of_the_source(source, expected):
    assert split_source(source, None) == expected


def test_a_split_of_a_folder_is_its_subfolder(folder):
    assert len(open_data(folder.parent, "train")) == 3


def test_the_current_folder_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="must have a folder images/ and a folder masks/"):
        open_data(".")


def test_a_mistyped_folder_is_not_looked_for_on_the_hub(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    with pytest.raises(ValueError, match="'train/imges' does not exist"):
        open_data("train/imges")


@pytest.mark.skipif(not (DATA / "camvid").is_dir(), reason=f"CamVid is not in {DATA}")
def test_camvid_opens_by_its_folder_alone():
    data = open_data(DATA / "camvid" / "val")
    sample = data[0]
    assert (len(data), len(data.classes), data.palette[0]) == (101, 11, (128, 128, 128))
    assert set(np.unique(sample["mask"])) <= {*range(11), 255}


def test_five_names_are_listed_and_more_are_counted():
    assert listed(range(5)) == "0, 1, 2, 3, 4"
    assert listed(range(6)) == "0, 1, 2, 3, 4, and 1 more"
