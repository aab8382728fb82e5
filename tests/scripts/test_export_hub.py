"""contextseg-export: the folder it writes, and that its proof notices a folder that does not stand alone."""

import json

import pytest
import torch
from huggingface_hub import ModelCard

from contextseg import GlamSwinConfig, GlamSwinForSemanticSegmentation, SegmentationImageProcessor
from contextseg.scripts.export_hub import main, prove
from contextseg.scripts.training.arguments import CommandError


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


def test_two_processes_an_export_opens_without_contextseg(run_folder, tmp_path, capsys):
    assert main([str(run_folder), "--output", str(tmp_path / "model")]) == 0
    assert "opens without contextseg and gives the same bits" in capsys.readouterr().out


def test_two_processes_the_proof_notices_other_logits(run_folder):
    torch.manual_seed(1)
    config = GlamSwinConfig.from_pretrained(run_folder / "best")
    other = GlamSwinForSemanticSegmentation(config).eval()
    with pytest.raises(CommandError, match="logits differ by up to"):
        prove(other, SegmentationImageProcessor(), run_folder / "best")


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


def test_a_missing_output_is_asked_for(run_folder):
    with pytest.raises(SystemExit, match="--output is missing"):
        main([str(run_folder)])
