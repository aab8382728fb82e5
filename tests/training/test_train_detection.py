import os
import random
import re
import signal

import numpy as np
import pytest
import torch
from cases import each
from coco_shapes import CATEGORIES, FEW, write_shapes
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForObjectDetection, pipeline

from contextseg import MaformerConfig, MaformerForImageClassification, MaskRcnnConfig
from contextseg.scripts.train import main
from contextseg.training import loop
from contextseg.training.recipes import read_recipe, recipe_names
from contextseg.training.records import read_json, read_log

BACKBONE = {"hidden_sizes": [8, 16, 16], "depths": [1, 1, 1], "num_heads": [2, 2, 2], "gld_grid_size": 4}
TINY = [
    *("--task", "detection", "--set", f"detector_options={FEW}", "--shorter-side", "48-64", "--longer-side", "99"),
    *("--batch-size", "2", "--learning-rate", "1e-3", "--workers", "0", "--tracker", "none", "--cpu"),
]  # fmt: skip
ON_MAFORMER = ["--set", f"backbone_config={ {'model_type': 'maformer', **BACKBONE} }"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    write_shapes(folder / "train", 4)
    write_shapes(folder / "val", 2, size=(60, 70), seed=10)
    return folder


def options(data, output):
    return ["--train", f"{data}/train", "--val", f"{data}/val", "--output", str(output), *TINY, *ON_MAFORMER]


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "shapes"
    assert main([*options(data, output), "--steps", "2", "--eval-interval", "1"]) == 0
    return output


def test_best_and_last_open_by_the_auto_classes_and_the_pipeline(run):
    for checkpoint in (run / "best", run / "last"):
        model = AutoModelForObjectDetection.from_pretrained(checkpoint)
        assert list(model.config.id2label.values()) == list(CATEGORIES.values())
        processor = AutoImageProcessor.from_pretrained(checkpoint)
        assert processor(Image.new("RGB", (128, 128)), return_tensors="pt")["pixel_values"].shape[2:] == (
            64,
            64,
        )
    found = pipeline("object-detection", str(run / "best"), threshold=0.0)(Image.new("RGB", (60, 70)))
    assert {one["label"] for one in found} <= set(CATEGORIES.values())


def test_the_record_holds_box_and_mask_precision(run):
    record = read_json(run / "run.json")
    assert record["status"] == "finished"
    assert record["scores"]["images"] == 2
    assert [row["name"] for row in record["scores"]["per_class"]] == list(CATEGORIES.values())
    assert [row["support"] for row in record["scores"]["per_class"]] == [2, 2]
    entries = [entry for entry in read_log(run / "log.jsonl") if "box_ap" in entry]
    assert [entry["step"] for entry in entries] == [1, 2]
    assert all(0 <= entry["mask_ap"] <= 1 for entry in entries)


@pytest.mark.slow
@pytest.mark.usefixtures("own_sigterm")
def test_resume_after_sigterm_equals_the_uninterrupted_run_bit_for_bit(data, tmp_path, monkeypatch):
    changes = [
        "--batch-size",
        "1",
        "--accumulation",
        "2",
        "--steps",
        "3",
        "--set",
        "drop_path_rate=0.5",
        "--schedule",
        "step",
    ]
    changes += ["--milestones", "2", "--eval-interval", "9"]
    whole, parts, steps, step = tmp_path / "whole", tmp_path / "parts", [], loop.optimizer_step
    assert main([*options(data, whole), *changes]) == 0

    def stopping_step(*arguments):
        steps.append(None)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "optimizer_step", stopping_step)
        assert main([*options(data, parts), *changes]) == 128 + signal.SIGTERM
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    assert main(["--output", str(parts), "--resume"]) == 0
    one, other = (load_file(folder / "last" / "model.safetensors") for folder in (whole, parts))
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.slow
@pytest.mark.long
def test_it_learns_a_handful_of_shapes(tmp_path):
    """The shapes it was trained on, boxes and masks, in a minute; chance is 0."""
    write_shapes(tmp_path / "train", 4)
    main([
        *("--train", f"{tmp_path}/train", "--val", f"{tmp_path}/train", "--output", f"{tmp_path}/run", *TINY),
        *("--shorter-side", "64", "--preset", "nano", "--set", f"detector_options={FEW}", "--epochs", "40"),
        *("--schedule", "step", "--milestones", "30", "--eval-interval", "80", "--no-horizontal-flip", "--batch-size", "2"),
    ])  # fmt: skip
    scores = read_json(tmp_path / "run" / "run.json")["scores"]
    assert scores["box_ap_50"] > 0.9
    assert scores["mask_ap_50"] > 0.9


def test_a_classifier_of_ours_is_a_start(data, tmp_path, capsys):
    classifier = MaformerForImageClassification(MaformerConfig(**BACKBONE, num_labels=5))
    classifier.save_pretrained(tmp_path / "run" / "best")
    start = ["--init-from", str(tmp_path / "run"), "--set", "drop_path_rate=0.3", "--dry-run"]
    assert main(["--train", f"{data}/train", *TINY, *start]) == 0
    printed = capsys.readouterr().out
    assert "2 classes" in printed
    assert "4 images" in printed


def test_other_categories_to_validate_on_are_refused(data, tmp_path):
    other = write_shapes(tmp_path / "other", 1)
    path = other / "annotations.json"
    path.write_text(path.read_text().replace('"disk"', '"ball"'))
    with pytest.raises(SystemExit, match="has the categories square, disk, but .* has square, ball"):
        main([*options(data, tmp_path / "run"), "--val", str(other)])


@each(
    ("changes", "message"),
    [
        (
            ["--crop-size", "64"],
            "--crop-size is an option of segmentation, classification and masked_pretraining, but the task of this run is detection",
        ),
        (["--schedule", "step"], "--schedule step and --milestones must be given together"),
        (["--milestones", "3"], "--schedule step and --milestones must be given together"),
        (["--schedule", "step", "--milestones", "9"], r"\[9.0\] are not all within the length of the run, 4"),
        (["--schedule", "step", "--milestones", "x"], "--milestones x is not a number"),
        (["--model", "glam_swin"], "no model 'glam_swin' for object detection. Known: mask_rcnn."),
    ],
)
def test_wrong_options_are_explained(data, changes, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--train", f"{data}/train", *TINY, *ON_MAFORMER, "--epochs", "4", "--dry-run", *changes])
    assert re.search(message, f"{caught.value} {capsys.readouterr().err}")


DETECTION = [name for name in recipe_names() if name.endswith("_coco")]


def test_every_printed_row_of_maformer_and_its_baseline_has_its_recipe():
    printed = {
        "maformer_small": (47.0, 42.7, 52.6, 45.7),
        "maformer_base": (49.6, 44.6, 54.4, 46.8),
        "maformer_large": (50.7, 45.4, 54.7, 47.3),
        "cswin_tiny": (46.7, 42.2, 52.5, 45.3),
        "cswin_small": (47.9, 43.2, 53.7, 46.4),
        "cswin_base": (48.7, 43.9, 53.9, 46.4),
    }
    for encoder, scores in printed.items():
        papers = [
            read_recipe(f"{encoder}_{rest}_coco").paper for rest in ("mask_rcnn_1x", "cascade_mask_rcnn_3x")
        ]
        assert [paper[f"AP-{kind}"] for paper in papers for kind in ("box", "mask")] == list(scores)
    assert len(DETECTION) == 2 * len(printed)


@each("name", [*DETECTION])
def test_a_recipes_preset_has_its_settings(name):
    """They are settings too, because --init-from takes the place of the preset."""
    recipe = read_recipe(name)
    preset = MaskRcnnConfig.preset(recipe.options["preset"])
    rate = preset.backbone_config.drop_path_rate
    assert f"drop_path_rate={rate}" in recipe.options["set"]
    assert ("use_cascade=true" in recipe.options["set"]) == preset.use_cascade
