"""Prediction in several processes, launched as a user launches them."""

import filecmp
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from coco_shapes import write_shapes
from launched import finished, launch
from PIL import Image
from task_models import save_classifier, save_detector, write_class_folders
from tiny import tiny_glam_swin

from contextseg import SegmentationImageProcessor
from contextseg.processing.data import streamed_pairs
from contextseg.processing.rasters.segmentation import RasterSegmentation
from contextseg.scripts.evaluate import main as evaluate
from contextseg.scripts.predict import main as predict
from contextseg.training.records import read_json

UNLUCKY = str(Path(__file__).resolve().parents[1] / "predict_on_cpus.py")
SMALL = str(Path(__file__).resolve().parents[1] / "evaluate_on_cpus.py")
PREDICT = ["-m", "contextseg.scripts.predict"]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture
def animals(tmp_path):
    return write_class_folders(tmp_path / "data", ["ant", "bee"], count=4)


def save_segmenter(folder):
    torch.manual_seed(0)
    tiny_glam_swin().save_pretrained(folder)
    SegmentationImageProcessor().save_pretrained(folder)
    return folder


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def assert_same_files(one, two):
    assert files(one) == files(two)
    assert filecmp.cmpfiles(one, two, files(one), shallow=False)[1:] == ([], [])


@pytest.mark.processes
@pytest.mark.parametrize("save", [save_segmenter, save_detector])
def test_two_processes_write_the_files_of_one_and_report_once(save, tmp_path):
    images, model = write_shapes(tmp_path / "data", 5) / "images", save(tmp_path / "model")
    (images / "image2.png").write_text("no image")
    command = [str(model), str(images), "--overlay", "--cpu", "--output"]
    assert predict([*command, str(tmp_path / "one")]) == 1
    process = launch("ddp.yaml", [*PREDICT, *command, str(tmp_path / "two")])
    output, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert output.count("4 of 5 images") == output.count("image2.png' is empty, damaged") == 1, output[-4000:]
    assert_same_files(tmp_path / "one", tmp_path / "two")


@pytest.mark.processes
def test_two_processes_divide_a_large_raster_and_go_on_after_a_stop(tmp_path):
    """The only image has 11 rows of windows; a third of them are done before."""
    pytest.importorskip("rasterio")
    model = save_segmenter(tmp_path / "model")
    pixels = np.random.default_rng(0).integers(0, 255, (192, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "scene.tif")
    options = ["--window", "32", "--confidence", "--cpu", "--output"]
    command = [str(model), str(tmp_path / "scene.tif"), *options]
    assert predict([*command, str(tmp_path / "one")]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RasterSegmentation, "finish", lambda _: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(SystemExit):
            predict([*command, str(tmp_path / "two")])
    parts = sorted((tmp_path / "two" / "scene.parts").glob("0*"))
    assert len(parts) == 22  # masks and maps
    for part in parts[6:]:
        part.unlink()
    finished(launch("ddp.yaml", [*PREDICT, *command, str(tmp_path / "two")]), 300)
    assert_same_files(tmp_path / "one", tmp_path / "two")


@pytest.mark.processes
def test_two_processes_divide_a_large_raster_in_evaluation_and_go_on_after_a_stop(tmp_path, monkeypatch):
    """The raster has 11 rows of windows, 3 of which are done before; its classes touch at every fourth row."""
    raster_writing = pytest.importorskip("raster_writing")
    model, data = save_segmenter(tmp_path / "model"), tmp_path / "data"
    for kind in ("images", "masks"):
        (data / kind).mkdir(parents=True)
    (data / "classes.json").write_text(json.dumps({"classes": ["road", "sky", "tree"]}))
    raster_writing.write_raster(data / "images" / "scene.tif", raster_writing.noise(3, 192, 40))
    labels = np.repeat(raster_writing.noise(48, 40) % 3, 4, axis=0)
    raster_writing.write_raster(data / "masks" / "scene.tif", labels)
    command = [str(model), "--data", str(data), "--window", "32", "--workers", "0", "--cpu", "--output"]
    monkeypatch.setattr(streamed_pairs, "WHOLE_PIXELS", 0)
    assert evaluate([*command, str(tmp_path / "one")]) == 0
    write_band, written = RasterSegmentation.write_band, []

    def stop_at_the_fourth(self, band, *arguments):
        written.append(band)
        if len(written) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return write_band(self, band, *arguments)

    monkeypatch.setattr(RasterSegmentation, "write_band", stop_at_the_fourth)
    with pytest.raises(SystemExit):
        evaluate([*command, str(tmp_path / "two")])
    assert len(list((tmp_path / "two").glob("evaluation-*.parts/000000.parts/*.mask"))) == 3
    finished(launch("ddp.yaml", [SMALL, *command, str(tmp_path / "two")]), 300)
    one, two = (read_json(tmp_path / name / "evaluation.json") for name in ("one", "two"))
    assert {name for name in one if one[name] != two[name]} <= {"seconds"}
    assert not list((tmp_path / "two").glob("*.parts"))


@pytest.mark.processes
def test_what_every_process_meets_is_said_once(tmp_path):
    command = [str(tmp_path / "absent"), "photo.png", "--output", str(tmp_path / "out"), "--cpu"]
    process = launch("ddp.yaml", [*PREDICT, *command])
    output, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert output.count("contextseg-predict: ") == 1, output[-4000:]


@pytest.mark.processes
def test_after_the_death_of_a_process_the_others_stop_and_the_rest_can_be_done(classifier, animals, tmp_path):
    command = [str(classifier), str(animals), "--cpu", "--output"]
    assert predict([*command, str(tmp_path / "one")]) == 0
    changes = {"DIE": "1", "REACHED": str(tmp_path / "reached")}
    process = launch("ddp.yaml", [UNLUCKY, *command, str(tmp_path / "two")], **changes)
    output, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "--skip-existing for the others" in output, output[-4000:]
    assert files(tmp_path / "two") == ["predictions.part-0.csv"]
    assert predict([*command, str(tmp_path / "two"), "--skip-existing"]) == 0
    assert_same_files(tmp_path / "one", tmp_path / "two")


@pytest.mark.processes
def test_an_interruption_ends_processes_that_wait_and_keeps_what_they_did(classifier, animals, tmp_path):
    command = [UNLUCKY, str(classifier), str(animals), "--cpu", "--output", str(tmp_path / "two")]
    process = launch("ddp.yaml", command, WAIT="1", REACHED=f"{tmp_path}/reached")
    deadline = time.monotonic() + 240
    while len(list(tmp_path.glob("reached?"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    try:
        output, _ = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        raise
    assert process.returncode != 0
    assert "process 0 of 2: " in output, output[-4000:]
    assert "process 1 of 2: 1 of 4 images are classified" in output, output[-4000:]
    assert files(tmp_path / "two") == ["predictions.part-0.csv", "predictions.part-1.csv"]
