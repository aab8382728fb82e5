"""CSWin against tensors of the authors' code: stripes, blocks, backbones and classifiers.

Weights reach the modules through the product's conversion table; whole models through `contextseg-convert`'s own
function, a folder on disk and `from_pretrained`. Every stored output and intermediate has to be accounted for.
"""

import json

import pytest
import torch
from golden_cases import GoldenCase, golden_cases, golden_file
from torch import Tensor, nn

from contextseg.configuration.configuration_cswin import CswinConfig
from contextseg.modeling.cross_shaped import COLUMNS, ROWS, CrossShapedAttention, StripeAttention
from contextseg.modeling.modeling_cswin import (
    CswinBackbone,
    CswinForImageClassification,
    CswinForSemanticSegmentation,
)
from contextseg.modeling.pyramid_encoder import PreNormBlock, PyramidEncoder
from contextseg.modeling.renaming import fill, read_weights
from contextseg.scripts.conversion.cswin_official import BLOCKS, STRIPES, cswin_from_official
from contextseg.scripts.convert_weights import convert_weights

AXES = {0: COLUMNS, 1: ROWS, -1: COLUMNS}
SIZES = {"CSWin-T": "tiny", "CSWin-S": "small", "CSWin-B": "base"}


def keep(values: dict[str, Tensor], name: str, module: nn.Module, reads_input: bool = False) -> None:
    """Notes what a module gives, or is given, as `values[name]`."""
    module.register_forward_hook(
        lambda _, inputs, output: values.update({name: inputs[0] if reads_input else output})
    )


def run_stripes(case: GoldenCase, _folder) -> dict[str, Tensor]:
    """One direction, or the whole map, from queries, keys and values."""
    arguments, values = case.description["args"], {}
    head_dim = arguments["dim"] // arguments["num_heads"]
    width = 0 if arguments["idx"] == -1 else arguments["split_size"]
    stripes = StripeAttention(
        CswinConfig(), arguments["dim"], head_dim, AXES[arguments["idx"]], width, masks_padding=False
    ).eval()
    fill(stripes, STRIPES.apply(case.weights))
    keep(values, "inter.value_windows", stripes.position, reads_input=True)
    keep(values, "inter.lepe_windows", stripes.position)
    maps = case.tensors["input.qkv"].movedim(2, -1)
    values["output.y"] = stripes(maps[:, 0], maps[:, 1], maps[:, 2])[0]
    return values


def run_block(case: GoldenCase, _folder) -> dict[str, Tensor]:
    """One block on tokens."""
    arguments, values = case.description["args"], {}
    width = 0 if arguments["last_stage"] else arguments["split_size"]
    attention = CrossShapedAttention(
        CswinConfig(), arguments["dim"], arguments["num_heads"], width, masks_padding=False
    )
    block = PreNormBlock(attention, arguments["dim"], arguments["mlp_ratio"], 0.0, 1e-5).eval()
    fill(block, BLOCKS.apply(case.weights))
    projected = {}
    for name in ("q_proj", "k_proj", "v_proj"):
        keep(projected, name, attention.get_submodule(name))
    keep(values, "inter.norm1", block.norm1)
    keep(values, "inter.attended", attention.o_proj, reads_input=True)
    keep(values, "inter.attn_projected", attention.o_proj)
    keep(values, "inter.after_attention", block.norm2, reads_input=True)
    values["output.y"] = block(case.tensors["input.x"].unflatten(1, arguments["hw"]))
    values["inter.qkv"] = torch.cat([projected[name] for name in ("q_proj", "k_proj", "v_proj")], dim=-1)
    return values


def watch_encoder(encoder: PyramidEncoder, values: dict[str, Tensor]) -> None:
    embeds = encoder.embeds
    keep(values, "inter.patch_conv", embeds[0].projection)
    keep(values, "inter.patch_tokens", embeds[0])
    for index in range(1, len(embeds)):
        keep(values, f"inter.merge{index}_tokens", embeds[index])
    for index, blocks in enumerate(encoder.stages, 1):
        keep(values, f"inter.stage{index}_tokens", blocks[-1])


def converted(case: GoldenCase, folder) -> None:
    convert_weights("cswin-official", case.folder / "weights.safetensors", folder, case.folder / "case.json")


def run_backbone(case: GoldenCase, folder) -> dict[str, Tensor]:
    """A backbone that was converted to a folder."""
    converted(case, folder)
    backbone, values = CswinBackbone.from_pretrained(folder), {}
    watch_encoder(backbone.encoder, values)
    maps = backbone(case.tensors["input.image"]).feature_maps
    return {**values, **{f"output.feat{index}": map_ for index, map_ in enumerate(maps)}}


def run_classifier(case: GoldenCase, folder) -> dict[str, Tensor]:
    """A classifier that was converted to a folder."""
    converted(case, folder)
    model, values = CswinForImageClassification.from_pretrained(folder), {}
    watch_encoder(model.backbone.encoder, values)
    keep(values, "inter.pooled", model.classifier, reads_input=True)
    values["output.logits"] = model(case.tensors["input.image"]).logits
    return values


KINDS = {
    "lepe_attention": run_stripes,
    "block": run_block,
    "backbone": run_backbone,
    "classifier": run_classifier,
}


@pytest.mark.parametrize("case", golden_cases("cswin"))
def test_outputs_and_intermediates_are_the_authors(case, tmp_path):
    with torch.no_grad():
        values = KINDS[case.kind](case, tmp_path)
    for name in (name for name in case.tensors if not name.startswith("input.")):
        case.check(name, values[name])


def test_averaged_weights_are_taken_from_a_training_checkpoint(tmp_path):
    averaged, last = {"norm.weight": torch.ones(3)}, {"norm.weight": torch.zeros(3)}
    torch.save({"epoch": 3, "state_dict": last, "state_dict_ema": averaged}, tmp_path / "last.pth")
    assert torch.equal(read_weights(tmp_path / "last.pth")["norm.weight"], torch.ones(3))


def test_arguments_that_no_tensor_determines_are_asked_for():
    with pytest.raises(ValueError, match="lack 'num_heads'"):
        cswin_from_official({}, {"split_size": [1, 2, 7, 7]})


def test_arguments_that_would_be_lost_are_refused():
    arguments = {"split_size": [1, 2, 7, 7], "num_heads": [2, 4, 8, 16]}
    with pytest.raises(ValueError, match="only qkv_bias=True"):
        cswin_from_official({}, {**arguments, "qkv_bias": False})
    with pytest.raises(ValueError, match="does not know the argument 'window'"):
        cswin_from_official({}, {**arguments, "window": 7})


def count(model_class: type, preset: str, **options) -> int:
    with torch.device("meta"):
        return model_class(CswinConfig.preset(preset, **options)).num_parameters()


@pytest.mark.parametrize("name", SIZES)
def test_parameters_are_the_authors(name):
    facts, preset = json.loads(golden_file("cswin/facts.json").read_text()), SIZES[name]
    classifier = facts["classification_224_1000_classes"][name]["total"]
    segmenter = facts["upernet_ade20k_150_classes"][name]
    assert count(CswinForImageClassification, preset, num_labels=1000) == classifier
    assert count(CswinBackbone, preset) == segmenter["backbone"]
    assert count(CswinForSemanticSegmentation, preset, num_labels=150) == segmenter["total_with_auxiliary"]


@pytest.mark.parametrize("name", SIZES)
def test_presets_are_the_authors_settings(name):
    facts = json.loads(golden_file("cswin/facts.json").read_text())["segmentation_backbone"][name]
    config = CswinConfig.preset(SIZES[name])
    assert [*config.hidden_sizes] == facts["stage_channels"]
    assert [*config.depths] == facts["depth"]
    assert [*config.num_heads] == facts["num_heads"]
    assert [*config.stripe_widths[:-1], 7] == facts[
        "split_size"
    ]  # the last stage has one window over the whole map
    assert config.drop_path_rate == facts["drop_path_rate"]
