"""Claims about weights with one row for each label, when a model is given other labels."""

import pytest
import torch
from tiny import SEGMENTERS
from torch import nn

from contextseg.modeling.external_tokens import LearnedTokens, MomentumTokens
from contextseg.modeling.label_rows import (
    LabelClassifier,
    LabelRows,
    VolumeClassifier,
    rows_of_equal_names,
    with_kept_rows,
)

ROWS = [2, None, 0, None]  # of three labels the last and the first stay, as the first and the third of four


def fill(module):
    for tensor in [*module.parameters(), *module.buffers()]:
        tensor.fill_(7.0)


def test_rows_are_found_by_the_name_of_the_label():
    assert rows_of_equal_names({0: "road", 1: "sky"}, {0: "car", 1: "road"}) == [None, 0]
    assert rows_of_equal_names({0: "road", 2: "sky"}, {5: "sky", 3: "tree"}) == [
        None,
        2,
    ]  # in the order of the ids


def test_case_blanks_and_hyphens_of_a_name_make_no_difference_unless_names_differ_in_nothing_else():
    known, wanted = {0: "Road", 1: "traffic-light"}, {0: "traffic_ Light", 1: "car", 2: "road"}
    assert rows_of_equal_names(known, wanted) == [1, None, 0]
    assert rows_of_equal_names({0: "Road"}, {0: "road", 1: "ROAD"}) == [None, None]
    assert rows_of_equal_names({0: "A", 1: "a"}, {0: "a"}) == [1]
    assert rows_of_equal_names({0: 7, 1: 8}, {0: 8}) == [1]
    assert rows_of_equal_names({0: "caf\u00e9"}, {0: "cafe\u0301"}) == [0]


def test_kept_rows_take_the_type_of_the_fresh_ones():
    stored, fresh = torch.arange(6.0).reshape(3, 2), torch.full((4, 2), -1.0, dtype=torch.float64)
    expected = torch.tensor([[4, 5], [-1, -1], [0, 1], [-1, -1]], dtype=torch.float64)
    assert torch.equal(with_kept_rows(stored, fresh, ROWS), expected)


@pytest.mark.parametrize(
    "build",
    [
        lambda: LabelClassifier(2, 3, 1),
        lambda: LabelClassifier(2, 3, 1, bias=False),
        lambda: VolumeClassifier(2, 3, (1, 2, 2)),
        lambda: LearnedTokens(3, 2, decouple=True),
        lambda: LearnedTokens(3, 2, decouple=False),
        lambda: MomentumTokens(3, 2),
    ],
)
def test_every_tensor_keeps_the_named_rows_and_has_fresh_ones_besides(build):
    module = build()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module.replace_labels(ROWS, fill)
    after = module.state_dict()
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        assert torch.equal(tensor[[0, 2]], before[name][[2, 0]])
        assert (tensor[[1, 3]] == 7.0).all()
        assert tensor.shape[0] == 4


def test_a_frozen_classifier_in_half_precision_stays_so():
    classifier = LabelClassifier(2, 3, 1).to(torch.bfloat16).requires_grad_(False)
    classifier.replace_labels(ROWS, fill)
    assert (classifier.weight.dtype, classifier.weight.requires_grad) == (torch.bfloat16, False)
    assert (classifier.out_channels, classifier(torch.ones(1, 2, 1, 1).bfloat16()).shape[1]) == (4, 4)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_every_tensor_of_a_segmenter_with_a_row_a_label_belongs_to_label_rows(name):
    """Built for 3 and for 5 labels, nothing else has another shape; and all of it is renewed."""
    three = SEGMENTERS[name](id2label=dict(enumerate("abc")), class_weights=None)
    five = SEGMENTERS[name](id2label=dict(enumerate("abcde")), class_weights=None)
    shapes = {key: value.shape for key, value in five.state_dict().items()}
    differing = {key for key, value in three.state_dict().items() if value.shape != shapes[key]}
    owned = {
        f"{path}.{key}"
        for path, module in three.named_modules()
        if isinstance(module, LabelRows)
        for key in module.state_dict()
    }
    assert differing == owned
    three.replace_labels(dict(enumerate("cxyza")))
    assert {key: value.shape for key, value in three.state_dict().items()} == shapes


@pytest.mark.parametrize("name", ["glam_swin", "segdeformer"])
def test_all_heads_keep_the_rows_of_equal_names(name):
    torch.manual_seed(0)
    model = SEGMENTERS[name](id2label=dict(enumerate("abc")), use_auxiliary_head=True)
    for value in model.parameters():
        nn.init.normal_(value)
    owners = {path: module for path, module in model.named_modules() if isinstance(module, LabelRows)}
    before = {
        path: {key: value.clone() for key, value in module.state_dict().items()}
        for path, module in owners.items()
    }
    model.replace_labels(dict(enumerate("cxa")))
    assert {"classifier", "auxiliary_head.classifier"} <= owners.keys()
    for path, module in owners.items():
        for key, value in module.state_dict().items():
            assert torch.equal(value[[0, 2]], before[path][key][[2, 0]]), (path, key)
            assert not torch.equal(value[1], before[path][key][1]), (path, key)


def test_a_model_is_not_saved_with_another_number_of_labels_than_its_classifier_has(tmp_path):
    model = SEGMENTERS["glam_swin"](id2label=dict(enumerate("abc")), class_weights=None)
    model.config.id2label = ["a", "b"]
    with pytest.raises(
        ValueError, match="has 2 labels, but the classifier of the model has 3.*replace_labels"
    ):
        model.save_pretrained(tmp_path)
    model.config.id2label = ["x", "y", "z"]
    model.replace_labels({0: "z", 1: "x"})
    model.save_pretrained(tmp_path)
    assert type(model).from_pretrained(tmp_path).config.id2label == {0: "z", 1: "x"}
