"""Claims about class names: one form whatever is given, on every way into a configuration; else one sentence."""

import json
import logging

import numpy as np
import pytest
from cases import each
from transformers import AutoConfig

from contextseg import GlamSwinConfig, MaskRcnnConfig, SegDeformerConfig

NAMES, IDS = {0: "road", 1: "car"}, {"road": 0, "car": 1}
SPELLINGS = {
    "text ids": {"id2label": {"1": "car", "0": "road"}, "label2id": {"road": "0", "car": "1"}},
    "numpy ids": {"id2label": {np.int64(0): "road", np.uint8(1): "car"}},
    "a list": {"id2label": ["road", "car"]},
    "a tuple": {"id2label": ("road", "car"), "num_labels": 2},
    "only label2id": {"label2id": {"car": "1", "road": 0}},
}
WRONG = {
    "gaps": ({"id2label": {1: "road", 2: "car"}}, "has the ids 1, 2; 0 to 1 is required"),
    "gaps in label2id": ({"label2id": {"road": 0, "car": 2}}, "label2id has the ids 0, 2"),
    "one id twice": ({"id2label": {0: "road", "0": "car"}}, "has id 0 twice: 'road' and 'car'"),
    "one name twice": ({"id2label": ["road", "road"]}, "calls the classes 0, 1 'road'"),
    "the other way round": ({"id2label": IDS}, "'road' as a class id.*label2id names to ids"),
    "names that are not text": ({"id2label": {0: "road", 1: 7}}, "7 as a class name, which is not text"),
    "halves": ({"id2label": {0.5: "road"}}, "0.5 as a class id"),
    "one word": ({"id2label": "road"}, "Give one entry per class"),
    "nothing": ({"id2label": {}}, "Give one entry per class"),
    "another number": ({"id2label": NAMES, "num_labels": 3}, "num_labels is 3, but 2 class names"),
    "crosswise": ({"id2label": NAMES, "label2id": {"road": 1, "car": 0}}, "has 'road' as class 1.*'car' there"),
    "half of label2id": ({"id2label": NAMES, "label2id": {"road": 0}}, "label2id lacks car"),
    "no class": ({"num_labels": 0}, "a whole number from 1"),
    "text": ({"num_labels": "3"}, "a whole number from 1"),
}  # fmt: skip


def forms(config):
    return config.id2label, config.label2id, list(config.id2label), config.num_labels


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    GlamSwinConfig.preset("nano", id2label=["a", "b", "c"]).save_pretrained(folder)
    return folder


@each("given", SPELLINGS)
@pytest.mark.parametrize("config_class", [GlamSwinConfig, SegDeformerConfig, MaskRcnnConfig])
def test_every_spelling_of_class_names_becomes_one_form(config_class, given):
    assert forms(config_class.preset("nano", **given)) == (NAMES, IDS, [0, 1], 2)


@each("given", SPELLINGS)
def test_every_spelling_is_understood_when_a_saved_configuration_gets_other_names(given, saved):
    assert forms(GlamSwinConfig.from_pretrained(saved, **given)) == (NAMES, IDS, [0, 1], 2)
    assert forms(AutoConfig.from_pretrained(saved, **given)) == (NAMES, IDS, [0, 1], 2)


@each("given", SPELLINGS)
def test_every_spelling_is_understood_when_it_is_assigned(given):
    config = GlamSwinConfig.preset("nano", num_labels=5)
    for name, value in given.items():
        setattr(config, name, value)
    assert forms(config) == (NAMES, IDS, [0, 1], 2)


@each(("given", "message"), WRONG)
def test_class_names_that_cannot_be_understood_are_answered_in_one_sentence(given, message, saved):
    with pytest.raises(ValueError, match=message):
        GlamSwinConfig.preset("nano", **given)
    with pytest.raises(ValueError, match=message):
        GlamSwinConfig.from_pretrained(saved, **given)


def test_wrong_names_in_an_encoders_configuration_are_found_too():
    with pytest.raises(ValueError, match="has the ids 3; 0 is required"):
        SegDeformerConfig(backbone_config={"model_type": "glam_swin", "id2label": {3: "road"}})


def test_the_same_number_of_classes_keeps_their_names_and_another_one_does_not(saved):
    assert GlamSwinConfig.from_pretrained(saved, num_labels=3).label2id == {"a": 0, "b": 1, "c": 2}
    config = GlamSwinConfig.from_pretrained(saved, num_labels=2)
    assert config.label2id == {"LABEL_0": 0, "LABEL_1": 1}
    config.num_labels = 3
    assert list(config.label2id) == ["LABEL_0", "LABEL_1", "LABEL_2"]


def test_no_number_of_labels_cannot_be_assigned():
    config = GlamSwinConfig.preset("nano")
    for number in (None, 0, "3", 2.0):
        with pytest.raises(ValueError, match="num_labels is .* a whole number from 1"):
            config.num_labels = number


def test_weights_of_the_classes_change_together_with_their_names(tmp_path):
    GlamSwinConfig.preset("nano", id2label=["a", "b", "c"], class_weights=[1, 2, 3]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="class_weights has 3 entries for 2 labels"):
        GlamSwinConfig.from_pretrained(tmp_path, id2label=["x", "y"])
    for weights in (None, [4, 5]):
        config = GlamSwinConfig.from_pretrained(tmp_path, id2label=["x", "y"], class_weights=weights)
        assert (config.class_weights, config.num_labels) == (weights, 2)


def test_label2id_decides_between_classes_of_one_name():
    """ImageNet has two cranes, a bird and a machine."""
    config = GlamSwinConfig(id2label=["crane", "crane"], label2id={"crane": 1})
    assert config.label2id == {"crane": 1}
    assert GlamSwinConfig(**config.to_dict()).label2id == {"crane": 1}


def test_of_a_file_that_contradicts_itself_id2label_counts(saved, tmp_path, caplog):
    settings = json.loads((saved / "config.json").read_text()) | {"id2label": {"0": "x", "1": "y"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with caplog.at_level(logging.WARNING):
        config = GlamSwinConfig.from_pretrained(tmp_path)
    assert forms(config) == ({0: "x", 1: "y"}, {"x": 0, "y": 1}, [0, 1], 2)
    assert "Only id2label of the configuration file is used" in caplog.text
