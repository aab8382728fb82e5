"""contextseg-export: the folder it writes, and that its proof notices a folder that does not stand alone."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import ExifTags, Image
from safetensors.torch import load_file
from tiny import SEGMENTERS
from transformers import AutoModelForObjectDetection

from contextseg import (
    GlamSwinConfig,
    GlamSwinForImageClassification,
    GlamSwinForSemanticSegmentation,
    MaskRcnnConfig,
    SegmentationImageProcessor,
    VolumeImageProcessor,
)
from contextseg.hub.errors import ProofError
from contextseg.hub.export import prove
from contextseg.scripts.export import main
from contextseg.training.publishing import kind_of


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """What contextseg-train leaves: best/ with a model and its processor, run.json beside it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    model = GlamSwinForSemanticSegmentation(GlamSwinConfig.preset("nano", id2label={0: "road", 1: "tree"}))
    model.save_pretrained(folder / "best")
    SegmentationImageProcessor().save_pretrained(folder / "best")
    (folder / "run.json").write_text(
        json.dumps({"arguments": {"train": "/home/me/streets/train", "seed": 7}})
    )
    (folder / "best" / "evaluation.json").write_text(
        json.dumps({"mean_iou": 0.5, "data": "/home/me/streets/val"})
    )
    return folder


@pytest.mark.processes
def test_two_processes_an_export_opens_without_contextseg(run_folder, tmp_path, capsys):
    assert main([str(run_folder), "--output", str(tmp_path / "model")]) == 0
    assert "it loads without contextseg, and its logits are bit-identical" in capsys.readouterr().out


@pytest.mark.processes
def test_two_processes_the_proof_notices_other_logits(run_folder):
    torch.manual_seed(1)
    config = GlamSwinConfig.from_pretrained(run_folder / "best")
    other = GlamSwinForSemanticSegmentation(config).eval()
    with pytest.raises(ProofError, match="logits differ by up to"):
        prove(other, SegmentationImageProcessor(), run_folder / "best", "AutoModelForSemanticSegmentation")


@pytest.mark.processes
def test_two_processes_a_network_of_volumes_with_two_channels_is_proven(tmp_path):
    model, processor = SEGMENTERS["glam_nnformer"](num_channels=2).eval(), VolumeImageProcessor()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    prove(model, processor, tmp_path, "AutoModelForSemanticSegmentation")


def test_scores_and_recipe_of_the_run_are_on_the_card(run_folder, tmp_path):
    main([str(run_folder), "--output", str(tmp_path), "--no-proof", "--license", "mit"])
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.eval_results[0].metric_value == 0.5
    assert card.data.license == "mit"
    assert '"seed": 7' in card.text
    assert not any("/home/me" in path.read_text() for path in tmp_path.glob("*.[jm][sd]*"))


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(SystemExit, match="has no config.json"):
        main([str(tmp_path), "--output", str(tmp_path / "out"), "--no-proof"])


def test_a_classifier_is_exported_as_one(tmp_path):
    config = GlamSwinConfig.preset("nano", id2label={0: "cat", 1: "dog"})
    GlamSwinForImageClassification(config).save_pretrained(tmp_path / "model")
    SegmentationImageProcessor().save_pretrained(tmp_path / "model")
    main([str(tmp_path / "model"), "--output", str(tmp_path / "out"), "--no-proof"])
    saved, exported = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "out"))
    assert saved.keys() == exported.keys()
    assert "AutoModelForImageClassification" in (tmp_path / "out" / "config.json").read_text()


def test_a_detector_is_opened_as_one():
    config = MaskRcnnConfig(architectures=["MaskRcnnForObjectDetection"])
    assert kind_of(config).auto_class is AutoModelForObjectDetection


def test_an_image_for_the_page_is_made_small_and_loses_its_metadata(run_folder, tmp_path):
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = 6  # a quarter turn
    tags[ExifTags.Base.ImageDescription] = "in front of my house"
    Image.new("RGB", (2000, 1000), "red").save(tmp_path / "photo.jpg", exif=tags)
    main([str(run_folder), "--output", str(tmp_path), "--no-proof", "--example", str(tmp_path / "photo.jpg")])
    with Image.open(tmp_path / "example.png") as image:
        assert (image.size, image.info) == ((256, 512), {})
    with Image.open(tmp_path / "example_prediction.png") as image:
        assert (image.width, image.height > 512, image.info) == (256, True, {})
    assert "(example.png) | ![Prediction](example_prediction.png) |" in (tmp_path / "README.md").read_text()
    assert b"my house" not in (tmp_path / "example.png").read_bytes()


def test_something_to_write_must_be_named(run_folder):
    with pytest.raises(SystemExit, match="--push, --output, --space, --onnx and --pt2 are missing"):
        main([str(run_folder)])
