import csv
import json
import math
import os
import re
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from tiny_runs import CLASSES, run_options, write_data, write_pairs

from contextseg.processing.data import streamed_pairs
from contextseg.processing.data.datasets import SegmentationFolder
from contextseg.processing.inference import Inference
from contextseg.scripts.evaluate import main
from contextseg.scripts.train import main as train
from contextseg.training.class_matching import check_classes
from contextseg.training.models import open_model


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "streets"
    train([*run_options(data, output), "--steps", "20", "--eval-interval", "20", "--learning-rate", "1e-2"])
    return output


def evaluated(model, data, output, *options):
    assert main([str(model), "--data", str(data), "--output", str(output), "--workers", "0", *options]) == 0
    return json.loads((output / "evaluation.json").read_text())


def test_the_scores_are_those_of_a_plain_loop_over_the_images(run, data, tmp_path):
    model, processor, _ = open_model(str(run))
    hits, labeled, predicted = np.zeros((3, 3))
    for sample in SegmentationFolder(data / "val"):
        with torch.no_grad():
            logits = model(**processor(sample["image"], return_tensors="pt")).logits
        size = sample["mask"].shape
        ids = torch.nn.functional.interpolate(logits, size=size, mode="bilinear")[0].argmax(0).numpy()
        counted = sample["mask"] != 255
        for label in range(3):
            is_label, is_predicted = (sample["mask"] == label) & counted, (ids == label) & counted
            hits[label] += (is_label & is_predicted).sum()
            labeled[label] += is_label.sum()
            predicted[label] += is_predicted.sum()
    scores = evaluated(run, data / "val", tmp_path)
    assert [row["iou"] for row in scores["per_class"]] == pytest.approx(
        list(hits / (labeled + predicted - hits))
    )
    assert [row["support"] for row in scores["per_class"]] == list(labeled)


def test_training_reports_the_same_score_as_evaluating_its_best(run, data, tmp_path):
    record = json.loads((run / "run.json").read_text())
    assert evaluated(run, data / "val", tmp_path)["mean_iou"] == pytest.approx(record["best"]["mean_iou"])


def test_a_training_that_resizes_and_slides_windows_scores_as_the_command_that_it_proposes(
    data, tmp_path, capsys
):
    options = [
        "--base-size",
        "40x16",
        "--window",
        "8x12",
        "--overlap",
        "0.25",
        "--blend",
        "constant",
    ]
    assert train([*run_options(data, tmp_path / "run"), *options]) == 0
    command = re.search(r"contextseg-evaluate (\S+) --data (\S+) (.+)", capsys.readouterr().out)
    assert open_model(command[1])[1].size == {"shortest_edge": 16, "longest_edge": 40}
    scores = evaluated(command[1], command[2], tmp_path, *command[3].split())
    best = json.loads((tmp_path / "run/run.json").read_text())["best"]
    assert scores["mean_iou"] == best["mean_iou"]
    assert scores["protocol"].startswith("windows of 8x12 pixels, overlap 0.25, constant weights")
    assert sum(row["support"] for row in scores["per_class"]) == 2 * 20 * 35  # at the masks' own size


def test_scales_windows_and_mirrors_change_the_prediction_and_are_recorded(run, data, tmp_path):
    options = ["--scales", "0.5,1,1.5", "--window", "16", "--flip"]
    plain, augmented = (evaluated(run, data / "val", tmp_path, *given) for given in ([], options))
    assert plain["protocol"] == "whole images, one image at a time"
    assert "scales 0.5, 1, 1.5, averaged with the mirrored image" in augmented["protocol"]
    assert plain["boundary_iou"] != augmented["boundary_iou"]


def test_the_confusion_matrix_has_the_supports_and_hits_of_the_table(run, data, tmp_path):
    scores = evaluated(run, data / "val", tmp_path)
    header, *rows = csv.reader((tmp_path / "confusion.csv").open())
    assert header[1:] == [row[0] for row in rows] == CLASSES
    counts = np.array([row[1:] for row in rows], dtype=int)
    assert list(counts.sum(1)) == [row["support"] for row in scores["per_class"]]
    dice = 2 * counts.diagonal() / (counts.sum(0) + counts.sum(1))
    assert [row["dice"] for row in scores["per_class"]] == pytest.approx(list(dice))
    assert Image.open(tmp_path / "confusion.png").mode in ("RGB", "RGBA")


def test_options_without_a_meaning_are_explained(run, data, capsys):
    for option, message in {
        "--scales=1,big": "Write them as 0.75,1,1.25",
        "--window=8x8x8": "or HEIGHTxWIDTH",
        "--overlap=2": "must be a number of at least 0 and below 1",
    }.items():
        with pytest.raises(SystemExit) as stopped:
            main([str(run), "--data", f"{data}/val", *option.split("=")])
        assert message in f"{stopped.value}{capsys.readouterr().err}"


def test_markdown_and_csv_hold_a_line_for_each_class(run, data, tmp_path):
    scores = evaluated(run, data / "val", tmp_path)
    text = (tmp_path / "evaluation.md").read_text()
    assert all(f"| {name}" in text for name in CLASSES)
    rows = list(csv.DictReader((tmp_path / "evaluation.csv").open()))
    assert [float(row["boundary_iou"]) for row in rows] == [
        row["boundary_iou"] for row in scores["per_class"]
    ]


@pytest.fixture
def five(data, tmp_path):
    """Five pairs for evaluation."""
    write_pairs(tmp_path / "five", 5)
    (tmp_path / "five/classes.json").write_text((data / "classes.json").read_text())
    return tmp_path / "five"


def test_images_that_cannot_be_scored_are_named_and_the_others_are_scored(run, five, tmp_path, capsys):
    (five / "images/scene0.png").write_bytes(b"no image")
    Image.new("L", (9, 9)).save(five / "masks/scene1.png")
    Image.new("L", (30, 24), 77).save(five / "masks/scene2.png")
    options = [str(run), "--data", str(five), "--workers", "0"]
    assert main([*options, "--output", str(tmp_path / "all")]) == 1
    shown = capsys.readouterr().err
    assert all(f"scene{index}" in shown for index in (0, 1, 2))
    for index in (0, 1, 2):
        for kind in ("images", "masks"):
            (five / kind / f"scene{index}.png").unlink()
    whole = json.loads((tmp_path / "all/evaluation.json").read_text())
    rest = evaluated(run, five, tmp_path / "rest")
    assert (whole["images"], len(whole["not_scored"]), rest["images"]) == (2, 3, 2)
    assert whole["per_class"] == rest["per_class"]


def test_an_error_of_the_model_for_one_image_is_named_too(run, five, tmp_path, capsys, monkeypatch):
    images = iter(range(5))
    plain = Inference.mask

    def mask(self, model, inputs, size):
        if next(images) == 3:
            raise RuntimeError("CUDA out of memory")
        return plain(self, model, inputs, size)

    monkeypatch.setattr(Inference, "mask", mask)
    assert main([str(run), "--data", str(five), "--workers", "0", "--output", str(tmp_path)]) == 1
    assert "'scene3': RuntimeError: CUDA out of memory" in capsys.readouterr().err


def test_where_no_image_can_be_scored_nothing_is_written(run, five, tmp_path):
    for path in (five / "images").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(SystemExit, match=r"none of the 5 images can be scored.*scene0\.png"):
        main([str(run), "--data", str(five), "--workers", "0", "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("own_sigterm")
def test_an_interrupted_evaluation_says_how_far_it_came(run, five, tmp_path, capsys, monkeypatch):
    def mask(*_):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Inference, "mask", mask)
    with pytest.raises(SystemExit) as stopped:
        main([str(run), "--data", str(five), "--workers", "0", "--output", str(tmp_path / "out")])
    assert stopped.value.code == 130
    assert "of 5 images were scored; no results were written" in capsys.readouterr().err


@pytest.mark.usefixtures("own_sigterm")
def test_a_stopped_evaluation_goes_on_unless_something_changes(run, five, tmp_path, caplog, monkeypatch):
    """The third of five images gets a signal; another option starts anew, and nothing is left at the end."""
    command = [str(run), "--data", str(five), "--workers", "0", "--output"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    predict, sizes = Inference.mask, []

    def mask(*arguments):
        sizes.append(arguments[-1])
        if len(sizes) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return predict(*arguments)

    monkeypatch.setattr(Inference, "mask", mask)
    with pytest.raises(SystemExit, match="130"):
        main([*command, str(tmp_path / "out")])
    assert main([*command, str(tmp_path / "out"), "--flip"]) == 0
    assert len(sizes) == 3 + 5
    assert main([*command, str(tmp_path / "out")]) == 0
    assert len(sizes) == 3 + 5 + 3
    assert "2 of 5 images were scored before" in caplog.text
    whole, out = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("whole", "out"))
    assert whole["per_class"] == out["per_class"]
    assert not list((tmp_path / "out").glob("*.parts"))


def test_the_results_go_to_the_run_by_default(run, data):
    assert main([str(run), "--data", f"{data}/val", "--workers", "0"]) == 0
    assert (run / "evaluation.json").is_file()


def test_a_mirrored_data_set_scores_the_same_with_flip(run, data, tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / "mirrored" / kind).mkdir(parents=True)
        for path in (data / "val" / kind).iterdir():
            ImageOps.mirror(Image.open(path)).save(tmp_path / "mirrored" / kind / path.name)
    (tmp_path / "mirrored" / "classes.json").write_text((data / "classes.json").read_text())
    one, other = (
        evaluated(run, folder, tmp_path / folder.name, "--flip")
        for folder in (data / "val", tmp_path / "mirrored")
    )
    assert one["mean_iou"] == pytest.approx(other["mean_iou"], abs=0.02)
    assert "mirrored" in one["protocol"]


def test_a_class_that_never_occurs_is_null_and_not_in_the_mean(run, data, tmp_path):
    write_pairs(tmp_path / "val", 1)
    (tmp_path / "classes.json").write_text((data / "classes.json").read_text())
    path = tmp_path / "val" / "masks" / "scene0.png"
    Image.fromarray(np.full((24, 30), 1, dtype=np.uint8)).save(path)
    rows = evaluated(run, tmp_path / "val", tmp_path)["per_class"]
    assert [row["accuracy"] is None for row in rows] == [True, False, True]
    assert not math.isnan(rows[1]["iou"])


def test_data_with_other_classes_is_refused(run, tmp_path):
    other = write_data(tmp_path / "data", classes=[*CLASSES, "water"])
    with pytest.raises(
        SystemExit,
        match=r"the model has 3 classes and the data 4\..*only in the data: water\..*contextseg-train --init-from",
    ):
        main([str(run), "--data", f"{other}/val"])


def model_with(names):
    config = SimpleNamespace(id2label=dict(enumerate(names)), num_labels=len(names))
    return SimpleNamespace(config=config)


def test_classes_in_another_order_are_matched_by_name(tmp_path):
    data = SegmentationFolder(write_data(tmp_path) / "val")
    before, names = data[0]["mask"], [CLASSES[index] for index in (1, 2, 0)]
    assert check_classes(model_with(names), data) == data.classes == names
    np.testing.assert_array_equal(data[0]["mask"], np.array([2, 0, 1, *range(3, 256)])[before])


def test_names_that_differ_in_their_spelling_are_the_same_classes(tmp_path, caplog):
    data = SegmentationFolder(
        write_data(tmp_path, classes=["Stra\u00dfe", "traffic light", "cafe\u0301"]) / "val"
    )
    before, names = data[0]["mask"], ["caf\u00e9", "Stra\u00dfe", "Traffic_Light "]
    assert check_classes(model_with(names), data) == names
    np.testing.assert_array_equal(data[0]["mask"], np.array([1, 2, 0, *range(3, 256)])[before])
    assert "names differ" not in caplog.text


@pytest.mark.parametrize(
    "names",
    [["grass", "wall", "water"], ["wall", "grass"], [*CLASSES, "water"]],
    ids=["crossed", "fewer", "more"],
)
def test_classes_that_cannot_be_matched_are_refused(data, names):
    with pytest.raises(ValueError, match="Only in the model: .*; only in the data: "):
        check_classes(model_with(names), SegmentationFolder(data / "val"))


def test_other_names_at_the_same_positions_are_matched_with_a_warning(data, caplog):
    val = SegmentationFolder(data / "val")
    assert check_classes(model_with(["wall", "lawn", "sky"]), val)[1] == "lawn"
    assert "class 'lawn' of the model is 'grass' in the data (1 names differ)" in caplog.text


def test_a_folder_without_a_model_is_refused(data):
    with pytest.raises(SystemExit, match="has no config.json, no best/ and no last/"):
        main([str(data), "--data", f"{data}/val"])


def test_a_large_raster_is_scored_by_windows_as_the_same_picture(run, tmp_path, monkeypatch):
    """Pixels without data do not count."""
    rasterio = pytest.importorskip("rasterio")
    write_pairs(tmp_path / "pictures", 1, size=(150, 70))
    (tmp_path / "classes.json").write_text(json.dumps({"classes": CLASSES, "ignore_index": 255}))
    pixels, mask = (
        np.array(Image.open(tmp_path / "pictures" / kind / "scene0.png")) for kind in ("images", "masks")
    )
    pixels[60:80, 10:30] = 250
    Image.fromarray(pixels).save(tmp_path / "pictures" / "images" / "scene0.png")
    profile = {"driver": "GTiff", "dtype": "uint8", "height": 150, "width": 70, "crs": "EPSG:32633"}
    profile["transform"] = rasterio.transform.from_origin(400000, 5800000, 1, 1)

    def write(folder, nodata=None):
        for kind, bands in (("images", pixels.transpose(2, 0, 1)), ("masks", mask[None])):
            (tmp_path / folder / kind).mkdir(parents=True)
            options = {**profile, "nodata": nodata if kind == "images" else None, "count": len(bands)}
            with rasterio.open(tmp_path / folder / kind / "scene0.tif", "w", **options) as file:
                file.write(bands)

    write("rasters")
    write("gaps", nodata=250)
    monkeypatch.setattr(streamed_pairs, "WHOLE_PIXELS", 0)
    scores = {}
    for folder in ("pictures", "rasters", "gaps"):
        options = ["--window", "32", "--boundary-band", "3", "--workers", "0", "--output", str(tmp_path)]
        assert main([str(run), "--data", str(tmp_path / folder), *options]) == 0
        scores[folder] = json.loads((tmp_path / "evaluation.json").read_text())
    assert scores["rasters"]["boundaries"] == "within 3 pixels of class boundaries"
    assert scores["rasters"]["per_class"] == scores["pictures"]["per_class"]
    supports = [sum(row["support"] for row in scores[name]["per_class"]) for name in ("rasters", "gaps")]
    assert supports[0] - supports[1] == 20 * 20
