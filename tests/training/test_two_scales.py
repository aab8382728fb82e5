"""Models with two scales are trained on crop pairs, of pictures and of rasters alike."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_relay
from tiny_runs import write_data
from transformers import AutoModelForSemanticSegmentation

from contextseg.scripts import finetune, train

pytestmark = pytest.mark.slow
RELAY = ["--model", "relay", "--preset", "nano", "--set", "crop_size=32", "--set", "depths=[1,1,1,1]"]
RELAY += ["--set", "num_heads=[1,1,1,1]", "--set", "embed_dim=8"]
STEPS = ["--batch-size", "2", "--steps", "2", "--eval-interval", "2", "--tracker", "none", "--cpu"]


def as_geotiff(path):
    """Replaces a picture by a raster of the same pixels."""
    rasterio = pytest.importorskip("rasterio")
    pixels = np.atleast_3d(np.asarray(Image.open(path)))
    height, width, bands = pixels.shape
    profile = {"driver": "GTiff", "count": bands, "dtype": "uint8", "height": height, "width": width}
    place = {"crs": "EPSG:32632", "transform": rasterio.transform.from_origin(5e5, 5e6, 1, 1)}
    with rasterio.open(path.with_suffix(".tif"), "w", **profile, **place) as file:
        file.write(np.moveaxis(pixels, -1, 0))
    path.unlink()


def losses(data, output, workers):
    options = ["--train", f"{data}/train", "--val", f"{data}/val", "--output", str(output), *RELAY, *STEPS]
    assert train.main([*options, "--rotation", "45", "--workers", workers]) == 0
    entries = map(json.loads, (Path(output) / "log.jsonl").read_text().splitlines())
    return [entry["loss"] for entry in entries if "loss" in entry]


def test_relay_tokens_learn_the_same_from_pictures_and_from_rasters_with_workers(tmp_path):
    pictures, rasters = (write_data(tmp_path / name) for name in ("pictures", "rasters"))
    for path in sorted(rasters.rglob("*.png")):
        as_geotiff(path)
    expected = losses(pictures, tmp_path / "one", "0")
    assert len(expected) == 2
    assert losses(rasters, tmp_path / "two", "2") == expected


def test_trainer_fine_tunes_relay_tokens_and_scores_whole_images(tmp_path):
    data = write_data(tmp_path / "data")
    tiny_relay(crop_size=32).save_pretrained(tmp_path / "start")
    options = ["--init-from", str(tmp_path / "start"), "--output", str(tmp_path / "run"), "--max_steps", "1"]
    options += ["--train", f"{data}/train", "--val", f"{data}/val", "--per_device_train_batch_size", "2"]
    assert finetune.main([*options, "--use_cpu", "--report_to", "none"]) == 0
    assert json.loads((tmp_path / "run/evaluation.json").read_text())["images"] == 2
    assert AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "run").config.crop_size == 32
