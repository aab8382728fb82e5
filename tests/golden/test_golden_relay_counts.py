"""Parameter counts of relay tokens against exact counts of the authors' modules.

Ours leave out what affects nothing: the classifier for ImageNet, and in ViT the rows of the position tables for relay
tokens, of which the local ones are never read and the others only added to the tokens.
"""

import json
import re

import torch
from cases import each
from golden_cases import golden_file
from torch import nn

from contextseg.configuration.configuration_relay import RelayConfig
from contextseg.modeling.modeling_relay import RelayForSemanticSegmentation

VIT, SWINV2, WIDTH = "vit_small", "swinv2_small", 384
FACTS = {VIT: "vit_s", SWINV2: "swinv2_s"}
SIZES = {  # of SwinV2; the facts name them, but their sizes are those of timm
    "swinv2_t": {"depths": (2, 2, 6, 2)},
    "swinv2_b": {"embed_dim": 128, "num_heads": (4, 8, 16, 32)},
    "swinv2_l": {"embed_dim": 192, "num_heads": (6, 12, 24, 48), "crop_size": 384},
}


def facts() -> dict:
    return json.loads(golden_file("relay/facts.json").read_text())


def build(preset: str, **options) -> RelayForSemanticSegmentation:
    """A model without memory for its parameters; by default that for Cityscapes."""
    config = RelayConfig.preset(preset, **{"num_labels": 19, **options})
    with torch.device("meta"):
        return RelayForSemanticSegmentation(config)


def count(module: nn.Module, pattern: str = "") -> int:
    return sum(p.numel() for name, p in module.named_parameters() if re.search(pattern, name))


def rows_of_relay_tokens(preset: str, tokens: int, tables: int = 2) -> int:
    return tables * tokens * WIDTH if preset == VIT else 0


@each("preset", [VIT, SWINV2])
def test_every_data_set_has_the_authors_parameters(preset):
    for expected in facts()[FACTS[preset]]["by_dataset"].values():
        model = build(preset, num_labels=expected["classes"], num_channels=expected["channels"])
        assert count(model) == expected["relay4_used"] - rows_of_relay_tokens(preset, 4)
        only_pairs = r"context_embed|relay_tokens"
        assert count(model) - count(model, only_pairs) == expected["single_scale_used"]


@each("preset", [VIT, SWINV2])
def test_every_number_of_relay_tokens_has_the_authors_parameters(preset):
    for tokens, expected in facts()[FACTS[preset]]["by_number_of_relay_tokens_cityscapes"].items():
        model = build(preset, num_relay_tokens=int(tokens))
        assert count(model) == expected["used"] - rows_of_relay_tokens(preset, int(tokens))


@each("preset", [VIT, SWINV2])
def test_every_part_has_the_authors_parameters(preset):
    expected, model = facts()[FACTS[preset]]["cityscapes_breakdown_relay4"], build(preset)
    assert count(model, r"encoder\.relay_tokens") == expected["relay tokens"]
    assert count(model, r"local_embed\.(patch_embed|projection|norm)") == expected["patch embedding local"]
    assert count(model, r"context_embed\.(patch_embed|projection|norm)") == expected["patch embedding global"]
    tables = expected.get("position table global", 0)
    assert count(model, r"context_embed\.position") == max(
        0, tables - rows_of_relay_tokens(preset, 4, tables=1)
    )
    assert count(model, r"merges\.\d\.relay_tokens") == expected.get("relay stage projections", 0)
    body = r"blocks\.|merges\.\d\.patches|pyramid"
    assert count(model, body) == expected["transformer body"]
    assert count(model, r"^(decoder|classifier)") == expected["decoder"]


@each("preset", [VIT, SWINV2])
def test_a_shared_patch_embedding_saves_the_authors_parameters(preset):
    expected, model = facts()[FACTS[preset]], build(preset, share_patch_embedding=True)
    unused = expected["cityscapes_breakdown_relay4"]["unused classifier and its norm"]
    rows = rows_of_relay_tokens(preset, 4, tables=1)
    assert count(model) == expected["relay4_shared_patch_embedding_total"] - unused - rows


def test_separate_blocks_have_the_authors_parameters():
    expected, model = facts()["vit_s"], build(VIT, share_blocks=False)
    unused = expected["cityscapes_breakdown_relay4"]["unused classifier and its norm"]
    assert count(model) == expected["relay4_separate_block_weights_total"] - unused - rows_of_relay_tokens(
        VIT, 4
    )


@each("size", list(SIZES))
def test_other_sizes_have_the_authors_parameters(size):
    expected, model = facts()[size], build(SWINV2, **SIZES[size])
    unused = expected["single_scale_total"] - expected["single_scale_used"]
    assert count(model) == expected["relay4_total"] - unused
