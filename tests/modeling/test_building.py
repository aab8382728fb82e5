"""Claims about how models are built and loaded, whatever the caller has switched off around it."""

import pytest
import torch
from cases import slow_but
from tiny import LABELS, SEGMENTERS, pixels_for, tiny_mit, tiny_segdeformer
from transformers import (
    ResNetConfig,
    SegformerForSemanticSegmentation,
    SwinConfig,
    SwinForImageClassification,
)

from contextseg import (
    GlamSwinConfig,
    GlamSwinForSemanticSegmentation,
    MaskRcnnConfig,
    MaskRcnnForObjectDetection,
    SegDeformerConfig,
    SegDeformerForSemanticSegmentation,
)
from contextseg.modeling.backbone_info import MEASURED

CONTEXTS = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
SWIN = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
RESNET = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "embedding_size": 8, "layer_type": "basic"}


@pytest.fixture(params=CONTEXTS)
def switched_off(request):
    """A context in which nothing may have been measured before."""
    MEASURED.clear()
    return CONTEXTS[request.param]


@pytest.mark.parametrize("name", slow_but(SEGMENTERS, "glam_swin", "segdeformer_glam", "glam_nnformer"))
def test_models_are_built_and_loaded_without_gradients(name, switched_off, tmp_path):
    with switched_off():
        model = SEGMENTERS[name]().eval()
        pixels = pixels_for(model, 1, 3, 20, 28)
        model.save_pretrained(tmp_path)
        MEASURED.clear()
        loaded = type(model).from_pretrained(tmp_path)
        torch.testing.assert_close(loaded(pixels).logits, model(pixels).logits)
        relabeled = type(model).from_pretrained(tmp_path, id2label={0: "sky", 1: "car"})
        assert relabeled(pixels).logits.shape[1] == 2


def test_what_was_measured_without_gradients_holds_with_them(switched_off):
    with switched_off():
        tiny_segdeformer(backbone_config=ResNetConfig(**RESNET))
    model = tiny_segdeformer(backbone_config=ResNetConfig(**RESNET)).train()
    model(torch.randn(1, 3, 33, 45), labels=torch.ones(1, 33, 45, dtype=torch.long)).loss.backward()
    assert [name for name, value in model.named_parameters() if value.grad is None] == []


def test_a_detector_is_built_without_gradients(switched_off):
    backbone = {"model_type": "resnet", **RESNET}
    with switched_off():
        model = MaskRcnnForObjectDetection(MaskRcnnConfig(backbone_config=backbone, id2label=LABELS))
    assert model.backbone.strides == (4, 8, 16, 32)


def test_checkpoints_of_others_are_read_without_gradients(switched_off, tmp_path):
    SwinForImageClassification(SwinConfig(**SWIN, image_size=32)).save_pretrained(tmp_path / "swin")
    SegformerForSemanticSegmentation(tiny_mit(decoder_hidden_size=8)).save_pretrained(tmp_path / "mit")
    pixels = torch.randn(1, 3, 20, 28)
    sizes = {"decoder_hidden_size": 8, "id2label": LABELS}
    with switched_off():
        models = [
            SegDeformerForSemanticSegmentation.from_segformer(tmp_path / "mit", id2label=LABELS),
            SegDeformerForSemanticSegmentation.from_backbone(tmp_path / "swin", **sizes),
            GlamSwinForSemanticSegmentation.from_swin(tmp_path / "swin", **sizes),
        ]
        assert [model(pixels).logits.shape[1] for model in models] == [3, 3, 3]


def test_random_numbers_of_the_caller_are_not_used_for_measuring():
    MEASURED.clear()
    states = []
    for _ in range(2):  # with and without measuring
        torch.manual_seed(0)
        states.append(tiny_segdeformer().state_dict())
    torch.testing.assert_close(*states, rtol=0, atol=0)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_the_stride_of_the_logits_is_filled_in_and_saved(name, tmp_path):
    model = SEGMENTERS[name]()
    stride, pixels = model.config.logits_stride, pixels_for(model, 1, 32, 64, 64)
    logits = model.eval()(pixels).logits
    assert logits.shape[2:] == tuple(side // stride for side in pixels.shape[2:])
    model.save_pretrained(tmp_path)
    assert type(model.config).from_pretrained(tmp_path).logits_stride == stride


def test_the_stride_of_the_logits_is_that_of_the_finest_stage_in_use():
    options = {"decoder_hidden_size": 8, "auxiliary_hidden_size": 8}
    config = GlamSwinConfig(embed_dim=8, depths=(1, 1, 1), num_heads=(1, 1, 1), out_indices=[2, 3], **options)
    model = GlamSwinForSemanticSegmentation(config)
    assert (config.logits_stride, model.backbone.strides) == (8, [8, 16])


def test_a_configuration_with_another_stride_is_put_right():
    model = SEGMENTERS["glam_swin"](logits_stride=16)
    assert model.config.logits_stride == 4


def test_stages_may_be_counted_from_the_end():
    sizes = {"embed_dim": 8, "depths": (1, 1, 1), "num_heads": (1, 1, 1), "decoder_hidden_size": 8}
    pixels = torch.randn(1, 3, 32, 32)
    shapes = []
    for indices in ([-2, -1], [2, 3]):
        model = GlamSwinForSemanticSegmentation(GlamSwinConfig(**sizes, out_indices=indices))
        shapes.append([feature_map.shape for feature_map in model.backbone(pixels).feature_maps])
    assert shapes[0] == shapes[1] == [(1, 16, 4, 4), (1, 32, 2, 2)]


def test_an_encoder_that_does_not_run_is_refused_when_the_model_is_built():
    config = SegDeformerConfig(
        backbone_config=SwinConfig(**{**SWIN, "num_heads": [3, 3]})
    )  # 3 divides neither 8 nor 16
    with pytest.raises(ValueError, match="the encoder 'swin' does not run"):
        SegDeformerForSemanticSegmentation(config)
