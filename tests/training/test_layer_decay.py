"""Layer-wise learning rate decay finds the layers of every family of encoders, in the order of the forward pass."""

import pytest
from cases import each
from tiny import SEGMENTERS, tiny_glam_swin, tiny_segformer, tiny_upernet
from torch import nn
from transformers import Dinov2Config, ResNetConfig, TimmBackboneConfig

from contextseg import SegDeformerConfig, SegDeformerForSemanticSegmentation
from contextseg.training.layer_decay import layer_factors, layer_of_parameters
from contextseg.training.optim import parameter_groups


def on(backbone_config):
    config = SegDeformerConfig(backbone_config=backbone_config, decoder_hidden_size=8, num_labels=2)
    return SegDeformerForSemanticSegmentation(config)


def resnet():
    sizes = {"depths": [1, 2], "hidden_sizes": [8, 16], "embedding_size": 8, "layer_type": "basic"}
    return on(ResNetConfig(**sizes, out_features=["stage1", "stage2"]))


def dinov2():
    return on(
        Dinov2Config(
            hidden_size=8, num_hidden_layers=3, num_attention_heads=2, out_indices=[1, 2, 3], patch_size=16
        )
    )


def timm_resnet():
    return on(TimmBackboneConfig(backbone="resnet18", out_indices=[1, 2]))


# The number of layers, and the layer of some modules: before, in and between the blocks.
LAYERS = {
    "glam_swin": (
        tiny_glam_swin,
        4,
        {
            "encoder.patch_embed.projection": 0,
            "encoder.stages.0.global_tokens": 0,
            "encoder.stages.0.blocks.0.mlp": 1,
            "encoder.merges.0": 2,
            "encoder.stages.1.global_tokens": 2,
            "encoder.stages.1.blocks.1": 4,
            "norms.stage2": 4,
        },
    ),
    "maformer": (
        SEGMENTERS["maformer"],
        4,
        {"encoder.embeds.0": 0, "encoder.stages.0.0": 1, "encoder.embeds.1": 1, "encoder.stages.2.0": 4},
    ),
    "cswin": (
        SEGMENTERS["cswin"],
        4,
        {"encoder.embeds.0": 0, "encoder.stages.1.1": 3, "encoder.embeds.2": 3},
    ),
    "nnFormer": (
        SEGMENTERS["glam_nnformer"],
        4,
        {
            "encoder.embeds.0.steps.0.convolution": 0,
            "encoder.embeds.0.convolution": 0,
            "encoder.stages.0.blocks.1": 2,
            "encoder.embeds.1": 2,
            "encoder.stages.1.blocks.0": 3,
        },
    ),
    "GLAM-Swin on volumes": (SEGMENTERS["glam_swin_volumes"], 4, {"encoder.merges.0": 2}),
    "SegFormer": (
        tiny_segformer,
        3,
        {"stages.0.patch_embeddings": 0, "stages.0.blocks.1": 2, "stages.1.blocks.0": 3},
    ),
    "UPerNet": (
        tiny_upernet,
        3,
        {"swin.embeddings": 0, "swin.encoder.layers.0.downsample": 2, "swin.encoder.layers.1.blocks.0": 3},
    ),
    "ResNet": (resnet, 3, {"encoder.embedder": 0, "encoder.encoder.stages.1.layers.0.shortcut": 2}),
    "DINOv2": (dinov2, 3, {"encoder.embeddings": 0, "encoder.encoder.layer.2": 3, "encoder.layernorm": 3}),
    "timm": (timm_resnet, 4, {"encoder._backbone.conv1": 0, "encoder._backbone.layer2.0.downsample": 3}),
}


@each(("build", "count", "expected"), LAYERS)
def test_layers_are_numbered_by_depth(build, count, expected):
    model = build()
    layers = layer_of_parameters(model)
    assert set(layers.values()) == set(range(1 + max(layers.values())))
    assert count == max(layers.values())
    for module, layer in expected.items():
        found = {at for name, at in layers.items() if f".{module}." in name}
        assert found == {layer}, module


def test_rates_fall_by_the_factor_from_layer_to_layer_and_only_in_the_backbone():
    model = tiny_glam_swin()
    factors = layer_factors(model, 0.5)
    groups = parameter_groups(
        model, learning_rate=2.0, weight_decay=0.1, factors={"head": 10.0}, layer_factors=factors
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {names[id(parameter)]: group["lr"] for group in groups for parameter in group["params"]}
    assert rates["backbone.encoder.patch_embed.projection.weight"] == 2 * 0.5**5
    assert rates["backbone.encoder.stages.1.blocks.1.mlp.fc1.weight"] == 2 * 0.5
    assert rates["decoder.fusion.convolution.weight"] == rates["classifier.weight"] == 20


def test_the_model_is_left_in_training_mode_and_without_hooks():
    model = tiny_glam_swin().train()
    layer_of_parameters(model)
    assert all(module.training and not module._forward_pre_hooks for module in model.modules())


def test_a_backbone_without_blocks_is_refused():
    model = tiny_glam_swin()
    model.backbone = OneConvolution()
    with pytest.raises(ValueError, match="no repeated blocks. Use --lr-factor"):
        layer_factors(model, 0.5)


class OneConvolution(nn.Module):
    config = None

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 2, 1)

    def forward(self, pixel_values):
        return self.convolution(pixel_values)


def test_a_frozen_backbone_has_no_layers_to_decay():
    model = tiny_glam_swin()
    model.backbone.requires_grad_(False)
    with pytest.raises(ValueError, match="--layer-decay changes nothing in a backbone that is frozen"):
        layer_factors(model, 0.5)
