"""Claims about what all configurations share: files of other tools load, misspelled options of users fail."""

import json
import logging
from inspect import signature

import pytest
from cases import each
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from contextseg import (
    CswinConfig,
    GlamSwinConfig,
    MaformerConfig,
    MaskRcnnConfig,
    NnFormerConfig,
    SegDeformerConfig,
)
from contextseg.configuration.checked_config import resembling

CONFIGS = [CswinConfig, GlamSwinConfig, MaformerConfig, MaskRcnnConfig, NnFormerConfig, SegDeformerConfig]


@pytest.mark.parametrize("config_class", CONFIGS)
def test_notes_of_other_tools_are_saved_and_loaded(config_class, tmp_path):
    config = config_class()
    config.dataset = "camvid"
    config.tool = {"name": "tracker", "runs": [1, 2]}
    for _ in range(2):
        config.save_pretrained(tmp_path)
        config = config_class.from_pretrained(tmp_path)
    assert (config.dataset, config.tool) == ("camvid", {"name": "tracker", "runs": [1, 2]})
    assert AutoConfig.from_pretrained(tmp_path).dataset == "camvid"
    assert config_class.from_json_file(tmp_path / "config.json").dataset == "camvid"


@pytest.mark.parametrize("config_class", [SegDeformerConfig, MaskRcnnConfig])
def test_notes_in_the_encoders_configuration_are_kept_too(config_class, tmp_path):
    config = config_class(backbone_config=GlamSwinConfig.preset("nano"))
    config.backbone_config.dataset = "camvid"
    config.save_pretrained(tmp_path)
    assert config_class.from_pretrained(tmp_path).backbone_config.dataset == "camvid"


@pytest.mark.parametrize("config_class", CONFIGS)
def test_keys_that_are_computed_from_others_do_not_stop_loading(config_class, tmp_path):
    config_class().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"hidden_size": 1, "num_layers": 9, "used_flat_maps": "x"})
    )
    assert config_class.from_pretrained(tmp_path).to_dict().keys() >= config_class().to_dict().keys()


@pytest.mark.parametrize("config_class", CONFIGS)
def test_a_misspelled_option_fails_with_a_suggestion(config_class, tmp_path):
    config_class().save_pretrained(tmp_path)
    message = "no option 'drop_path_ratee', did you mean 'drop_path_rate'"
    if config_class is SegDeformerConfig:
        message = "no option 'decoder_hiden_size', did you mean 'decoder_hidden_size'"
    name = message.split("'")[1]
    with pytest.raises(ValueError, match=message):
        config_class(**{name: 1})
    with pytest.raises(ValueError, match=message):
        config_class.from_pretrained(tmp_path, **{name: 1})
    with pytest.raises(ValueError, match=message):
        AutoConfig.from_pretrained(tmp_path, **{name: 1})


def test_a_misspelled_option_of_an_encoder_fails_with_a_suggestion():
    with pytest.raises(ValueError, match="no option 'window_sizee', did you mean 'window_size'"):
        SegDeformerConfig(backbone_config={"model_type": "glam_swin", "window_sizee": 7})


def test_a_file_with_a_misspelled_option_is_reported(tmp_path, caplog):
    GlamSwinConfig().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"window_sizee": 3, "dataset": "camvid"}))
    with caplog.at_level(logging.WARNING):
        assert GlamSwinConfig.from_pretrained(tmp_path).window_size == 7
    assert (
        "'window_sizee', which is not an option of GlamSwinConfig, did you mean 'window_size'?" in caplog.text
    )
    assert "dataset" not in caplog.text


@pytest.mark.parametrize("config_class", CONFIGS)
def test_no_loading_option_of_transformers_resembles_one_of_ours(config_class):
    loading = signature(PreTrainedModel.from_pretrained).parameters.keys() | {
        *(
            "device_map",
            "dtype",
            "key_mapping",
            "max_memory",
            "offload_buffers",
            "offload_folder",
            "output_loading_info",
        ),
        *("quantization_config", "state_dict", "tp_plan", "trust_remote_code", "use_fast", "variant"),
    }
    assert resembling(loading, config_class.known_options()) == set()


def test_options_of_processors_and_models_pass_by(tmp_path):
    GlamSwinConfig().save_pretrained(tmp_path)
    _, unused = AutoConfig.from_pretrained(tmp_path, return_unused_kwargs=True, size=3, device_map="cpu")
    assert unused == {"size": 3, "device_map": "cpu"}
    assert GlamSwinConfig.from_pretrained(tmp_path, size=3).window_size == 7


def test_a_file_without_the_stride_of_the_logits_loads(tmp_path):
    GlamSwinConfig().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    settings = json.loads(path.read_text())
    settings.pop("logits_stride", None)
    path.write_text(json.dumps(settings))
    assert GlamSwinConfig.from_pretrained(tmp_path).logits_stride is None


@pytest.mark.parametrize("config_class", CONFIGS)
def test_the_text_configuration_is_the_configuration(config_class):
    config = config_class()
    for options in ({}, {"decoder": True}, {"encoder": True}):
        assert config.get_text_config(**options) is config
    assert isinstance(config.get_text_config(), PreTrainedConfig)


@each(
    ("config", "options", "message"),
    [
        (GlamSwinConfig(patch_size=(2, 4, 4), decoder="unet"), {"decoder": "upernet"}, "those of volumes"),
        (GlamSwinConfig(), {"embed_dim": 32}, "num_heads"),
        (GlamSwinConfig(), {"window_size": 0}, "window_size is 0"),
        (NnFormerConfig(), {"decoder": "unet"}, "NnFormerConfig has no option 'decoder'"),
        (NnFormerConfig(), {"strides": 4}, "NnFormerConfig has no option 'strides'"),
    ],
)
def test_changes_of_a_stored_configuration_are_checked_like_those_of_a_new_one(
    config, options, message, tmp_path
):
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        type(config).from_pretrained(tmp_path, **options)


def test_changes_that_belong_together_are_made_together(tmp_path):
    GlamSwinConfig().save_pretrained(tmp_path)
    config = GlamSwinConfig.from_pretrained(tmp_path, embed_dim=32, num_heads=(1, 2, 4, 8))
    assert (config.embed_dim, config.num_heads) == (32, (1, 2, 4, 8))
