"""Parameter counts of the paper's sizes against exact counts of the authors' modules.

Ours are smaller by what the authors build and never read: the global attention of each stage's last block, and in NLU
the residuals that are not chosen and the relative positions that cannot occur.
"""

import json
import re

import pytest
import torch
from golden_cases import golden_file
from torch import nn

from contextseg.configuration.configuration_glam_swin import GlamSwinConfig
from contextseg.modeling.modeling_glam_swin import GlamSwinForSemanticSegmentation

MODELS = [
    "Swin-UperNet-T",
    "Swin-UperNet-S",
    "Swin-UperNet-B",
    "Swin-UperNet-L",
    "GLAM-Swin-UperNet-T (g=1)",
    "GLAM-Swin-UperNet-T (g=5)",
    "GLAM-Swin-UperNet-T (g=10)",
    "GLAM-Swin-UperNet-T (g=15)",
    "GLAM-Swin-UperNet-S (g=10)",
    "GLAM-Swin-UperNet-B (g=10)",
]
UNETS = [
    name
    for size in "TSB"
    for name in (
        f"Swin-Unet-{size}",
        f"Swin-Unet-{size} with NLU, no GLAM (composed)",
        f"GLAM-Swin-Unet-{size} without NLU (g=10)",
        f"GLAM-Swin-Unet-{size} with NLU (g=10)",
    )
]


def build(sizes: dict, name: str) -> GlamSwinForSemanticSegmentation:
    """The model of that name, without memory for its parameters."""
    tokens = re.search(r"g=(\d+)", name)
    config = GlamSwinConfig(
        **sizes,
        num_labels=150,
        num_global_tokens=int(tokens[1]) if tokens else 0,
        global_position_embedding="table",
        decoder="unet" if "Unet" in name else "upernet",
        upsampling="nonlocal" if "with NLU" in name else "expand",
    )
    with torch.device("meta"):
        return GlamSwinForSemanticSegmentation(config)


def count(module: nn.Module, pattern: str = "") -> int:
    return sum(p.numel() for name, p in module.named_parameters() if re.search(pattern, name))


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_the_authors_without_the_dead_attention(name):
    facts = json.loads(golden_file("glam2d/facts.json").read_text())
    expected, size = facts["models"][name], re.search(r"UperNet-(\w)", name)[1]
    model = build(facts["sizes"][size], name)
    dead = expected["global_attention_of_last_block_in_each_stage"]
    assert count(model) == expected["total"] - dead
    assert count(model, r"global_attention") == expected["global_attention"] - dead
    assert count(model, r"global_position") == expected["position_tables"]
    assert count(model, r"global_tokens") == expected["global_tokens"]
    assert count(model, r"^auxiliary_head") == expected["auxiliary_head"]
    assert count(model, r"^(decoder|classifier)") == expected["decode_head"]


@pytest.mark.parametrize("name", UNETS)
def test_parameters_of_unets_are_the_authors_without_the_dead_ones(name):
    facts = json.loads(golden_file("glam2d/facts.json").read_text())
    expected, size = facts["models"][name], re.search(r"Unet-(\w)", name)[1]
    model = build(facts["sizes"][size], name)
    dead_attention = expected["global_attention_of_last_block_in_each_stage"]
    dead_upsampling = 0
    if model.config.upsampling == "nonlocal":
        rows = 27**2 - 13**2  # of the table of a window of 7
        dead_upsampling = expected["nlu_parameters_never_used_with_default_options"]
        dead_upsampling += rows * sum(model.config.num_heads[:-1])
    assert count(model) == expected["total"] - dead_attention - dead_upsampling
    assert count(model, r"global_attention") == expected["global_attention"] - dead_attention
    assert count(model, r"global_position") == expected["position_tables"]
    assert count(model, r"global_tokens") == expected["global_tokens"]


@pytest.mark.parametrize(("preset", "size"), [("tiny", "T"), ("small", "S"), ("base", "B")])
def test_presets_are_the_sizes_of_the_paper(preset, size):
    facts = json.loads(golden_file("glam2d/facts.json").read_text())
    config = GlamSwinConfig.preset(preset)
    sizes = {"embed_dim": config.embed_dim, "depths": [*config.depths], "num_heads": [*config.num_heads]}
    assert sizes == facts["sizes"][size]
