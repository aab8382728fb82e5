"""Datasets in COCO's format, their augmentation, and COCO's scores."""

import importlib
import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from cases import each
from coco_shapes import write_shapes
from PIL import Image
from pycocotools import mask as coco_masks
from transformers import DetrImageProcessor

from contextseg.processing.data.coco import (
    Packed,
    corners,
    learnable,
    object_masks,
    open_coco,
    read_annotations,
)
from contextseg.training.coco_scores import average_precision, detected, score_objects, with_rle
from contextseg.training.detection import (
    DetectionAugmentation,
    DetectionSamples,
    DetectionTask,
)
from contextseg.training.option_texts import shorter_sides
from contextseg.training.options import DetectionArguments

SIZE = (20, 30)
SQUARE = [[4, 5, 14, 5, 14, 12, 4, 12]]
CATEGORIES = [{"id": 9, "name": "dog"}, {"id": 2, "name": "cat"}]


def annotation(**changes):
    row = {
        "id": 1,
        "image_id": 5,
        "category_id": 9,
        "bbox": [4, 5, 10, 7],
        "segmentation": SQUARE,
        "iscrowd": 0,
    }
    return {**row, **changes}


def write_coco(folder, annotations, *, size=SIZE, categories=CATEGORIES, image=None):
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (image or Image.new("RGB", SIZE[::-1], "gray")).save(folder / "images" / "a.png")
    images = [{"id": 5, "file_name": "a.png", "height": size[0], "width": size[1]}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    return str(folder)


def read_objects(folder, *annotations):
    return open_coco(write_coco(folder, list(annotations)), "val")[0]["objects"]


def square_mask():
    mask = np.zeros(SIZE, dtype=np.uint8)
    mask[5:12, 4:14] = 1
    return mask


# -- reading


def test_polygons_and_both_kinds_of_rle_give_the_same_mask(tmp_path):
    packed = coco_masks.encode(np.asfortranarray(square_mask()))
    flat = square_mask().flatten(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]])))
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    forms = [SQUARE, {"size": list(SIZE), "counts": counts}, {**packed, "counts": packed["counts"].decode()}]
    objects = read_objects(tmp_path, *(annotation(segmentation=form) for form in forms))
    masks = object_masks(objects, SIZE)
    assert masks.shape == (3, *SIZE)
    assert [np.array_equal(mask, square_mask()) for mask in masks] == [True] * 3


def test_several_polygons_are_one_object(tmp_path):
    (found,) = read_objects(tmp_path, annotation(segmentation=[*SQUARE, [20, 2, 24, 2, 24, 6, 20, 6]]))
    assert object_masks([found], SIZE).sum() == 70 + 16


def test_categories_are_ordered_by_id_whatever_the_gaps(tmp_path):
    data = open_coco(write_coco(tmp_path, [annotation(), annotation(category_id=2)]), "train")
    assert data.classes == ["cat", "dog"]
    assert [found["class"] for found in data[0]["objects"]] == [1, 0]


def test_boxes_become_corners_inside_the_image(tmp_path):
    objects = read_objects(tmp_path, annotation(), annotation(bbox=[-3, 15, 10, 10]))
    assert corners(objects, SIZE).tolist() == [[4, 5, 14, 12], [0, 15, 7, 20]]


@each(
    "changes",
    {
        "crowd": {"iscrowd": 1},
        "narrow": {"bbox": [4, 5, 0.5, 7]},
        "outside": {"bbox": [40, 5, 9, 7]},
        "no area": {"segmentation": [[1, 1, 2, 2]]},
    },
)
def test_training_leaves_out_crowds_and_what_has_no_area(tmp_path, changes):
    objects = read_objects(tmp_path, annotation(**changes), annotation())
    assert len(objects) == 2  # evaluation knows both
    assert learnable(objects, SIZE) == objects[1:]


def test_training_leaves_out_images_without_objects_and_evaluation_keeps_them(tmp_path):
    write_shapes(tmp_path, 3)
    path = tmp_path / "annotations.json"
    content = json.loads(path.read_text())
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] != 10]
    path.write_text(json.dumps(content))
    assert len(open_coco(str(tmp_path), "val")) == 3
    assert [sample["name"] for sample in open_coco(str(tmp_path), "train")] == [
        "image0.png",
        "image2.png",
    ]


def test_the_published_folders_have_splits(tmp_path):
    for split, count in (("train", 2), ("val", 1)):
        write_shapes(tmp_path / split, count)
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / split / "annotations.json").rename(
            tmp_path / "annotations" / f"instances_{split}2017.json"
        )
        (tmp_path / split / "images").rename(tmp_path / f"{split}2017")
    assert [len(open_coco(str(tmp_path), split)) for split in ("train", "val")] == [2, 1]
    assert len(open_coco(f"{tmp_path}:val", "train")) == 1


def test_an_image_that_was_annotated_before_it_was_turned_is_read_so(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # to be turned by a quarter
    (tmp_path / "images").mkdir()
    folder = write_coco(tmp_path, [annotation()])
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "images" / "a.png", exif=exif)
    assert open_coco(folder, "train")[0]["image"].size == SIZE[::-1]


def test_packed_values_come_out_as_they_went_in():
    values = [{"a": [1, 2.5]}, "ü", None, []]
    assert list(Packed(values)) == values


FAULTS = {
    "unknown image": ([annotation(image_id=6)], "annotation 1 belongs to image 6 .* but the image is not in"),
    "unknown category": ([annotation(category_id=3)], "category 3, but the category is not in the file"),
    "no mask": ([annotation(segmentation=None)], "annotation 1 has no 'segmentation'"),
    "odd polygon": ([annotation(segmentation=[[1, 2, 3, 4, 5, 6, 7]])], "neither polygons nor RLE"),
    "text polygon": ([annotation(segmentation=[["1", 2, 3, 4, 5, 6]])], "neither polygons nor RLE"),
    "bad box": ([annotation(bbox=[1, 2, 3])], r"annotation 1 of 'a.png' has bbox \[1, 2, 3\]. Four numbers"),
    "RLE of another size": (
        [annotation(segmentation={"size": [30, 20], "counts": [600]})],
        r"RLE mask of size \[30, 20\], but the image is \[20, 30\]",
    ),
}


@each(("annotations", "message"), FAULTS)
def test_broken_annotations_are_explained(annotations, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        open_coco(write_coco(tmp_path, annotations), "train")


@each(("text", "message"), [("{", "is not JSON"), ("[]", "not in COCO format. It must contain the lists images"), ('{"images": 1}', "COCO format")])  # fmt: skip
def test_other_files_are_refused(text, message, tmp_path):
    path = tmp_path / "annotations.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_annotations(path)


def test_two_categories_of_one_name_are_refused(tmp_path):
    categories = [{"id": 1, "name": "dog"}, {"id": 2, "name": "dog"}]
    with pytest.raises(ValueError, match="the categories are dog, dog. Give each its own"):
        open_coco(write_coco(tmp_path, [], categories=categories), "train")


def test_an_image_of_another_size_than_annotated_is_refused(tmp_path):
    data = open_coco(write_coco(tmp_path, [annotation()], size=(40, 30)), "train")
    with pytest.raises(
        ValueError, match=r"a.png' is 30x20 \(width x height\), but its annotations are for 30x40"
    ):
        data[0]


def test_a_folder_that_is_no_data_set_is_explained(tmp_path):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(
        ValueError, match=r"it holds pictures/. Give a folder with images/ and annotations.json"
    ):
        open_coco(str(tmp_path), "train")


def test_data_without_a_single_object_cannot_train(tmp_path):
    with pytest.raises(ValueError, match="no image of .* has an object with a mask"):
        open_coco(write_coco(tmp_path, [annotation(iscrowd=1)]), "train")


def test_without_pycocotools_the_error_says_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    monkeypatch.delitem(sys.modules, open_coco.__module__)
    monkeypatch.delitem(sys.modules, "contextseg.processing.coco_masks")
    with pytest.raises(ImportError, match="pip install .contextseg.detection."):
        importlib.import_module(open_coco.__module__)


# -- augmentation


def augmented(augmentation, epoch=0, index=0):
    mask = torch.from_numpy(square_mask())[None]
    image = Image.fromarray(square_mask() * 255).convert("RGB")
    boxes = torch.tensor([[4.0, 5, 14, 12]])
    return augmentation(image, boxes, mask, epoch=epoch, index=index)


@each("flip_probability", [0.0, 1.0])
def test_image_box_and_mask_are_resized_and_mirrored_together(flip_probability):
    image, boxes, masks = augmented(DetectionAugmentation((40,), 1333, flip_probability))
    assert image.size == (60, 40)
    assert masks.shape == (1, 40, 60)
    left, top, right, bottom = boxes[0].int().tolist()
    assert (left, right) == ((8, 28) if flip_probability == 0 else (32, 52))
    expected = torch.zeros(40, 60, dtype=torch.uint8)
    expected[top:bottom, left:right] = 1
    assert torch.equal(masks[0], expected)
    bright = np.asarray(image)[..., 0] > 127
    assert np.array_equal(bright, expected.bool().numpy())


def test_the_longer_side_wins_over_the_shorter_one():
    assert DetectionAugmentation((800,), 1333).new_size((300, 900), 800) == (444, 1333)
    assert DetectionAugmentation((800,), 1333).new_size((480, 640), 800) == (800, 1067)


def test_a_sample_depends_on_seed_epoch_and_index_alone():
    augmentation = DetectionAugmentation(shorter_sides("20-84"), seed=3)
    drawn = {
        (epoch, index): augmented(augmentation, epoch, index)[0].size
        for epoch in range(4)
        for index in range(4)
    }
    assert len(set(drawn.values())) == 3
    assert {key: augmented(augmentation, *key)[0].size for key in reversed(drawn)} == drawn


def test_a_range_of_sides_goes_in_steps_of_32():
    assert shorter_sides("800") == (800,)
    assert shorter_sides("480-800") == tuple(range(480, 801, 32))
    for text in ("0", "a", "480-", "1-2-3"):
        with pytest.raises(ValueError, match=f"--shorter-side {text} is not a length"):
            shorter_sides(text)


def test_samples_of_several_sizes_become_one_padded_batch(tmp_path):
    for name, size in (("wide", (52, 80)), ("high", (64, 52))):
        write_shapes(tmp_path / name, 1, size=size)
    processor = DetrImageProcessor(size={"shortest_edge": 52, "longest_edge": 99})
    samples = [
        DetectionSamples(
            open_coco(str(tmp_path / name), "train"), DetectionAugmentation((52,), 99, 0.0), processor
        )
        for name in ("wide", "high")
    ]
    batch = samples[0].collate([each[0, 0] for each in samples])
    assert batch["pixel_values"].shape == (2, 3, 64, 80)
    assert [mask.sum().item() for mask in batch["pixel_mask"]] == [52 * 80, 64 * 52]
    for index, label in enumerate(batch["labels"]):
        assert label["masks"].shape == (2, 64, 80)
        center_x, center_y, width, height = (label["boxes"] * torch.tensor([80, 64, 80, 64])).unbind(1)
        for at in range(2):
            rows, columns = label["masks"][at].nonzero().unbind(1)
            assert (columns.min(), rows.min()) == (
                pytest.approx((center_x - width / 2)[at].item(), abs=1e-3),
                pytest.approx((center_y - height / 2)[at].item(), abs=1e-3),
            )
        assert batch["pixel_values"][index][:, batch["pixel_mask"][index] == 0].abs().sum() == 0


# -- scores


def truth_of(data):
    return [
        {"id": index, "height": 64, "width": 64, "objects": [with_rle(known, (64, 64)) for known in sample["objects"]]}
        for index, sample in enumerate(data)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """Three images, each with a square and a disk."""
    return truth_of(open_coco(str(write_shapes(tmp_path_factory.mktemp("truth"), 3)), "val"))


def perfect(truth):
    parts = ("class", "bbox", "segmentation", "iscrowd")
    return [
        {**image, "objects": [{"score": 0.9, **{part: known[part] for part in parts}} for known in image["objects"]]}
        for image in truth
    ]  # fmt: skip


def test_perfect_predictions_score_one(truth):
    scores = average_precision(truth, perfect(truth), ["square", "disk"])
    assert [scores[name] for name in ("box_ap", "box_ap_50", "box_ap_75", "mask_ap", "mask_ap_75")] == [
        pytest.approx(1.0)
    ] * 5
    assert [row["support"] for row in scores["per_class"]] == [3, 3]
    assert scores["per_class"][1]["mask_ap"] == pytest.approx(1.0)
    assert math.isnan(scores["box_ap_large"])  # there are none


def test_nothing_found_scores_zero_and_nothing_to_find_has_no_score(truth):
    nothing = [{**image, "objects": []} for image in truth]
    assert average_precision(truth, nothing, ["square", "disk"])["box_ap"] == 0.0
    assert math.isnan(average_precision(nothing, nothing, ["square", "disk"])["mask_ap"])


def test_half_of_the_squares_found_lowers_the_squares_alone(truth):
    found = perfect(truth)
    found[0]["objects"] = found[0]["objects"][1:]
    rows = average_precision(truth, found, ["square", "disk"])["per_class"]
    assert rows[0]["box_ap"] == pytest.approx(67 / 101)  # of 101 recalls those up to two thirds
    assert rows[1]["box_ap"] == pytest.approx(1.0)


def test_boxes_and_masks_are_scored_apart(truth):
    found = perfect(truth)
    for image in found:
        for one in image["objects"]:
            left, top, width, height = one["bbox"]
            one["bbox"] = [left, top, width, height * 0.72]
    scores = average_precision(truth, found, ["square", "disk"])
    assert scores["box_ap"] == pytest.approx(0.5)  # an overlap of 0.72 passes 0.5, 0.55, 0.6, 0.65 and 0.7
    assert scores["mask_ap"] == pytest.approx(1.0)


def test_a_crowd_is_neither_missed_nor_does_it_count_against(truth):
    crowd = [
        {**image, "objects": [image["objects"][0], {**image["objects"][1], "iscrowd": 1}]} for image in truth
    ]
    scores = average_precision(crowd, perfect(truth), ["square", "disk"])
    assert scores["box_ap"] == pytest.approx(1.0)
    assert math.isnan(scores["per_class"][1]["box_ap"])


class Oracle(torch.nn.Module):
    """Returns exactly the given objects, image after image."""

    def __init__(self, found):
        super().__init__()
        self.found, self.config = iter(found), SimpleNamespace(id2label={0: "square", 1: "disk"})

    def forward(self, pixel_values, pixel_mask):
        assert pixel_values.shape[1:] == (3, *pixel_mask.shape[1:])

    def instances(self, outputs, target_sizes, threshold):  # noqa: ARG002
        objects = next(self.found)["objects"]
        boxes = torch.from_numpy(corners(objects, target_sizes[0]))
        masks = torch.stack([torch.from_numpy(coco_masks.decode(one["segmentation"])) for one in objects])
        labels = torch.tensor([one["class"] for one in objects])
        return [{"scores": torch.ones(len(labels)), "labels": labels, "boxes": boxes, "masks": masks.bool()}]


def scores_without_one_square(folder, accelerator):
    """Of a model that misses the first square of three; the processes share the images."""
    data = open_coco(folder, "val")
    found = truth_of(data)
    found[0]["objects"] = found[0]["objects"][1:]
    processor = DetrImageProcessor(size={"shortest_edge": 32, "longest_edge": 99})
    images = DetectionTask(DetectionArguments(workers=0)).evaluation_images(data, processor, accelerator)
    own = found[accelerator.process_index :: accelerator.num_processes]
    return score_objects(Oracle(own), images, accelerator)


def test_images_go_through_a_model_to_their_scores(tmp_path):
    scores = scores_without_one_square(str(write_shapes(tmp_path, 3)), Accelerator(cpu=True))
    assert scores["images"] == 3
    assert scores["mask_ap"] == pytest.approx((1 + 67 / 101) / 2)


HALF = """
import json, sys
sys.path[:0] = sys.argv[2:]
from accelerate import Accelerator
from test_coco import scores_without_one_square
accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
scores = scores_without_one_square(sys.argv[1], accelerator)
with open(f"{sys.argv[1]}/scores{accelerator.process_index}.json", "w") as file:
    json.dump(scores, file)
accelerator.end_training()
"""


@pytest.mark.processes
def test_two_processes_score_every_image_once(tmp_path):
    folder = str(write_shapes(tmp_path, 3))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    here = Path(__file__).parent
    processes = []
    for rank in range(2):
        place = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": 2,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        environment = os.environ | {name: str(value) for name, value in place.items()}
        command = [sys.executable, "-c", HALF, folder, str(here), str(here.parent)]
        processes.append(subprocess.Popen(command, env=environment))
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    alone = json.dumps(scores_without_one_square(folder, Accelerator(cpu=True)))
    assert [(tmp_path / f"scores{rank}.json").read_text() for rank in range(2)] == [alone] * 2


def test_detections_become_coco_rows():
    masks = torch.from_numpy(square_mask()).bool()[None]
    found = {
        "labels": torch.tensor([1]),
        "scores": torch.tensor([0.5]),
        "boxes": torch.tensor([[4.0, 5, 14, 12]]),
    }
    (row,) = detected({**found, "masks": masks})
    assert row["bbox"] == [4, 5, 10, 7]
    assert np.array_equal(coco_masks.decode(row["segmentation"]), square_mask())


def test_precision_at_an_overlap_counts_what_overlaps_as_much():
    """The box and the mask that are found cover 0.72 of the object."""
    rectangles = [np.zeros((64, 64), dtype=np.uint8, order="F") for _ in range(2)]
    for rectangle, width in zip(rectangles, (25, 18), strict=True):
        rectangle[:40, :width] = 1
    known, found = (
        {"class": 0, "bbox": [0, 0, width, 40], "segmentation": coco_masks.encode(rectangle), "iscrowd": 0}
        for rectangle, width in zip(rectangles, (25, 18), strict=True)
    )
    image = {"id": 0, "height": 64, "width": 64}
    truth = [{**image, "objects": [{**known, "area": 1000.0}]}]
    scores = average_precision(truth, [{**image, "objects": [{**found, "score": 0.9}]}], ["square"])
    for kind in ("box", "mask"):
        assert (scores[f"{kind}_ap_50"], scores[f"{kind}_ap_75"]) == (pytest.approx(1.0), 0.0)
        assert scores[f"{kind}_ap"] == pytest.approx(5 / 10)  # at 0.5, 0.55, ... 0.7
