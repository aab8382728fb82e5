"""Claims about SegDeformer's configuration."""

import pytest
from cases import each
from transformers import ConvNextConfig, SegformerConfig

from contextseg import GlamSwinConfig, SegDeformerConfig


def test_the_default_is_the_smallest_mit_with_the_authors_neck():
    config = SegDeformerConfig()
    assert isinstance(config.backbone_config, SegformerConfig)
    assert (config.neck, config.decoder_hidden_size, config.attention_loss_weight) == ("conv", 256, 0.4)
    assert not config.use_auxiliary_head


@each("backbone", [ConvNextConfig(depths=[1, 1, 1, 1]), GlamSwinConfig(depths=(1, 1), num_heads=(1, 2))])
def test_any_backbone_survives_a_round_trip(backbone, tmp_path):
    SegDeformerConfig(backbone_config=backbone).save_pretrained(tmp_path)
    loaded = SegDeformerConfig.from_pretrained(tmp_path).backbone_config
    assert type(loaded) is type(backbone)
    assert list(loaded.depths) == list(backbone.depths)


@each("preset", [*SegDeformerConfig.presets])
def test_presets_are_separate_objects(preset):
    first, second = SegDeformerConfig.preset(preset), SegDeformerConfig.preset(preset)
    assert first.backbone_config is not second.backbone_config
    assert first.to_dict() == second.to_dict()


def test_the_attention_implementation_reaches_the_backbone():
    config = SegDeformerConfig(attn_implementation="eager")
    assert config.backbone_config._attn_implementation == "eager"


@each(
    ("options", "message"),
    [
        ({"neck": "cnov"}, "neck is 'cnov'. Use one of conv, linear"),
        ({"external_tokens": "fixed"}, "Use one of learned, momentum"),
        ({"internal_num_heads": 3}, "3 heads do not divide decoder_hidden_size 256"),
        ({"reduction_ratio": 0}, "reduction_ratio is 0"),
        ({"backbone_config": {"depths": [1]}}, "no 'model_type'"),
        ({"backbone_config": {"model_type": "swinn"}}, "swinn"),
    ],
)
def test_wrong_options_say_what_to_do(options, message):
    with pytest.raises(ValueError, match=message):
        SegDeformerConfig(**options)
