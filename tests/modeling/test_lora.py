"""LoRA on the backbones of our segmenters and of transformers' own."""

import warnings
from copy import deepcopy

import pytest
import torch
from cases import slow_but
from peft import PeftModel
from tiny import (
    FOREIGN_SEGMENTERS,
    REPRESENTATIVES,
    SEGMENTERS,
    labels_for,
    pixels_for,
    tiny_glam_swin,
    tiny_segdeformer,
)
from transformers import ConvNextConfig, Dinov2Config, ResNetConfig, SwinConfig, SwinModel

from contextseg import add_lora
from contextseg.modeling import lora

SWIN = SwinConfig(
    embed_dim=8, depths=[2, 1], num_heads=[1, 2], window_size=4, out_features=["stage1", "stage2"]
)
CONVNEXT = ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)
DINO = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28)
MODELS = {
    **SEGMENTERS,
    **FOREIGN_SEGMENTERS,
    "segdeformer_swin": lambda: tiny_segdeformer(backbone_config=SWIN),
    "segdeformer_convnext": lambda: tiny_segdeformer(backbone_config=CONVNEXT),
    "segdeformer_dinov2": lambda: tiny_segdeformer(backbone_config=DINO),
}


def images_for(model):
    return pixels_for(model, 2, 3, 40, 48)


def logits(model, images):
    with torch.no_grad():
        return model.eval()(images).logits


def trained(model, images):
    """After three large steps on noise."""
    labels = labels_for(images)
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.5)
    model.train()
    for _ in range(3):
        optimizer.zero_grad()
        model(images, labels=labels).loss.backward()
        optimizer.step()
    return model


@pytest.mark.parametrize(
    "name", slow_but(MODELS, "glam_swin", "maformer", "segdeformer", "upernet", "glam_nnformer")
)
def test_an_adapter_changes_nothing_until_trained_and_merges_and_reloads_to_the_same_logits(name, tmp_path):
    torch.manual_seed(0)
    base = MODELS[name]()
    images = images_for(base)
    untouched, before = deepcopy(base), logits(base, images)
    model = add_lora(base, r=2)
    torch.testing.assert_close(logits(model, images), before, rtol=0, atol=1e-6)
    after = logits(trained(model, images), images)
    assert (after - before).abs().max() > 1e-3
    model.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(untouched, tmp_path)
    torch.testing.assert_close(logits(reloaded, images), after, rtol=0, atol=1e-6)
    merged = model.merge_and_unload()
    assert type(merged) is type(untouched)
    assert merged.state_dict().keys() == MODELS[name]().state_dict().keys()
    torch.testing.assert_close(logits(merged, images), after, rtol=0, atol=1e-5)


# All but UPerNet: transformers' Swin has a norm that nothing reads.
@pytest.mark.parametrize(
    "name",
    slow_but(sorted(MODELS.keys() - {"upernet"}), *REPRESENTATIVES, "segdeformer_convnext", "nnformer"),
)
def test_gradient_goes_to_lora_head_norms_and_bare_parameters_and_nowhere_else(name):
    model = add_lora(MODELS[name](), r=2)
    frozen = {
        f"{name}.{own}"
        for name, module in model.base_model.model.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.modules.conv._ConvNd) and "lora_" not in name
        for own, _ in module.named_parameters(recurse=False)
        if lora.backbone_name(model.base_model.model) in name.split(".")
    }
    trained(model, images_for(model))
    without = {
        name for name, weight in model.base_model.model.named_parameters() if weight.grad is None
    }  # "base_layer" is what peft calls a layer that it adapts
    assert without == frozen
    assert any(".base_layer.weight" in name for name in frozen)


def test_tokens_norms_and_head_train_and_the_adapter_holds_them(tmp_path):
    base = tiny_glam_swin()
    model = trained(add_lora(base), images_for(base))
    model.save_pretrained(tmp_path)
    names = lora.load_file(tmp_path / "adapter_model.safetensors").keys()
    for part in ("global_tokens", "norm", "lora_A", "classifier.weight", "decoder", "running_mean"):
        assert any(part in name for name in names), part
    assert not any("base_layer" in name for name in names)


def test_few_weights_are_trained():
    model = add_lora(tiny_segdeformer(backbone_config=SwinConfig(depths=[2, 2], num_heads=[3, 6])), r=4)
    share = model.get_nb_trainable_parameters()[0] / model.get_nb_trainable_parameters()[1]
    assert share < 0.15


def test_no_warning_of_peft_reaches_the_user():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        add_lora(tiny_glam_swin(), r=2)


def test_updates_are_scaled_by_one_by_default():
    layers = [
        module
        for options in ({"r": 4}, {"r": 4, "lora_alpha": 8})
        for module in add_lora(tiny_glam_swin(), **options).modules()
        if hasattr(module, "scaling")
    ]
    assert {layer.scaling["default"] for layer in layers} == {1.0, 2.0}


def test_without_peft_the_error_names_what_to_install(monkeypatch):
    monkeypatch.setattr(lora, "LoraConfig", None)
    with pytest.raises(ImportError, match=r"pip install 'contextseg\[lora\]'"):
        add_lora(tiny_glam_swin())


def test_a_backbone_without_linear_layers_is_refused():
    resnet = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    with pytest.raises(ValueError, match="has no linear layers"):
        add_lora(tiny_segdeformer(backbone_config=resnet))


def test_a_bare_encoder_is_refused():
    with pytest.raises(ValueError, match="SwinModel has no backbone"):
        add_lora(SwinModel(SWIN))
