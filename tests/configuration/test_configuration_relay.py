"""The configuration of relay tokens: the authors' names of the rules, and what is refused."""

import pytest
from cases import each

from contextseg import RelayConfig


@each(("given", "kept"), [("zigzag", "sequential"), ("merge", "mean"), ("mean", "mean")])
def test_the_authors_names_of_the_rules_are_understood(given, kept, tmp_path):
    RelayConfig(relay_update=given).save_pretrained(tmp_path)
    assert RelayConfig.from_pretrained(tmp_path).relay_update == kept


@each(
    ("options", "message"),
    {
        "unknown rule": ({"relay_update": "both"}, "Use 'sequential' or 'mean'"),
        "unknown encoder": ({"encoder_type": "resnet"}, "swinv2, vit"),
        "a vit with stages": ({"encoder_type": "vit"}, "has one stage"),
        "a vit without blocks": ({"encoder_type": "vit", "depths": [0], "num_heads": [3]}, "without blocks"),
        "separate blocks of swinv2": ({"share_blocks": False}, "share_blocks is False"),
        "windows of too few stages": ({"pretrained_window_sizes": [8]}, "1 entries for 4 stages"),
        "heads that do not divide": ({"num_heads": (5, 5, 5, 5)}, "Change embed_dim or num_heads"),
        "a huge table": (
            {"encoder_type": "vit", "depths": [1], "num_heads": [3], "crop_size": 65536},
            "weights",
        ),
    },
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RelayConfig(**options)
