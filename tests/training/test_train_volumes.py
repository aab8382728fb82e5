"""Training on volumes by command, from an nnU-Net folder to masks on the grid of the files."""

import os
import re
import signal

import numpy as np
import pytest
import torch
from launched import finished, launch
from PIL import Image
from safetensors.torch import load_file
from tiny_volumes import SHAPE, STORED, volume_options, write_volumes
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from contextseg.processing.palettes import class_colors
from contextseg.processing.volumes import prepared_volumes
from contextseg.scripts.check import main as check
from contextseg.scripts.evaluate import main as evaluate
from contextseg.scripts.predict import main as predict
from contextseg.scripts.train import main as train
from contextseg.training import loop, volume_segmentation
from contextseg.training.records import read_json, read_log

nibabel = pytest.importorskip("nibabel")
pytest.importorskip("scipy")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_volumes(tmp_path_factory.mktemp("data") / "Dataset007_Boxes")


@pytest.fixture(scope="module")
def learned(data, tmp_path_factory):
    """A run that is long enough to learn, evaluated twice."""
    output = tmp_path_factory.mktemp("runs") / "learned"
    assert train(volume_options(data, output, "--steps", "120", "--eval-interval", "60")) == 0
    return output


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A short run that nothing interrupted."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    assert train(volume_options(data, output)) == 0
    return output


def assert_same_run(one, other):
    for checkpoint in ("best", "last"):
        ours, theirs = (load_file(run / checkpoint / "model.safetensors") for run in (one, other))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    logs = [
        [{**entry, "images_per_second": 0} for entry in read_log(run / "log.jsonl")] for run in (one, other)
    ]
    assert logs[0] == logs[1]
    scores = [read_json(run / "run.json")["scores"] for run in (one, other)]
    assert scores[0]["per_class"] == scores[1]["per_class"]


def test_a_folder_is_ready_to_train(data, capsys):
    assert check([str(data)]) == 0
    printed = capsys.readouterr().out
    assert "9 cases" in printed
    assert "ready to train" in printed


def test_training_learns(learned):
    """Before it, the Dice of both classes is below 0.1."""
    scores = read_json(learned / "run.json")["best"]
    assert scores["mean_dice"] > 0.5
    assert [row["truth_cases"] for row in scores["per_class"]] == [3, 3]
    assert [row["name"] for row in scores["per_region"]] == ["whole", "core"]


def test_the_history_has_every_step_and_every_evaluation(learned):
    log = read_log(learned / "log.jsonl")
    assert [entry["step"] for entry in log if "loss" in entry] == list(range(1, 121))
    assert [entry["step"] for entry in log if "mean_dice" in entry] == [60, 120]
    record = read_json(learned / "run.json")
    assert (record["status"], record["steps_done"]) == ("finished", 120)
    assert record["plan"]["crop_size"] == [int(side) for side in record["arguments"]["crop_size"].split("x")]


def test_checkpoints_open_by_the_auto_classes(learned):
    for checkpoint in ("best", "last"):
        model = AutoModelForSemanticSegmentation.from_pretrained(learned / checkpoint)
        processor = AutoImageProcessor.from_pretrained(learned / checkpoint)
        assert (model.config.num_channels, model.config.num_labels) == (2, 3)
        assert processor.regions.keys() == {"whole", "core"}
        assert model.config.semantic_loss_ignore_index == processor.ignore_index


def test_three_slices_are_shown_with_truth_and_prediction(learned):
    """A learned prediction looks like the truth beside it."""
    picture = np.asarray(Image.open(learned / "slices.png").convert("RGB"))
    truth, prediction = (picture[20:-40, left : left + 240] for left in (256, 504))
    core = class_colors(None, 3)[2]
    both = [(part == core).all(axis=-1) for part in (truth, prediction)]
    assert min(mask.sum() for mask in both) > 1000
    assert (both[0] & both[1]).sum() > 0.5 * both[0].sum()


def test_evaluation_has_the_scores_of_the_validation(data, learned, tmp_path):
    for source in (learned, learned / "best"):
        options = ["--data", f"{data}:val", "--output", str(tmp_path / source.name), "--cpu"]
        assert evaluate([str(source), *options]) == 0
        written = read_json(tmp_path / source.name / "evaluation.json")
        best = read_json(learned / "run.json")["best"]
        for rows in ("per_class", "per_region"):
            assert [row["dice"] for row in written[rows]] == [row["dice"] for row in best[rows]]
        assert written["mean_dice"] == best["mean_dice"]


def test_masks_have_the_grid_and_the_ids_of_the_files(data, learned, tmp_path):
    images = data / "imagesTr"
    assert predict([str(learned), str(images), "--output", str(tmp_path), "--cpu"]) == 0
    truth, found = [], []
    for path in sorted((data / "labelsTr").glob("held_out_*")):
        label, mask = nibabel.load(path), nibabel.load(tmp_path / path.name)
        assert mask.shape == SHAPE
        np.testing.assert_array_equal(
            mask.affine, nibabel.load(images / path.name.replace(".", "_0000.", 1)).affine
        )
        truth.append(np.asanyarray(label.dataobj))
        found.append(np.asanyarray(mask.dataobj))
    truth, found = np.stack(truth), np.stack(found)
    assert set(np.unique(found)) <= {0, STORED["edema"], STORED["core"]}
    counted = truth != STORED["ignore"]
    hits = counted & (truth == STORED["core"]) & (found == STORED["core"])
    assert hits.sum() > 0.5 * (counted & (truth == STORED["core"])).sum()


def stop_at(place, name, number, monkeypatch):
    """Sends this process a SIGTERM in the n-th call of a function."""
    calls, real = [], getattr(place, name)

    def stopping(*arguments, **options):
        calls.append(None)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments, **options)

    monkeypatch.setattr(place, name, stopping)


STOPS = {
    "in step 3": (loop, "optimizer_step", 3, 3),
    "in the first evaluation": (volume_segmentation, "segment_volume", 2, 2),
    "in the last evaluation": (volume_segmentation, "segment_volume", 5, 4),
}


@pytest.mark.usefixtures("own_sigterm")
@pytest.mark.parametrize("stop", STOPS)
def test_a_stopped_run_says_where_and_resumes_to_the_bits_of_the_whole_one(
    stop, data, whole, tmp_path, monkeypatch, capsys
):
    place, name, number, step = STOPS[stop]
    with monkeypatch.context() as patched:
        stop_at(place, name, number, patched)
        assert train(volume_options(data, tmp_path / "run", "--workers", "2")) == 128 + signal.SIGTERM
    assert f"stopped at step {step} and saved; continue with" in capsys.readouterr().out
    assert (tmp_path / "run" / "last").is_dir()
    torch.manual_seed(1)  # a new process would not be where the old one was
    assert train(["--output", str(tmp_path / "run"), "--resume"]) == 0
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.usefixtures("own_sigterm")
def test_stopped_while_volumes_are_prepared_the_same_command_goes_on(
    data, whole, tmp_path, monkeypatch, capsys
):
    output = tmp_path / "run"
    with monkeypatch.context() as patched:
        stop_at(prepared_volumes, "foreground_places", 3, patched)
        with pytest.raises(SystemExit) as stopped:
            train(volume_options(data, output))
    assert stopped.value.code == 130
    assert "2 of 6 training volumes are prepared. Run the command again" in capsys.readouterr().err
    assert sorted(path.name for path in output.iterdir()) == ["prepared"]
    assert all(re.fullmatch("[0-9a-f]{24}", path.name) for path in (output / "prepared").iterdir())
    assert train(volume_options(data, output)) == 0
    assert_same_run(output, whole)


def test_unreadable_volumes_are_named_before_the_first_step(tmp_path):
    data = write_volumes(tmp_path / "data", val=1)
    for name in ("case_1_0001", "case_4_0000"):
        path = data / f"imagesTr/{name}.nii.gz"
        path.write_bytes(path.read_bytes()[:999])
    with pytest.raises(SystemExit, match=r"case_1_0001.*case_4_0000"):
        train(volume_options(data, tmp_path / "run"))
    assert train(volume_options(data, tmp_path / "run", "--unreadable", "skip")) == 0
    assert len(read_json(tmp_path / "run/run.json")["unreadable"]) == 2


def test_a_loss_that_is_not_finite_names_the_cases(data, tmp_path):
    with pytest.raises(SystemExit, match=r"loss of step \d is .*samples: case_\d, case_\d"):
        train(volume_options(data, tmp_path / "run", "--learning-rate", "1e30"))


@pytest.mark.processes
def test_two_processes_train_and_score_as_one_does(data, tmp_path):
    """Three cases to score, which two processes cannot share evenly. The loss is a mean over voxels, which Dice is not."""
    changes = ["--loss", "cross_entropy", "--class-weights", "1,2,3", "--clip-norm", "1"]
    changes += ["--set", "deep_supervision=false"]
    assert train(volume_options(data, tmp_path / "alone", *changes)) == 0
    options = volume_options(data, tmp_path / "run", *changes, "--batch-size", "1")
    finished(launch("ddp.yaml", ["-m", "contextseg.scripts.train", *options]))
    runs = [tmp_path / "run", tmp_path / "alone"]
    ours, theirs = ([e["loss"] for e in read_log(run / "log.jsonl") if "loss" in e] for run in runs)
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert (
        evaluate([str(runs[0]), "--data", f"{data}:val", "--output", str(tmp_path / "scores"), "--cpu"]) == 0
    )
    best = read_json(runs[0] / "run.json")["best"]
    written = read_json(tmp_path / "scores/evaluation.json")
    assert [row["truth_cases"] for row in best["per_class"]] == [3, 3]
    assert [row["dice"] for row in best["per_class"]] == [row["dice"] for row in written["per_class"]]
