"""A model card's front matter: what follows from a run and its scores, and that the Hub takes it."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from loopback_hub import faults_of_card
from PIL import Image

from contextseg import GlamSwinConfig, GlamSwinForImageClassification, GlamSwinForSemanticSegmentation
from contextseg.hub.model_card import read_settings, write_model_card

RUN = {
    "command": [
        "contextseg-train",
        "--train",
        "/home/me/ADEChallengeData2016",
        "--set",
        "token_labels=/home/me/a/b",
    ],
    "arguments": {"train": "/home/me/ADEChallengeData2016", "val": "/home/me/ADEChallengeData2016"},
    "hub_names": {"datasets": ["scene_parse_150"], "base_model": "nvidia/mit-b1"},
    "best": {
        "step": 20,
        "mean_iou": 0.25,
        "per_class": [{"name": "road", "iou": 0.5}, {"name": "tree", "iou": 0.0}],
    },
    "steps_done": 20,
    "seconds": 61.4,
    "seed": 3,
    "hardware": {"gpus": ["NVIDIA H200", "NVIDIA H200"], "processor": "a processor"},
    "versions": {"torch": "2.7.0"},
}
SCORES = {
    "data": "/home/me/ADEChallengeData2016:val",
    "images": 2000,
    "protocol": "whole images",
    "mean_iou": 0.5,
    "boundary_iou": 0.25,
}


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    config = GlamSwinConfig.preset("nano", id2label={0: "road", 1: "tree"})
    GlamSwinForSemanticSegmentation(config).save_pretrained(tmp_path)
    return tmp_path


def card_of(folder, **options):
    write_model_card(folder, **options)
    card = ModelCard.load(folder / "README.md")
    assert faults_of_card(card.content) == []
    return card


def test_data_and_encoder_are_linked_by_their_names_on_the_hub(folder):
    data = card_of(folder, run=RUN, scores=SCORES).data
    assert (data.datasets, data.base_model) == (["scene_parse_150"], "nvidia/mit-b1")
    assert {(result.dataset_type, result.dataset_split) for result in data.eval_results} == {
        ("scene_parse_150", "val")
    }
    assert data.metrics == ["mean_iou", "boundary_iou"]


def test_folders_of_ones_own_are_named_but_not_linked(folder):
    names = {"datasets": [], "base_model": None}
    data = card_of(
        folder, run=RUN | {"hub_names": names}, scores=SCORES | {"data": "/home/me/streets/val"}
    ).data
    assert (data.datasets, data.base_model) == (None, None)
    assert (data.eval_results[0].dataset_type, data.eval_results[0].dataset_name) == (
        "imagefolder",
        "streets/val",
    )


@pytest.mark.parametrize("base_model", [None, "microsoft/swin-tiny-patch4-window7-224", "nvidia/mit-b1"])
def test_a_card_names_no_license_that_nobody_stated(folder, base_model):
    (folder / "README.md").unlink()
    card = card_of(folder, run={"hub_names": {"base_model": base_model}})
    assert card.data.license is None
    assert ("whose license applies to them as well" in card.text) == (base_model is not None)


def test_the_license_of_a_run_is_on_its_card(folder):
    (folder / "README.md").unlink()
    assert card_of(folder, run={"arguments": {"license": "mit"}}).data.license == "mit"


def test_a_license_that_is_named_takes_the_name_of_the_old_one_away(folder):
    named = "---\nlicense: other\nlicense_name: old\nlicense_link: https://example.org\n---\n"
    (folder / "README.md").write_text(
        named + (folder / "README.md").read_text().partition("---\n")[2].partition("---\n")[2]
    )
    data = card_of(folder, license="mit").data.to_dict()
    assert {name: value for name, value in data.items() if "license" in name} == {"license": "mit"}


def test_other_data_than_the_runs_gets_no_link(folder):
    data = card_of(folder, run=RUN, scores=SCORES | {"data": "other/test"}).data
    assert (data.eval_results[0].dataset_type, data.eval_results[0].dataset_split) == ("imagefolder", "test")


def test_without_an_evaluation_the_scores_of_the_training_count_and_are_called_so(folder):
    card = card_of(folder, run=RUN)
    assert card.data.eval_results[0].metric_value == 0.25
    assert "validation during training, used to select these weights" in card.text
    assert "| 0 | road | 0.5000 |" in card.text


def test_the_training_is_described_by_command_cost_and_hardware_without_anybodys_folders(folder):
    card = card_of(folder, run=RUN)
    assert "contextseg-train --train me/ADEChallengeData2016 --set token_labels=a/b" in card.text
    assert "20 steps in 61 seconds on 2 x NVIDIA H200, seed 3; torch 2.7.0." in card.text
    assert "/home" not in card.content


def test_another_run_replaces_data_and_encoder_of_the_one_before(folder):
    card_of(folder, run=RUN, scores=SCORES)
    other = {"hub_names": {"datasets": ["me/streets"], "base_model": "me/encoder"}}
    data = card_of(folder, run=other).data
    assert (data.datasets, data.base_model, data.eval_results) == (["me/streets"], "me/encoder", None)


def test_accuracies_of_a_classifier_are_on_its_card(tmp_path):
    config = GlamSwinConfig.preset("nano", id2label={0: "cat", 1: "dog"})
    GlamSwinForImageClassification(config).save_pretrained(tmp_path)
    data = card_of(tmp_path, scores={"data": "pets/val", "top_1": 0.75, "top_5": 1.0}).data
    assert data.pipeline_tag == "image-classification"
    assert {result.metric_name: result.metric_value for result in data.eval_results} == {
        "Top-1 accuracy": 0.75,
        "Top-5 accuracy": 1.0,
    }


def test_an_example_image_in_the_folder_is_shown(folder):
    Image.new("RGB", (8, 8)).save(folder / "example.png")
    card = card_of(folder)
    assert card.data.widget == [{"src": "example.png", "example_title": "Example"}]
    assert "![Example](example.png)" in card.text


def test_somebodys_own_widget_stays_and_a_removed_image_is_forgotten(folder):
    Image.new("RGB", (8, 8)).save(folder / "example.png")
    mine = [{"src": "https://example.org/street.jpg", "example_title": "Mine"}]
    assert card_of(folder, widget=mine).data.widget == mine
    assert card_of(folder).data.widget == mine
    (folder / "README.md").unlink()
    card_of(folder)
    (folder / "example.png").unlink()
    assert "widget" not in card_of(folder).data.to_dict()


def test_the_record_of_a_run_need_not_be_ours(folder):
    (folder / "run.json").write_text(json.dumps({"arguments": None, "seconds": 1, "note": "by hand"}))
    assert "by hand" in card_of(folder).text


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_a_damaged_record_is_named(content, tmp_path):
    (tmp_path / "evaluation.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"evaluation\.json is damaged"):
        read_settings(tmp_path / "evaluation.json")
