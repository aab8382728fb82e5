"""From training to somebody else's pipeline: train, push, and use from the Hub where contextseg is not installed."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from loopback_hub import HANG_UP, Fault, loopback_hub
from PIL import Image
from tiny_runs import run_options, write_data
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline

from contextseg.scripts import evaluate, export, train
from contextseg.training.options import train_arguments, train_parser

VISITOR = Path(__file__).parents[1] / "hub_visitor.py"
NAME = "me/streets"
PAGE = (Path(__file__).resolve().parents[2] / "docs/how-to/publish.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def hub():
    with loopback_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data/, a photo.jpg, and what was trained on the data, runs/streets, and evaluated."""
    folder = tmp_path_factory.mktemp("journey")
    data = write_data(folder / "data")
    pixels = np.random.default_rng(0).integers(0, 256, (60, 84, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.jpg", quality=95)
    run = folder / "runs" / "streets"
    assert train.main(run_options(data, run)) == 0
    evaluate.main([str(run), "--data", f"{data}/val"])
    return folder


@pytest.fixture
def author(hub, place, monkeypatch, tmp_path):
    """The Hub, empty, for an author who works in the folder of the run."""
    hub.repositories.clear()
    hub.large_files.clear()
    hub.faults.clear()
    hub.adopt_this_process(monkeypatch, tmp_path / "cache")
    monkeypatch.chdir(place)
    return hub


def block(word):
    """The Python block of the page on publishing that holds this word."""
    return next(code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if word in code)


def parsed(words):
    return train_arguments(train_parser().given(words))


def files_below(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.processes
def test_two_processes_the_page_on_publishing_runs_as_written_from_training_to_a_strangers_pipeline(
    author, place, tmp_path
):
    words = re.search(r"^contextseg-export (runs/streets --push .+)$", PAGE, re.MULTILINE)[1].split()
    assert export.main([*words, "--no-proof"]) == 0
    (tmp_path / "use.py").write_text(block("pipeline"))
    (tmp_path / "photo.jpg").write_bytes((place / "photo.jpg").read_bytes())
    environment = os.environ | author.environment(tmp_path / "empty")
    command = [sys.executable, "-I", str(VISITOR), NAME, str(tmp_path)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stdout + finished.stderr

    segment = pipeline("image-segmentation", model="runs/streets/best")
    ours = segment("photo.jpg")
    with torch.no_grad():
        logits = segment.model(**segment.image_processor(Image.open("photo.jpg"), return_tensors="pt")).logits
    assert np.array_equal(np.load(tmp_path / "logits.npy"), logits.numpy())
    printed = "".join(f"{region['label']} {region['mask'].getbbox()}\n" for region in ours)
    assert (tmp_path / "printed.txt").read_text() == printed
    theirs = {path.stem: np.asarray(Image.open(path)) for path in tmp_path.glob("*.png")}
    assert theirs.keys() == {region["label"] for region in ours}
    assert all(np.array_equal(theirs[region["label"]], np.asarray(region["mask"])) for region in ours)


def test_a_model_and_its_processor_are_pushed_from_python_as_the_page_says(author, place):
    names = {
        "model": AutoModelForSemanticSegmentation.from_pretrained("runs/streets/best"),
        "processor": AutoImageProcessor.from_pretrained("runs/streets/best"),
    }
    exec(block("push_to_hub"), names)
    saved = {path.name: path.read_bytes() for path in (place / "runs/streets/best").iterdir()}
    pushed = author.files(NAME)
    assert {name for name in pushed if pushed[name] != saved[name]} == {"README.md"}
    assert pushed.keys() == saved.keys()


@pytest.fixture
def unproven(monkeypatch):
    """Exports without the second Python that opens them, see test_export.py."""
    monkeypatch.setattr("contextseg.hub.export.prove", lambda *_: None)


@pytest.mark.usefixtures("unproven")
def test_a_training_pushes_at_its_end(author, place, capsys):
    options = run_options(place / "data", place / "pushed")
    assert train.main([*options, "--push", NAME]) == 0
    assert capsys.readouterr().out.endswith(f"pushed to {author.url}/{NAME}\n")
    weights = (place / "pushed/best/model.safetensors").read_bytes()
    assert author.files(NAME)["model.safetensors"] == weights
    assert b"validation during training" in author.files(NAME)["README.md"]


@pytest.mark.usefixtures("unproven")
def test_a_training_whose_push_fails_is_complete_and_says_how_to_push_it(author, place, capsys):
    author.faults.append(Fault("POST /api/repos/create", 401))
    run = place / "refused"
    again = re.escape(f"contextseg-export {run} --push {NAME}")
    with pytest.raises(SystemExit, match=f"hf auth login.*{again}"):
        train.main([*run_options(place / "data", run), "--push", NAME])
    assert "next: contextseg-evaluate" in capsys.readouterr().out
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    author.faults.clear()
    assert export.main([str(run), "--push", NAME]) == 0


def test_a_name_that_the_hub_cannot_have_is_reported_before_the_training(place):
    with pytest.raises(SystemExit, match="a/b/c"):
        train.main([*run_options(place / "data", place / "never"), "--push", "a/b/c"])
    assert not (place / "never").exists()


def test_a_push_writes_nothing_here(author, place):
    before = files_below(place)
    export.main(["runs/streets", "--push", NAME, "--no-proof"])
    assert files_below(place) == before
    assert "model.safetensors" in author.files(NAME)


def test_the_card_is_made_of_the_run_and_its_evaluation(author, place):
    export.main(["runs/streets", "--push", NAME, "--no-proof"])
    card = ModelCard(author.files(NAME)["README.md"].decode())
    scores = json.loads((place / "runs/streets/evaluation.json").read_text())
    measured = {result.metric_name: result for result in card.data.eval_results}
    assert measured["Mean IoU"].metric_value == round(scores["mean_iou"], 6)
    assert measured["Pixel accuracy"].metric_value == round(scores["pixel_accuracy"], 6)
    assert {result.dataset_split for result in measured.values()} == {"val"}
    assert card.data.metrics == ["mean_iou", "mean_accuracy", "accuracy", "boundary_iou", "boundary_f"]
    for row in scores["per_class"]:
        assert f"{row['name']} | {row['iou']:.4f} | {row['accuracy']:.4f}" in card.text
    command = shlex.split(re.search(r"^contextseg-train .+$", card.text, re.MULTILINE)[0])
    assert parsed(command[1:]) == parsed(run_options("data", "runs/streets"))
    assert "4 steps in " in card.text
    assert str(place) not in card.content
    assert "# streets\n" in card.text


@pytest.mark.usefixtures("place")
def test_publishing_asks_for_a_license_until_one_is_named(author, caplog):
    words = ["runs/streets", "--push", NAME, "--no-proof"]
    export.main(words)
    assert ModelCard(author.files(NAME)["README.md"].decode()).data.license is None
    assert caplog.text.count("names no license") == 1
    caplog.clear()
    export.main([*words, "--license", "mit"])
    assert ModelCard(author.files(NAME)["README.md"].decode()).data.license == "mit"
    assert "license" not in caplog.text


def test_the_page_shows_a_generated_scene_and_never_the_users_images_unasked(author, place):
    export.main(["runs/streets", "--push", NAME, "--no-proof"])
    card = ModelCard(author.files(NAME)["README.md"].decode())
    title = "Generated scene, not from the training data"
    assert card.data.widget == [{"src": "example.png", "example_title": title}]
    assert f"| ![{title}](example.png) | ![Prediction](example_prediction.png) |" in card.text
    pictures = [file for file in author.files(NAME) if file.endswith((".png", ".jpg"))]
    assert pictures == ["example.png", "example_prediction.png"]

    export.main(["runs/streets", "--push", NAME, "--no-proof", "--example", str(place / "photo.jpg")])
    card = ModelCard(author.files(NAME)["README.md"].decode())
    assert card.data.widget == [{"src": "example.png", "example_title": "Example"}]


def test_a_push_that_fails_names_the_command_that_repeats_it(author, place):
    before = files_below(place)
    author.faults.append(Fault(r"PUT /_lfs/", HANG_UP))
    with pytest.raises(SystemExit, match=f"contextseg-export runs/streets --push {NAME} --no-proof"):
        export.main(["runs/streets", "--push", NAME, "--no-proof"])
    assert author.files(NAME) == {}
    assert files_below(place) == before
