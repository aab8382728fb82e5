import pytest
from cases import each

from contextseg import GlamSwinConfig, GlamSwinForSemanticSegmentation


def test_defaults_are_the_papers_tiny_size():
    config, tiny = GlamSwinConfig(), GlamSwinConfig.preset("tiny")
    assert config.to_dict() == tiny.to_dict()
    assert (config.hidden_size, config.num_global_tokens, config.logits_stride) == (768, 10, None)


def test_presets_take_overrides():
    config = GlamSwinConfig.preset("base", num_global_tokens=5, id2label={0: "a", 1: "b"})
    assert (config.embed_dim, config.num_global_tokens, config.num_labels) == (128, 5, 2)
    assert config.label2id == {"a": 0, "b": 1}


def test_an_unknown_preset_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="no preset 'tinny', did you mean 'tiny'"):
        GlamSwinConfig.preset("tinny")
    with pytest.raises(ValueError, match="Known: base, nano, small, tiny"):
        GlamSwinConfig.preset("xyz")


def test_every_stage_is_a_feature_map_by_default():
    assert GlamSwinConfig().out_features == ["stage1", "stage2", "stage3", "stage4"]
    assert GlamSwinConfig(out_indices=[1, 3]).out_features == ["stage1", "stage3"]


def test_table_rows_are_the_authors():
    config = GlamSwinConfig(num_global_tokens=10)
    assert [config.position_rows(stage) for stage in range(4)] == [202500, 50625, 12544, 3136]
    assert GlamSwinConfig(global_position_rows=(4, 3, 2, 1)).position_rows(3) == 1


@each(
    ("options", "message"),
    [
        ({"depths": (2, 2)}, "depths has 2, num_heads has 4 stages"),
        ({"embed_dim": 100}, "100 channels, which 3 heads do not divide"),
        ({"num_global_tokens": -1}, "num_global_tokens is -1"),
        ({"global_position_embedding": "rotary"}, "Use one of sincos, table, none"),
        ({"global_position_rows": (1, 2)}, "global_position_rows has 2 entries for 4 stages"),
        ({"upsampling": "bicubic"}, "upsampling is 'bicubic'. Use one of expand, nonlocal, nonlocal_global"),
        ({"nonlocal_bias": "none"}, "nonlocal_bias is 'none'. Use one of clean, official"),
        ({"nonlocal_shortcut": "conv"}, "nonlocal_shortcut is 'conv'. Use one of expand, bilinear"),
        ({"pretrain_image_size": 16}, "pretrain_image_size is 16.* Use 32 or more"),
        (
            {"decoder": "unet", "decoder_hidden_size": 7},
            "decoder 'unet' has the width of the first stage, 96",
        ),
        ({"decoder": "unet", "out_features": ["stage1", "stage2"]}, "leave out out_features"),
        ({"decoder": "unet", "depths": (2,), "num_heads": (2,)}, "needs two stages or more"),
        ({"loss_reduction": "sum"}, "Use 'valid' or 'all'"),
        ({"class_weights": [1.0], "num_labels": 3}, "class_weights has 1 entries for 3 labels"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GlamSwinConfig(**options)


def test_the_configuration_of_another_model_is_refused():
    with pytest.raises(ValueError, match="configuration of a 'swin' model"):
        GlamSwinConfig(model_type="swin")


def test_each_decoder_has_the_width_of_its_paper():
    assert GlamSwinConfig().decoder_hidden_size == 512
    assert GlamSwinConfig(decoder="semantic_fpn").decoder_hidden_size == 128
    assert GlamSwinConfig(decoder="semantic_fpn", decoder_hidden_size=64).decoder_hidden_size == 64


def test_a_unet_is_as_wide_as_the_first_stage_and_has_no_auxiliary_head():
    config = GlamSwinConfig.preset("nano", decoder="unet")
    assert (config.decoder_hidden_size, config.use_auxiliary_head) == (32, False)


def test_windows_are_as_large_as_nominal_grids_that_they_do_not_fit_into():
    config = GlamSwinConfig(pretrain_image_size=224)
    assert [config.nominal_grid(stage) for stage in range(4)] == [None, None, None, 7]
    windows = [GlamSwinConfig(pretrain_image_size=100).stage_window(stage) for stage in range(4)]
    assert windows == [(7, 7), (7, 7), (6, 6), (3, 3)]
    assert GlamSwinConfig().nominal_grid(3) is None


def test_an_unknown_decoder_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="no decoder 'uppernet', did you mean 'upernet'"):
        GlamSwinForSemanticSegmentation(GlamSwinConfig.preset("nano", decoder="uppernet"))
