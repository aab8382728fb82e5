"""Claims about pretrained weights for images with another number of channels."""

import pytest
import torch
from cases import each, slow_but
from tiny import LABELS, SEGMENTERS, pixels_for, tiny_mit
from transformers import (
    AutoModelForSemanticSegmentation,
    SegformerForSemanticSegmentation,
    SwinConfig,
    SwinModel,
)

from contextseg import (
    GlamSwinConfig,
    GlamSwinForSemanticSegmentation,
    MaskRcnnConfig,
    SegDeformerConfig,
    SegDeformerForSemanticSegmentation,
)
from contextseg.modeling.input_channels import fit_channels, fit_stem, with_num_channels

SWIN = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
STEM = "backbone.encoder.patch_embed.projection.weight"


@each("num_channels", (1, 2, 5, 13))
def test_an_image_with_equal_channels_gives_the_same_features(num_channels):
    kernel, gray = torch.randn(4, 3, 7, 7), torch.randn(1, 1, 16, 16)
    as_rgb, as_bands = gray.expand(1, 3, 16, 16), gray.expand(1, num_channels, 16, 16)
    features = torch.nn.functional.conv2d(as_bands, fit_channels(kernel, num_channels))
    torch.testing.assert_close(features, torch.nn.functional.conv2d(as_rgb, kernel), rtol=1e-4, atol=1e-4)


def test_the_rows_of_rgb_are_kept_and_further_channels_have_their_mean():
    kernel = torch.randn(4, 3, 2, 2)
    fitted = fit_channels(kernel, 5) * 5 / 3
    torch.testing.assert_close(fitted[:, :3], kernel)
    torch.testing.assert_close(fitted[:, 3:], kernel.mean(1, keepdim=True).expand(-1, 2, -1, -1))


@pytest.mark.parametrize("name", slow_but(SEGMENTERS, "glam_swin", "nnformer"))
def test_only_the_first_convolution_changes(name, tmp_path, caplog):
    model = SEGMENTERS[name]().eval()
    model.save_pretrained(tmp_path)
    caplog.clear()
    adapted = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, num_channels=5)
    before, after = model.state_dict(), adapted.state_dict()
    changed = [key for key in after if not torch.equal(after[key], before[key])]
    assert [key for key in changed if after[key].shape[1] == 5] == changed
    assert len(changed) == (2 if hasattr(model.config, "context_ratio") else 1)  # one for each scale
    assert (adapted.config.num_channels, adapted.training) == (5, False)
    known = model.config.num_channels
    assert sum(f"from {known} to 5 channels" in message for message in caplog.messages) == len(changed)
    assert adapted(pixels_for(adapted, 1, 3, 20, 28)).logits.shape[1] == len(LABELS)


def test_channels_and_labels_change_together(tmp_path):
    model = SEGMENTERS["glam_swin"]()
    model.save_pretrained(tmp_path)
    names = {0: "water", 1: LABELS[2]}
    adapted = GlamSwinForSemanticSegmentation.from_pretrained(tmp_path, num_channels=4, id2label=names)
    torch.testing.assert_close(adapted.classifier.weight[1], model.classifier.weight[2])
    torch.testing.assert_close(adapted.state_dict()[STEM], fit_channels(model.state_dict()[STEM], 4))


def test_the_number_of_channels_of_the_checkpoint_changes_nothing(tmp_path, caplog):
    model = SEGMENTERS["glam_swin"](num_channels=4)
    model.save_pretrained(tmp_path)
    same = GlamSwinForSemanticSegmentation.from_pretrained(tmp_path, num_channels=4)
    torch.testing.assert_close(same.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert "channels" not in caplog.text


def test_encoders_of_others_are_adapted(tmp_path):
    SwinModel(SwinConfig(**SWIN, image_size=32)).save_pretrained(tmp_path / "swin")
    SegformerForSemanticSegmentation(tiny_mit(decoder_hidden_size=8)).save_pretrained(tmp_path / "mit")
    options = {"num_channels": 5, "id2label": LABELS}
    models = [
        SegDeformerForSemanticSegmentation.from_segformer(tmp_path / "mit", **options),
        SegDeformerForSemanticSegmentation.from_backbone(tmp_path / "swin", decoder_hidden_size=8, **options),
        GlamSwinForSemanticSegmentation.from_swin(tmp_path / "swin", decoder_hidden_size=8, **options),
    ]
    assert [model(torch.randn(1, 5, 20, 28)).logits.shape[1] for model in models] == [3, 3, 3]


@each("config_class", (SegDeformerConfig, MaskRcnnConfig))
def test_num_channels_is_an_option_that_the_backbone_stores(config_class, tmp_path):
    backbone = tiny_mit()
    config = config_class(backbone_config=backbone, num_channels=5)
    assert (config.backbone_config.num_channels, backbone.num_channels) == (5, 3)
    config.save_pretrained(tmp_path)
    assert config_class.from_pretrained(tmp_path).num_channels == 5
    assert config_class.from_pretrained(tmp_path, num_channels=4).num_channels == 4


@each("num_channels", (0, -1, 2.5, "5", True))
def test_numbers_of_channels_that_make_no_sense_are_refused_before_any_weight_is_adapted(
    num_channels, tmp_path
):
    tiny_mit().save_pretrained(tmp_path)
    SEGMENTERS["glam_swin"]().save_pretrained(tmp_path / "glam")
    with pytest.raises(ValueError, match="num_channels is .*, but must be a whole number from 1"):
        GlamSwinForSemanticSegmentation.from_pretrained(tmp_path / "glam", num_channels=num_channels)
    with pytest.raises(ValueError, match="num_channels is .*, but must be a whole number from 1"):
        SegDeformerConfig(backbone_config=tiny_mit(), num_channels=num_channels)


def test_sizes_that_channels_do_not_explain_are_refused():
    with pytest.raises(ValueError, match="no choice of channels"):
        fit_stem({"a": torch.zeros(4, 3, 2, 2)}, {"a": torch.zeros(4, 5, 3, 3)})


@each("num_channels", (0, -1, 2.5))
def test_an_impossible_number_of_channels_is_refused(num_channels):
    with pytest.raises(ValueError, match="num_channels is .* a whole number from 1 to 4096"):
        with_num_channels(GlamSwinConfig(), num_channels)
