"""MAFormer's sizes against exact counts of the recommended reading of the paper; no weights of the authors exist."""

import json

import pytest
import torch
from cases import slow_but
from golden_cases import golden_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from contextseg.configuration.configuration_maformer import MaformerConfig
from contextseg.modeling.global_learning import MafBlock
from contextseg.modeling.modeling_maformer import (
    MaformerBackbone,
    MaformerForImageClassification,
    MaformerForSemanticSegmentation,
)

SIZES = {"MAFormer-S": "small", "MAFormer-B": "base", "MAFormer-L": "large"}
ABLATIONS = {
    "maf_cross_shaped_gld": {},
    "local_enhanced_fusion_fig2b": {"fusion": "local_enhanced"},
    "shifted_window_local_branch": {"local_attention": "shifted_window"},
    "conv2x2_stride2_instead_of_gld": {"global_branch": "conv"},
}
each_size = pytest.mark.parametrize("name", SIZES)
each_size_counted = pytest.mark.parametrize("name", slow_but(SIZES, "MAFormer-S"))


def facts() -> dict:
    return json.loads(golden_file("maformer/facts.json").read_text())


def build(model_class: type, preset: str, **options) -> nn.Module:
    """The model without memory for its parameters."""
    with torch.device("meta"):
        return model_class(MaformerConfig.preset(preset, **options)).eval()


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def macs(model: nn.Module, height: int, width: int) -> float:
    """Of convolutions, linear layers and both products of every attention, for one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, height, width, device="meta"))
    return counter.get_total_flops() / 2


@each_size
def test_parameters_of_classifier_backbone_and_blocks(name):
    expected, preset = facts()["recommended"][name], SIZES[name]
    classifier = build(MaformerForImageClassification, preset, num_labels=1000)
    voting = build(MaformerForImageClassification, preset, num_labels=1000, use_token_labels=True)
    assert count(classifier) == expected["params_classifier"]
    assert count(voting) == expected["params_classifier_with_token_label_head"]
    assert count(classifier.backbone) == expected["params_backbone_no_head"]
    assert count(build(MaformerBackbone, preset)) == expected["params_backbone_with_four_output_norms"]
    firsts = [count(blocks[0]) for blocks in classifier.backbone.encoder.stages]
    assert firsts == [*expected["params_per_block"].values()]


@each_size
def test_parameters_of_segmenters(name):
    expected = facts()["recommended"][name]["downstream"]
    fpn = build(MaformerForSemanticSegmentation, SIZES[name], num_labels=150)
    upernet = build(MaformerForSemanticSegmentation, SIZES[name], num_labels=150, decoder="upernet")
    assert count(fpn) == expected["semantic_fpn_512x2048"]["params"]
    assert count(upernet) == expected["upernet_512x2048"]["params"]


@each_size
def test_presets_are_the_sizes_of_the_paper(name):
    table, sizes = facts()["paper"]["table1"][name], facts()["recommended"][name]
    config = MaformerConfig.preset(SIZES[name])
    assert [*config.hidden_sizes] == table["dims"] == sizes["hidden_sizes"]
    assert [*config.depths] == table["blocks"] == sizes["depths"]
    assert [*config.num_heads] == sizes["num_heads"]
    assert config.drop_path_rate == facts()["recommended_config"]["drop_path"][name[-1]]


@pytest.mark.parametrize("name", ABLATIONS)
def test_parameters_of_the_ablations(name):
    model = build(MaformerForImageClassification, "small", num_labels=1000, **ABLATIONS[name])
    assert count(model) == facts()["ablations_MAFormer_S_params"][name]


@pytest.mark.parametrize(("dim", "expected"), [(64, 106_229), (128, 391_221), (192, 864_629)])
def test_parameters_of_a_maf_block(dim, expected):
    model = build(MaformerBackbone, "small", hidden_sizes=(dim, 128, 320, 512))
    block = model.encoder.stages[0][0]
    assert isinstance(block, MafBlock)
    assert count(block) == 23 * dim**2 + 37 * dim + 9653 == expected


@each_size_counted
def test_multiply_adds_of_the_classifier(name):
    expected = facts()["recommended"][name]
    for use_token_labels, key in ((False, "macs_224"), (True, "macs_224_with_token_label_head")):
        model = build(
            MaformerForImageClassification, SIZES[name], num_labels=1000, use_token_labels=use_token_labels
        )
        assert macs(model, 224, 224) == pytest.approx(expected[key], rel=0.005)


@pytest.mark.parametrize("size", ["512x2048"])
@each_size_counted
def test_multiply_adds_of_the_backbone(name, size):
    expected = facts()["recommended"][name]["backbone_macs"][size]["full"]
    backbone = build(MaformerBackbone, SIZES[name])
    assert macs(backbone, *map(int, size.split("x"))) == pytest.approx(expected, rel=0.005)


def test_depths_that_give_both_printed_numbers_of_s():
    model = build(MaformerForImageClassification, "small", num_labels=1000, depths=(2, 4, 8, 3))
    assert count(model) == 22_470_310
    assert macs(model, 224, 224) == pytest.approx(4_500_973_056, rel=0.005)
