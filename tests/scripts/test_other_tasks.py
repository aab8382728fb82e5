"""Classifiers, detectors and transformers' own segmenters in `contextseg-check`, `-evaluate` and `-predict`."""

import csv
import json
import os
import shlex
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cases import each
from coco_shapes import CATEGORIES, FEW, write_shapes
from PIL import Image
from task_models import COLORS, labels, save_classifier, save_detector, save_segformer, write_class_folders
from tiny_runs import write_pairs
from transformers import BatchFeature, DetrConfig, SegformerConfig, SegformerImageProcessor, ViTConfig

from contextseg.processing.class_prediction import ClassPredictor
from contextseg.processing.data.coco import open_coco
from contextseg.processing.data.datasets import open_data
from contextseg.processing.image_reading import read_image
from contextseg.processing.object_prediction import objects_picture
from contextseg.processing.prediction_files import find_jobs
from contextseg.scripts import check, evaluate, predict
from contextseg.scripts.train import main as train
from contextseg.training.classification import ClassificationTask
from contextseg.training.detection import DETECTOR, DetectionTask
from contextseg.training.evaluation_options import EvaluateArguments
from contextseg.training.models import CLASSIFIER, SEGMENTER, open_model
from contextseg.training.reading_options import RgbOptions
from contextseg.training.stored_reading import reading_for, rgb_reading

TURNED = 6  # EXIF: turn clockwise to look at it


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("models") / "classifier")


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    return save_detector(tmp_path_factory.mktemp("models") / "detector")


@pytest.fixture(scope="module")
def segformer(tmp_path_factory):
    return save_segformer(tmp_path_factory.mktemp("models") / "segformer")


@pytest.fixture(scope="module")
def animals(tmp_path_factory):
    """Images of five of the classifier's seven classes, in folders."""
    return write_class_folders(tmp_path_factory.mktemp("data") / "val", ["ant", "bee", "cat", "elk", "gnu"])


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", 2)


@pytest.fixture
def odd(tmp_path):
    """Images that are not upright 8-bit RGB, upright.png and its turned twin among them, and one damaged file."""
    folder = tmp_path / "odd"
    (folder / "deep").mkdir(parents=True)
    noise = np.random.default_rng(0)
    upright = Image.fromarray(noise.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    upright.save(folder / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = TURNED
    upright.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.png", exif=exif)
    Image.fromarray(noise.integers(0, 256, (30, 50), dtype=np.uint8)).save(folder / "=gray.png")
    Image.fromarray(noise.integers(0, 65536, (30, 50), dtype=np.uint16)).save(folder / "deep" / "wide.png")
    Image.fromarray(noise.random((30, 50), dtype=np.float32)).save(folder / "fraction.tif")
    np.save(folder / "array.npy", np.asarray(upright))
    (folder / "broken.png").write_text("no image")
    return folder


def scores_of(model, data, output, *options):
    assert (
        evaluate.main([str(model), "--data", str(data), "--output", str(output), "--workers", "0", *options])
        == 0
    )
    return json.loads((output / "evaluation.json").read_text())


def predicted(model, images, output, *options, code=0):
    """What the command writes about images: rows by file name, or COCO's lists."""
    assert predict.main([str(model), str(images), "--output", str(output), *options]) == code
    if (output / "annotations.json").is_file():
        return json.loads((output / "annotations.json").read_text())
    rows = csv.DictReader((output / "predictions.csv").open(encoding="utf-8"))
    return {os.path.relpath(row["image"].lstrip("'"), images): row for row in rows}


def ranking(folder, image):
    """The class names of a saved classifier, most probable first."""
    model, processor, _ = open_model(str(folder), CLASSIFIER)
    with torch.no_grad():
        order = model(**processor(image, return_tensors="pt")).logits[0].argsort(descending=True)
    return [model.config.id2label[index] for index in order.tolist()]


# -- evaluation ------------------------------------------------------------------------------------------------------


def test_a_classifier_is_scored_by_the_names_of_its_classes(classifier, animals, tmp_path, capsys):
    files = sorted(animals.glob("*/*.png"))
    ranks = [ranking(classifier, Image.open(file)).index(file.parent.name) for file in files]
    assert {0, 6} <= set(ranks), "all right or all wrong would prove little"
    scores = scores_of(classifier, animals, tmp_path)
    assert scores["top_1"] == pytest.approx(np.mean([rank == 0 for rank in ranks]))
    assert scores["top_5"] == pytest.approx(np.mean([rank < 5 for rank in ranks]))
    assert {row["name"]: row["images"] for row in scores["per_class"]} == {
        name: 2 * (animals / name).is_dir() for name in reversed(COLORS)
    }
    assert f"top-5 accuracy {100 * scores['top_5']:.2f} %" in capsys.readouterr().out


def test_a_detector_is_scored_by_the_names_of_its_classes(detector, shapes, tmp_path):
    content = json.loads((shapes / "annotations.json").read_text())
    first, second = CATEGORIES
    for row in content["categories"]:
        row["id"] = second if row["id"] == first else first
    for row in content["annotations"]:
        row["category_id"] = second if row["category_id"] == first else first
    shutil.copytree(shapes, tmp_path / "swapped")
    (tmp_path / "swapped" / "annotations.json").write_text(json.dumps(content))
    assert open_coco(str(tmp_path / "swapped"), "val").classes == ["disk", "square"]
    one, other = (scores_of(detector, data, tmp_path) for data in (shapes, tmp_path / "swapped"))
    assert one["per_class"] == other["per_class"]
    assert [row["support"] for row in one["per_class"]] == [2, 2]


def test_a_class_that_the_model_lacks_is_refused(classifier, detector, animals, shapes, tmp_path):
    shutil.copytree(animals / "ant", shutil.copytree(animals, tmp_path / "more") / "yak")
    content = (shapes / "annotations.json").read_text().replace('"disk"', '"yak"')
    (shutil.copytree(shapes, tmp_path / "objects") / "annotations.json").write_text(content)
    for model, data in ((classifier, "more"), (detector, "objects")):
        with pytest.raises(SystemExit, match="classes that the model does not have: yak"):
            evaluate.main([str(model), "--data", str(tmp_path / data), "--workers", "0"])


def test_an_image_that_cannot_be_scored_is_named_and_the_others_are_scored(
    classifier, detector, animals, shapes, tmp_path, capsys
):
    folder, objects = shutil.copytree(animals, tmp_path / "a"), shutil.copytree(shapes, tmp_path / "b")
    (folder / "ant" / "0.png").write_text("no image")
    (objects / "images" / "image0.png").write_text("no image")
    for model, data, name, count in (
        (classifier, folder, "ant/0.png", 9),
        (detector, objects, "image0.png", 1),
    ):
        options = ["--data", str(data), "--workers", "0", "--output", str(tmp_path)]
        assert evaluate.main([str(model), *options]) == 1
        assert name in capsys.readouterr().err
        scores = json.loads((tmp_path / "evaluation.json").read_text())
        assert (scores["images"], len(scores["not_scored"])) == (count, 1)


# -- prediction ------------------------------------------------------------------------------------------------------


def test_a_classifier_writes_the_five_most_probable_classes_of_any_image(classifier, odd, tmp_path, capsys):
    rows = predicted(classifier, odd, tmp_path / "out", code=1)
    assert set(rows) == {"=gray.png", "array.npy", "deep/wide.png", "turned.png", "upright.png"}
    messages = capsys.readouterr().err
    assert all(name in messages for name in ("broken.png", "fraction.tif", "--value-range 0 1"))
    for name, row in rows.items():
        best = ranking(classifier, read_image(odd / name))[:5]
        assert [row[f"class_{rank}"] for rank in range(1, 6)] == best
    options = ["--pixel-limit", "9"]
    assert predicted(classifier, odd, tmp_path / "out", *options, code=1) == rows, (
        "the former table, as none is new"
    )
    same = [list(rows[name].values())[1:] for name in ("upright.png", "turned.png", "array.npy")]
    assert same[0] == same[1] == same[2]


@each("count", [2, 5, 7])
def test_a_table_has_at_most_five_classes(count, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "black.png")
    logits = torch.arange(count).float()[None]
    predictor = ClassPredictor(ConstantModel(logits), lambda *_, **__: BatchFeature(), tmp_path)
    (job,) = find_jobs([str(tmp_path / "black.png")], str(tmp_path / "out"))
    predictor.finish([predictor.run(job)])
    (row,) = csv.DictReader((tmp_path / "predictions.csv").open())
    assert list(row)[1::2] == [f"class_{rank}" for rank in range(1, min(count, 5) + 1)]
    assert row["class_1"] == f"'=class {count - 1}", "a spreadsheet would evaluate it"
    assert float(row["probability_1"]) == pytest.approx(logits.softmax(-1).max().item(), abs=1e-4)


class ConstantModel:
    """A classifier that gives every image the same logits."""

    device = "cpu"

    def __init__(self, logits):
        names = {index: f"=class {index}" for index in range(logits.shape[1])}
        self.config, self.logits = SimpleNamespace(id2label=names, num_labels=len(names)), logits

    def __call__(self, **_):
        return SimpleNamespace(logits=self.logits)


def test_an_interrupted_classification_leaves_a_complete_table(
    classifier, animals, tmp_path, monkeypatch, capsys
):
    run, done = ClassPredictor.predict, []

    def interrupted(self, job, loaded):
        if len(done) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        done.append(job)
        return run(self, job, loaded)

    options = [str(classifier), str(animals), "--output", str(tmp_path / "out"), "--workers", "0"]
    monkeypatch.setattr(ClassPredictor, "predict", interrupted)
    with pytest.raises(SystemExit) as ended:
        predict.main(options)
    monkeypatch.undo()
    assert ended.value.code == 130
    assert "2 of 10 images are classified" in capsys.readouterr().err
    assert len((tmp_path / "out" / "predictions.csv").read_text().splitlines()) == 3
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predictions.csv"]
    assert predict.main([*options, "--skip-existing"]) == 0
    assert "8 of 10 images classified, 2 skipped" in capsys.readouterr().out
    assert len((tmp_path / "out" / "predictions.csv").read_text().splitlines()) == 11


def test_a_detector_writes_what_coco_tools_read(detector, odd, tmp_path):
    content = predicted(detector, odd, tmp_path / "out", "--threshold", "0.3", "--overlay", code=1)
    options = ["--threshold", "0.3", "--overlay", "--skip-existing"]
    (tmp_path / "out" / "overlays" / "turned.png").unlink()
    assert predicted(detector, odd, tmp_path / "out", *options, code=1) == content
    sizes = {row["file_name"]: (row["height"], row["width"]) for row in content["images"]}
    small = dict.fromkeys(("=gray.png", "deep/wide.png"), (30, 50))
    assert sizes == small | dict.fromkeys(("upright.png", "turned.png", "array.npy"), (40, 60))
    model, processor, _ = open_model(str(detector), DETECTOR)
    image = read_image(odd / "upright.png")
    with torch.no_grad():
        outputs = model(**processor(image, return_tensors="pt"))
    (found,) = model.instances(outputs, [(40, 60)], 0.3)
    assert len(found["scores"]) > 1
    data = tmp_path / "data"
    shutil.copytree(odd, data / "images")
    shutil.copy(tmp_path / "out" / "annotations.json", data)
    known = open_coco(str(data), "val")
    (sample,) = (known[index] for index in range(len(known)) if known.name_of(index) == "upright.png")
    assert [one["class"] for one in sample["objects"]] == found["labels"].tolist()
    boxes = torch.tensor([one["bbox"] for one in sample["objects"]])
    corners = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
    torch.testing.assert_close(corners, found["boxes"], atol=0.02, rtol=0)
    assert [one["area"] for one in sample["objects"]] == found["masks"].sum((1, 2)).tolist()
    assert Image.open(tmp_path / "out" / "overlays" / "turned.png").size == (60, 40)


def test_objects_are_tinted_and_named_inside_the_picture():
    masks = torch.zeros(1, 60, 80, dtype=torch.bool)
    masks[0, 20:50, 60:78] = True
    found = {"boxes": torch.tensor([[60.0, 20, 78, 50]]), "masks": masks}
    found |= {"labels": torch.tensor([0]), "scores": torch.tensor([0.9])}
    picture = np.asarray(objects_picture(Image.new("RGB", (80, 60), "gray"), found, ["square"]))
    assert (picture[35, 70] == (128 + np.array([128, 0, 0])) // 2).all()
    assert (picture[55:, :] == 128).all(), "outside the object and its name"
    named = (picture[:20] != 128).any(axis=(0, 2))
    assert (named[:5].any(), named[30:78].any()) == (False, True), (
        "the name begins further left, so that it fits"
    )


def test_a_range_that_was_saved_with_the_run_is_used_after_it(classifier, odd, animals, tmp_path):
    run = shutil.copytree(classifier, tmp_path / "run" / "best").parent
    (run / "run.json").write_text(json.dumps({"arguments": {"value_range": "0,1"}}))
    assert "fraction.tif" in predicted(run, odd, tmp_path / "out", code=1)
    folder = shutil.copytree(animals, tmp_path / "data")
    shutil.copy(odd / "fraction.tif", folder / "ant")
    assert scores_of(run, folder, tmp_path / "out")["images"] == 11


# -- both ------------------------------------------------------------------------------------------------------------


@each(
    ("command", "words"),
    {
        "classes of a classifier": (evaluate, ["{classifier}", "--data", "x", "--scales", "1,2"]),
        "windows of a detector": (evaluate, ["{detector}", "--data", "x", "--window", "64"]),
        "columns of a classifier": (evaluate, ["{classifier}", "--data", "x", "--image-column", "picture"]),
        "overlay of a classifier": (predict, ["{classifier}", "x.png", "--overlay"]),
        "entropy of a detector": (predict, ["{detector}", "x.png", "--entropy"]),
        "threshold of a segmenter": (predict, ["{segformer}", "x.png", "--threshold", "0.3"]),
        "masks of a check": (check, ["x", "--task", "detection", "--mask-column", "mask"]),
    },
)
def test_an_option_without_effect_is_refused(command, words, classifier, detector, segformer):
    models = {"classifier": classifier, "detector": detector, "segformer": segformer}
    with pytest.raises(SystemExit, match="has no effect"):
        command.main([word.format(**models) for word in words])


@each("kind", {"SEGMENTER": SEGMENTER, "CLASSIFIER": CLASSIFIER, "DETECTOR": DETECTOR})
def test_a_model_of_another_kind_is_refused_in_one_sentence(kind, tmp_path):
    DetrConfig(architectures=["DetrForObjectDetection"]).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=f"DetrForObjectDetection, which this command cannot use for {kind.purpose}"
    ):
        open_model(str(tmp_path), kind)


def test_a_classifier_of_gray_images_is_refused():
    model = SimpleNamespace(config=ViTConfig(num_channels=1))
    with pytest.raises(ValueError, match="gray takes images with 1 channel, but"):
        rgb_reading(RgbOptions(), "gray", model)


@each("task", {"classification": ClassificationTask, "detection": DetectionTask})
def test_the_next_commands_are_commands(task):
    programs = {program.PROGRAM: program for program in (evaluate, predict)}
    for command in task.next_commands:
        program, *words = shlex.split(command.format(run="runs/one", val="data/val"))
        assert programs.pop(program).new_parser().arguments(words).model == "runs/one"
    assert not programs


# -- check -----------------------------------------------------------------------------------------------------------


def report(capsys, *words, code=0):
    assert check.main([*map(str, words), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_a_check_counts_the_images_of_each_class_split_by_split(tmp_path, capsys):
    write_class_folders(tmp_path / "train", ["ant", "bee"], count=3)
    write_class_folders(tmp_path / "val", ["ant", "bee"])
    shutil.rmtree(tmp_path / "val" / "bee")
    (tmp_path / "val" / "bee").mkdir()
    train_report, val_report = report(capsys, tmp_path, "--task", "classification")
    assert [row["images"] for row in train_report["classes"]] == [3, 3]
    assert (train_report["problems"], train_report["warnings"]) == ([], [])
    assert train_report["sizes"] == [{"height": 24, "width": 20, "images": 6}]
    assert val_report["warnings"] == ["classes without images: bee."]


def test_a_class_may_be_named_like_a_split(tmp_path, capsys):
    for source, target in (("ant", "bus"), ("bee", "train")):
        write_class_folders(tmp_path / "new", [source])
        (tmp_path / "new" / source).rename(tmp_path / target)
        (tmp_path / "new").rmdir()
    (one,) = report(capsys, tmp_path, "--task", "classification")
    assert [row["name"] for row in one["classes"]] == ["bus", "train"]


def test_a_damaged_image_and_a_row_without_a_label_are_problems_with_their_names(tmp_path, capsys):
    datasets = pytest.importorskip("datasets")
    pictures = [Image.new("RGB", (8, 8))] * 4
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = datasets.Dataset.from_dict({"image": pictures, "label": [0, -1, 1, 1]}, features)
    datasets.DatasetDict(one=rows, two=rows.select([0, 2])).save_to_disk(tmp_path / "rows")
    capsys.readouterr()
    one, two = report(capsys, tmp_path / "rows", "--task", "classification", code=1)
    assert [row["images"] for row in one["classes"]] == [1, 2]
    assert "rows[1] has no image or no label" in one["problems"][0]
    assert two["problems"] == []
    folder = write_class_folders(tmp_path / "folder", ["ant", "bee"])
    (folder / "bee" / "0.png").write_text("no image")
    (two,) = report(capsys, folder, "--task", "classification", code=1)
    assert "bee/0.png" in two["problems"][0]
    assert two["checked"] == 4
    (sampled,) = report(capsys, folder, "--task", "classification", "--sample", "1")
    assert (sampled["checked"], [row["images"] for row in sampled["classes"]]) == (1, [2, 2])


def test_images_without_a_known_range_or_with_lost_gray_levels_are_found(tmp_path, shapes, capsys):
    folder = write_class_folders(tmp_path / "folder", ["ant", "bee"])
    noise = np.random.default_rng(0)
    for name in ("ant", "bee"):
        for index in range(2):  # of a 12-bit microscope
            pixels = noise.integers(0, 4096, (24, 20), dtype=np.uint16)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    (one,) = report(capsys, folder, "--task", "classification")
    assert "4 of 4 images have uint16 values" in one["warnings"][0]
    assert "Pass --value-range 0 4095" in one["warnings"][0]
    (one,) = report(capsys, folder, "--task", "classification", "--value-range", "0", "4095")
    assert one["warnings"] == []
    objects = shutil.copytree(shapes, tmp_path / "shapes")
    Image.fromarray(noise.random((64, 64), dtype=np.float32)).save(tmp_path / "one.tif")
    (tmp_path / "one.tif").rename(objects / "images" / "image0.png")
    (one,) = report(capsys, objects, "--task", "detection", code=1)
    assert "Pass --value-range 0 1" in one["problems"][0]
    report(capsys, objects, "--task", "detection", "--value-range", "0", "1")


def test_a_check_counts_objects_and_what_is_not_learned(shapes, tmp_path, capsys):
    folder = shutil.copytree(shapes, tmp_path / "shapes")
    content = json.loads((folder / "annotations.json").read_text())
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"] = content["annotations"][:2]
    (folder / "annotations.json").write_text(json.dumps(content))
    (one,) = report(capsys, folder, "--task", "detection")
    assert [(row["name"], row["objects"]) for row in one["classes"]] == [("square", 0), ("disk", 1)]
    assert one["warnings"] == [
        "1 of 2 images have no object to learn from; training leaves them out.",
        "1 of 2 objects are not learned: they are crowds, or have no mask or a box of less than a pixel.",
        "classes without objects: square.",
    ]
    Image.new("RGB", (9, 9)).save(folder / "images" / "image1.png")
    (one,) = report(capsys, folder, "--task", "detection", code=1)
    assert "image1.png' is 9x9 (width x height), but its annotations are for 64x64" in one["problems"][0]


# -- segmenters of transformers --------------------------------------------------------------------------------------


def test_a_segmenter_with_transformers_own_processor_predicts_any_image(segformer, odd, tmp_path):
    options = ["--output", str(tmp_path / "out"), "--overlay", "--confidence", "--value-range", "0", "1"]
    assert predict.main([str(segformer), str(odd), *options]) == 1
    names = {"=gray.png", "deep/wide.png", "array.png", "turned.png", "upright.png"}
    for place in ("", "overlays", "confidence"):
        raster = "fraction.png" if place == "overlays" else "fraction.tif"
        assert all((tmp_path / "out" / place / name).is_file() for name in (*names, raster))
    model, processor, _ = open_model(str(segformer))
    with torch.no_grad():
        logits = model(**processor(read_image(odd / "=gray.png"), return_tensors="pt")).logits
    ids = torch.nn.functional.interpolate(logits, size=(30, 50), mode="bilinear")[0].argmax(0).numpy()
    assert len(np.unique(ids)) > 1
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "=gray.png")), ids)
    upright, turned = (
        np.asarray(Image.open(tmp_path / "out" / name)) for name in ("upright.png", "turned.png")
    )
    assert np.array_equal(turned, np.rot90(upright))


def test_do_reduce_labels_of_a_processor_says_what_masks_mean_where_nothing_else_does(tmp_path):
    write_pairs(tmp_path / "val", 1)
    (file,) = (tmp_path / "val" / "masks").iterdir()
    mask = np.asarray(Image.open(file))
    Image.fromarray(np.where(mask == 255, 0, mask + 1).astype(np.uint8)).save(file)
    model = SimpleNamespace(config=SegformerConfig(**labels(["wall", "grass", "sky"])))
    options = EvaluateArguments(model="none", data=str(tmp_path / "val"))
    reading = reading_for(options, "none", model, SegformerImageProcessor(do_reduce_labels=True))
    assert np.array_equal(open_data(options.data, **reading)[0]["mask"], mask)


# -- journeys --------------------------------------------------------------------------------------------------------


PLACES = "--train data/train --val data/val --output run --workers 0 --tracker none --cpu"


def follow(lines, images):
    """Runs the next commands that a training printed."""
    programs = {program.PROGRAM: program for program in (evaluate, predict)}
    commands = [line.removeprefix("next: ") for line in lines.splitlines() if line.startswith("next: ")]
    assert len(commands) == 2
    for command in commands:
        program, *words = shlex.split(command.replace("photo.jpg", str(images)))
        assert programs[program].main(words) == 0


@pytest.mark.slow
def test_a_classifier_is_checked_trained_scored_and_used_by_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        write_class_folders(tmp_path / "data" / split, ["ant", "bee", "cat"], count=4)
    assert check.main(["data", "--task", "classification"]) == 0
    size = "--preset nano --set depths=[1,1] --set num_heads=[1,2] --set embed_dim=8 --crop-size 16"
    speed = "--steps 60 --learning-rate 3e-3 --batch-size 6 --no-augmentation --label-smoothing 0"
    assert train(f"--task classification {PLACES} {size} {speed}".split()) == 0
    follow(capsys.readouterr().out, "data/val")
    rows = list(csv.DictReader((tmp_path / "predictions" / "predictions.csv").open()))
    right = np.mean([row["class_1"] in row["image"] for row in rows])
    scores = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert scores["top_1"] == right > 0.8


@pytest.mark.slow
def test_a_detector_is_checked_trained_scored_and_used_by_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        write_shapes(tmp_path / "data" / split, 2)
    assert check.main(["data", "--task", "detection"]) == 0
    backbone = {"model_type": "resnet", "depths": [1] * 4, "hidden_sizes": [8] * 4, "embedding_size": 8}
    size = ["--set", f"backbone_config={backbone}", "--set", f"detector_options={FEW}"]
    speed = "--steps 6 --learning-rate 1e-3 --batch-size 2 --shorter-side 64 --no-augmentation"
    assert train([*f"--task detection {PLACES} {speed}".split(), *size]) == 0
    follow(capsys.readouterr().out, "data/val/images")
    scores = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    best = json.loads((tmp_path / "run" / "run.json").read_text())["best"]
    assert scores["box_ap"] == pytest.approx(best["box_ap"])
    content = json.loads((tmp_path / "objects" / "annotations.json").read_text())
    assert [row["file_name"] for row in content["images"]] == ["image0.png", "image1.png"]
    assert len(list((tmp_path / "objects" / "overlays").iterdir())) == 2
