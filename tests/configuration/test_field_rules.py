"""Every number of every configuration has a range, and whatever is outside is refused in one sentence."""

from typing import get_args, get_origin

import pytest
from cases import each

from contextseg import (
    CaswitConfig,
    CswinConfig,
    GlamSwinConfig,
    MaformerConfig,
    MaskRcnnConfig,
    NnFormerConfig,
    RelayConfig,
    SegDeformerConfig,
)
from contextseg.configuration.field_rules import FIELD_RANGES, own_fields
from contextseg.configuration.ranges import Range, whole

CONFIGS = [
    CaswitConfig,
    CswinConfig,
    GlamSwinConfig,
    MaformerConfig,
    MaskRcnnConfig,
    NnFormerConfig,
    RelayConfig,
    SegDeformerConfig,
]
NAN, INF = float("nan"), float("inf")


def numbers(kind):
    """The number types in an annotation, through unions and lists."""
    inner = set().union(*map(numbers, get_args(kind))) if get_origin(kind) is not dict else set()
    return inner | ({kind} & {int, float})


def test_every_number_of_every_configuration_has_a_range():
    found = {
        name
        for config_class in CONFIGS
        for name, field in own_fields(config_class).items()
        if numbers(field.type)
    }
    assert found | {"num_labels"} == set(FIELD_RANGES)


@each("config_class", CONFIGS)
def test_every_preset_is_within_the_ranges(config_class):
    for name in config_class.presets:
        config_class.preset(name)


REFUSED = {
    "text": {"depths": "abc"},
    "an unfinished list": {"depths": "[2,2"},
    "a number for a list": {"depths": 2},
    "a nested list": {"depths": [[2], [2]]},
    "an empty list": {"depths": []},
    "a huge depth": {"depths": [10**6]},
    "a switch for a number": {"window_size": True},
    "negative": {"window_size": -3},
    "zero": {"patch_size": 0},
    "a fraction": {"embed_dim": 9.5},
    "not a number": {"initializer_range": NAN},
    "infinite": {"layer_norm_eps": INF},
    "a rate of 1": {"drop_path_rate": 1.0},
    "a negative weight": {"auxiliary_loss_weight": -0.1},
    "a weight that is not a number": {"class_weights": [1.0, NAN]},
    "only zeros": {"class_weights": [0, 0], "num_labels": 2},
    "a huge width": {"embed_dim": 10**9},
    "too many weights": {"embed_dim": 8192, "num_heads": (1, 1, 1, 1)},
    "a huge decoder": {"decoder_hidden_size": 16384},
    "a huge table": {"global_position_embedding": "table", "num_global_tokens": 256},
    "a billion labels": {"num_labels": 10**9},
    "an MLP without channels": {"mlp_ratio": 0.001},
    "by its other name": {"num_attention_heads": [0, 0, 0, 0]},
    "a number for a switch": {"use_global_attention": 1},
    "a number for text": {"decoder": 3},
    "none": {"loss": None},
    "more than a float holds": {"auxiliary_loss_weight": 10**400},
    "an unknown type of weights": {"dtype": "1e9"},
    "a list for a type": {"dtype": [1]},
    "a range for a switch of transformers": {"output_hidden_states": range(3)},
    "a set for a text of transformers": {"problem_type": {1}},
    "a tuple for a part of the model": {"dtype": {(1,): None}},
    "a dictionary for a class name": {"id2label": {0: "a"}, "label2id": [{}]},
    "a class name of two lines twice": {"id2label": ["a\nb", "a\nb"]},
    "long class names": {"id2label": {0: ["x" * 3000]}},
}


@each("options", REFUSED)
def test_a_value_that_cannot_be_is_refused_in_one_sentence(options):
    with pytest.raises(
        ValueError, match="must be|has|have|weights|which leaves|Use one of|id2label"
    ) as caught:
        GlamSwinConfig(**options)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 250


def test_a_file_with_a_number_out_of_range_is_refused_too(tmp_path):
    GlamSwinConfig.preset("nano").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"window_size": 4', '"window_size": 0'))
    with pytest.raises(ValueError, match="window_size is 0, but must be a whole number from 1 to 64"):
        GlamSwinConfig.from_pretrained(tmp_path)


@each("content", ["null", "[1]", "3"])
def test_a_file_without_an_object_is_named(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match="config.json is damaged"):
        GlamSwinConfig.from_pretrained(tmp_path)


@each(
    "settings",
    [
        {"model_type": "segformer", "depths": [10**6, 1, 1, 1]},
        {"model_type": "swin", "embed_dim": 10**9},
        {"model_type": "glam_swin", "depths": [-1]},
    ],
)
def test_an_encoder_that_no_machine_could_build_is_refused(settings):
    with pytest.raises(ValueError, match="(depths|embed_dim) is .*must be"):
        SegDeformerConfig(backbone_config=settings)


INSIDE = {
    "bounds that belong to it": (whole(1, 3), [1, 2, 3], [0, 4, 1.5, True, "1", None]),
    "bounds that do not": (Range(above=0, below=1), [0.5, 1e-300], [0, 1, NAN]),
    "no bounds": (Range(), [-1e300, 0], [INF, -INF, NAN, 1j]),
}


@each(("allowed", "inside", "outside"), INSIDE)
def test_a_range_holds_finite_numbers_between_its_bounds(allowed, inside, outside):
    assert [value for value in inside if value not in allowed] == []
    assert [value for value in outside if value in allowed] == []


@each(
    ("allowed", "text"),
    [
        (whole(0, 9), "a whole number from 0 to 9"),
        (Range(above=0), "a number above 0"),
        (Range(minimum=0), "a number of at least 0"),
        (Range(minimum=0, below=1), "a number of at least 0 and below 1"),
        (Range(), "a number"),
    ],
)
def test_a_range_is_told_in_words(allowed, text):
    assert str(allowed) == text
