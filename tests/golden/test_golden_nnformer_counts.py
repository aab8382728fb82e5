"""Parameter counts of nnFormer's and GLAM-nnFormer's networks against exact counts of the authors' modules.

Ours are smaller by what the authors build and never read: in the first version the downsampling after the last stage and
the third head, with global tokens also what each stage's last block does to them.
"""

import json
import re

import pytest
import torch
from golden_cases import golden_file
from torch import nn

from contextseg import NnFormerConfig, NnFormerForSemanticSegmentation

PRESETS = {
    "synapse_deep_supervision": ("synapse", {"num_labels": 14}),
    "synapse_single_head": ("synapse", {"num_labels": 14, "deep_supervision": False}),
    "acdc": ("acdc", {"num_labels": 4}),
    "brain_tumor": ("tumor", {"num_labels": 4}),
}
GLAM = [
    "glam_64_ok_classes14", "glam_64_ok_classes9", "glam_64_ok_classes2", "glam_64_classes14", "glam_64_classes2",
    "glam_classes14", "glam_classes2", "glam_small_classes14", "glam_small_classes2",
]  # fmt: skip


def build(config: NnFormerConfig) -> NnFormerForSemanticSegmentation:
    """The model, without memory for its parameters."""
    with torch.device("meta"):
        return NnFormerForSemanticSegmentation(config)


def count(module: nn.Module, pattern: str = "") -> int:
    return sum(p.numel() for name, p in module.named_parameters() if re.search(pattern, name))


def dead_downsampling(config: NnFormerConfig) -> int:
    """The downsampling after the last stage: layer norm and 2x2x2 convolution to twice the channels."""
    dim = config.hidden_size
    return 2 * dim + 8 * dim * 2 * dim + 2 * dim


def dead_head(config: NnFormerConfig) -> int:
    """The head of the third stage, with a kernel of 4x4x4."""
    return config.hidden_sizes[2] * config.num_labels * 4**3 + config.num_labels


def of_last_blocks(config: NnFormerConfig, per_block) -> int:
    """What each of the seven stages has in its last block."""
    return sum(per_block(dim) for dim in (*config.hidden_sizes, *config.hidden_sizes[:-1]))


def attention(dim: int) -> int:
    return 4 * (dim * dim + dim)


def norms_and_mlp(dim: int) -> int:
    return 4 * dim + 8 * dim * dim + 5 * dim


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_parameters_of_the_authors(name):
    preset, options = PRESETS[name]
    expected = json.loads(golden_file("nnformer/facts.json").read_text())["models"][name]
    config = NnFormerConfig.preset(preset, **options)
    model, parts = build(config), expected["parameters_by_part"]
    assert count(model) == expected["parameters"]
    assert count(model, r"^backbone\.norms") == parts["model_down.norm"]
    assert count(model, r"embeds\.0\.") == parts["model_down.patch_embed"]
    for stage in range(3):
        assert count(model, rf"^decoder\.steps\.{2 - stage}\.") == parts[f"decoder.layers.{stage}"]
        assert (
            count(model, rf"encoder\.(stages\.{stage}|embeds\.{stage + 1})\.")
            == parts[f"model_down.layers.{stage}"]
        )


def test_the_first_version_lacks_what_its_authors_never_read():
    facts = json.loads(golden_file("glam3d/facts.json").read_text())
    config = NnFormerConfig.preset("synapse", variant="2021", num_labels=14)
    total = facts["models"]["baseline_without_glam_classes14"]["parameters"]
    dead = dead_downsampling(config) + dead_head(config)
    assert dead == facts["never_influencing_the_output_glam_64_ok_classes14"]["baseline_without_glam_total"]
    assert count(build(config)) == total - dead


def glam_config(arguments: dict, num_tokens: int = 1, **options) -> NnFormerConfig:
    sizes = arguments["cfg"]
    return NnFormerConfig(
        crop_size=sizes["imsize"],
        embed_dim=sizes["embed_dim"],
        num_heads=sizes["num_heads"],
        patch_size=sizes["patch_size"],
        window_size=sizes["window_size"],
        num_labels=arguments["num_classes"],
        variant="2021",
        num_global_tokens=num_tokens,
        **options,
    )


@pytest.mark.parametrize("name", GLAM)
def test_glam_lacks_what_its_authors_never_read(name):
    expected = json.loads(golden_file("glam3d/facts.json").read_text())["models"][name]
    config = glam_config(
        expected["constructor"], global_block="half", global_clamp=1.0, global_position_embedding="table"
    )
    dead = dead_downsampling(config) + dead_head(config) + of_last_blocks(config, attention)
    assert count(build(config)) == expected["parameters"] - dead
    rows = [config.position_rows(stage) for stage in range(4)]
    assert rows == expected["position_table_rows"]["encoder"]


@pytest.mark.parametrize("num_tokens", ["1", "2", "3", "5", "10"])
def test_tables_grow_with_the_cube_of_the_number_of_tokens(num_tokens):
    facts = json.loads(golden_file("glam3d/facts.json").read_text())
    expected = facts["token_count_effect_glam_64_ok_classes14"][num_tokens]
    config = glam_config(
        facts["models"]["glam_64_ok_classes14"]["constructor"],
        int(num_tokens),
        global_block="half",
        global_position_embedding="table",
    )
    model = build(config)
    assert count(model, r"global_position") == expected["of_which_position_tables"]
    assert count(model, r"global_tokens") == expected["of_which_tokens"]
    dead = facts["never_influencing_the_output_glam_64_ok_classes14"]["total"]
    assert count(model) == expected["parameters"] - dead


def test_the_transformer_path_lacks_its_position_tables_too():
    facts = json.loads(golden_file("glam3d/facts.json").read_text())
    config = glam_config(facts["models"]["glam_64_ok_classes14"]["constructor"])
    tables = facts["token_count_effect_glam_64_ok_classes14"]["1"]["of_which_position_tables"]
    tokens_only = of_last_blocks(config, lambda dim: attention(dim) + norms_and_mlp(dim))
    dead = dead_downsampling(config) + dead_head(config) + tokens_only + tables
    assert config.global_block == "transformer"
    assert count(build(config)) == 253_547_778 - dead
