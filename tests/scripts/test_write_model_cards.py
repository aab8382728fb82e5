"""The cards of the recipes: they say what the recipes say, and nothing else is in their folder."""

import pytest
from cases import each, slow_but
from huggingface_hub import ModelCard
from loopback_hub import faults_of_card

from contextseg.hub.model_card import BEGIN
from contextseg.scripts import write_model_cards
from contextseg.scripts.write_model_cards import FOLDER, card, index, is_trained, read_row
from contextseg.training.recipes import recipe_names

AGAIN = "run python -m contextseg.scripts.write_model_cards"


# One for each task, and one with non-local upsampling.
READ_ALWAYS = (
    *("maformer_small_imagenet1k", "maformer_small_mask_rcnn_1x_coco"),
    *("segformer_mit_b1_ade20k", "swin_unet_nlu_tiny_ade20k"),
)


@pytest.mark.parametrize("name", slow_but(recipe_names(), *READ_ALWAYS))
def test_a_card_says_what_its_recipe_says(name):
    row = read_row(name)
    assert is_trained(row) or (FOLDER / f"{name}.md").read_text() == card(row), AGAIN


def test_every_recipe_has_a_card_and_every_card_a_recipe():
    assert {path.stem for path in FOLDER.glob("*.md")} == {*recipe_names(), "README"}, AGAIN
    assert (FOLDER / "README.md").read_text() == index(), AGAIN


@each("name", recipe_names())
def test_the_hub_takes_a_cards_front_matter(name):
    text = (FOLDER / f"{name}.md").read_text()
    assert faults_of_card(text) == []
    assert ModelCard(text).data.pipeline_tag in {
        "image-segmentation",
        "image-classification",
        "object-detection",
    }


def test_a_card_of_a_row_that_nobody_trained_claims_no_score():
    text = (FOLDER / "segdeformer_mit_b1_ade20k.md").read_text()
    data = ModelCard(text).data
    assert "**Not trained here.**" in text
    assert "| mIoU, % | 44.05 | not measured |" in text
    assert "| parameters | 14.35 M | 14.45 M |" in text
    assert (data.base_model, data.datasets, data.eval_results) == ("nvidia/mit-b1", ["scene_parse_150"], None)


def test_the_card_of_trained_weights_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(write_model_cards, "FOLDER", tmp_path)
    monkeypatch.setattr(
        write_model_cards, "recipe_names", lambda: ["swin_unet_tiny_ade20k", "swin_unet_small_ade20k"]
    )
    (tmp_path / "swin_unet_tiny_ade20k.md").write_text(f"{BEGIN} trained")
    write_model_cards.main()
    assert (tmp_path / "swin_unet_tiny_ade20k.md").read_text() == f"{BEGIN} trained"
    assert "Not trained here" in (tmp_path / "swin_unet_small_ade20k.md").read_text()
    assert "| trained |" in (tmp_path / "README.md").read_text()
