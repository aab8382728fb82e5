"""The options of the segmentation loss become fields of the model's configuration."""

import json
import math

import pytest
from cases import each
from tiny import tiny_segformer
from tiny_runs import TINY_MODEL

from contextseg.processing.data.datasets import open_data
from contextseg.scripts.train import main
from contextseg.training.loss_fields import check_loss_is_ours, class_weights, loss_fields
from contextseg.training.loss_options import LossOptions


@pytest.fixture(scope="module")
def pairs(data):
    return open_data(data / "train")


def test_no_option_sets_no_field(pairs):
    assert loss_fields(LossOptions(), pairs) == {}


@each(
    ("options", "message"),
    {
        "weights": (LossOptions(loss="dice+0*focal", class_weights="1,1,2"), "--class-weights has no effect"),
        "smoothing": (LossOptions(loss="focal", label_smoothing=0.1), "--label-smoothing has no effect"),
    },
)
def test_an_option_that_no_term_uses_is_refused(options, message, pairs):
    with pytest.raises(ValueError, match=f"{message} on --loss .* add .*cross_entropy.* to --loss"):
        loss_fields(options, pairs)


def test_options_that_one_term_uses_are_taken(pairs):
    options = LossOptions(loss="dice+0.5*cross_entropy", class_weights="1,1,2", label_smoothing=0.1)
    assert loss_fields(options, pairs)["class_weights"] == [1, 1, 2]


def test_automatic_weights_are_enets_and_average_to_one_per_pixel(pairs, caplog):
    weights = class_weights("auto", pairs)
    labeled = [sample["mask"][sample["mask"] != 255] for sample in pairs]
    total = sum(mask.size for mask in labeled)
    shares = [sum((mask == index).sum() for mask in labeled) / total for index in range(3)]
    raw = [1 / math.log(1.02 + share) for share in shares]
    mean = sum(weight * share for weight, share in zip(raw, shares, strict=True))
    assert weights == pytest.approx([weight / mean for weight in raw], rel=1e-3)
    assert sum(weight * share for weight, share in zip(weights, shares, strict=True)) == pytest.approx(
        1, rel=1e-3
    )
    assert "class weights from 5 masks: " in caplog.text
    assert all(
        f"{name} {weight:g} (" in caplog.text for name, weight in zip(pairs.classes, weights, strict=True)
    )


@each("text", ["1,10,1", "[1, 10, 1]", "1,1e1,1.0"])
def test_weights_are_numbers_in_the_order_of_the_classes(text, pairs):
    assert class_weights(text, pairs) == [1, 10, 1]


@each(("content", "expected"), [({"grass": 10}, [1, 10, 1]), ([3, 2, 1], [3, 2, 1])])
def test_weights_may_come_from_a_file_by_class_name(content, expected, pairs, tmp_path):
    path = tmp_path / "weights.json"
    path.write_text(json.dumps(content))
    assert class_weights(str(path), pairs) == expected


WRONG = {
    "too few": ("1,2", "2 numbers for 3 classes.*wall, grass, sky"),
    "no file": ("automatic", "neither auto, nor numbers such as 1,10,1, nor a file"),
}


@each(("text", "message"), WRONG)
def test_wrong_weights_are_answered_with_what_is_needed(text, message, pairs):
    with pytest.raises(ValueError, match=message):
        class_weights(text, pairs)


@each(
    ("content", "message"),
    [
        ('{"gras": 2}', "weights of gras, but the classes are wall"),
        ("3", "no class weights"),
        ("{", "no class weights"),
    ],
)
def test_a_wrong_file_of_weights_is_named(content, message, pairs, tmp_path):
    path = tmp_path / "weights.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        class_weights(str(path), pairs)


def test_a_model_of_transformers_computes_its_own_loss():
    with pytest.raises(
        ValueError, match="SegformerForSemanticSegmentation computes its own loss: --loss needs"
    ):
        check_loss_is_ours(tiny_segformer(), {"loss": "dice"})


def test_the_options_are_saved_with_the_model_and_give_way_to_no_setting(data, tmp_path):
    options = [
        "--train",
        f"{data}/train",
        "--output",
        str(tmp_path / "run"),
        *TINY_MODEL,
        "--workers",
        "0",
        "--cpu",
    ]
    options += [
        "--steps",
        "1",
        "--batch-size",
        "2",
        "--crop-size",
        "16",
        "--tracker",
        "none",
        "--loss",
        "tversky+cross_entropy",
    ]
    with pytest.raises(SystemExit, match="--loss and --set loss=... set the same field. Give only --loss"):
        main([*options, "--set", "loss=dice"])
    assert main([*options, "--class-weights", "auto", "--label-smoothing", "0.1"]) == 0
    config = json.loads((tmp_path / "run" / "last" / "config.json").read_text())
    assert (config["loss"], config["label_smoothing"]) == ("tversky+cross_entropy", 0.1)
    assert config["class_weights"] == class_weights("auto", open_data(data / "train"))
