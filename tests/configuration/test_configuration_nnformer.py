"""Presets of nnFormer and GLAM-nnFormer."""

import pytest
from cases import each

from contextseg import NnFormerConfig
from contextseg.hub.papers import PAPERS, papers_of


@each(
    ("options", "tokens"),
    {
        "plain": ({}, 0),
        "first version": ({"variant": "2021"}, 0),
        "a token path": ({"global_block": "half"}, 1),
        "positions": ({"global_block": "half", "global_position_embedding": "table"}, 1),
        "number": ({"global_block": "half", "num_global_tokens": 4}, 4),
        "none": ({"global_block": "half", "num_global_tokens": 0}, 0),
    },
)
def test_a_preset_has_global_tokens_where_their_options_are_given(options, tokens):
    assert NnFormerConfig.preset("nano", **options).num_global_tokens == tokens


@pytest.mark.parametrize("tokens", [0, 1])
def test_cards_cite_glam_for_global_tokens(tokens):
    config = NnFormerConfig.preset("nano", num_global_tokens=tokens).to_dict()
    assert papers_of(config) == [PAPERS["nnformer"], PAPERS["glam_swin"]][: 1 + tokens]
