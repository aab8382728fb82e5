"""Every encoder under our decoders: one tiny configuration a row, and the same promises for each."""

from math import ceil

import pytest
import torch
from transformers import (
    BeitConfig,
    ConvNextConfig,
    ConvNextV2Config,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ConvNextConfig,
    DINOv3ViTConfig,
    FocalNetConfig,
    HieraConfig,
    PvtV2Config,
    ResNetConfig,
    SegformerConfig,
    SwinConfig,
    Swinv2Config,
    TimmBackboneConfig,
    VitDetConfig,
)

from contextseg import GlamSwinConfig
from contextseg.modeling.backbones import build_backbone

SWIN = {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
CONV = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1]}
VIT = {"hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16}


def timm(name, **model_kwargs):
    return TimmBackboneConfig(backbone=name, model_kwargs=model_kwargs)


CONFIGS = {
    "glam_swin": lambda: GlamSwinConfig(**SWIN, num_global_tokens=2),
    "segformer": lambda: SegformerConfig(
        hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2]
    ),
    "swin": lambda: SwinConfig(**SWIN),
    "swinv2": lambda: Swinv2Config(**SWIN),
    "convnext": lambda: ConvNextConfig(**CONV),
    "convnextv2": lambda: ConvNextV2Config(**CONV),
    "resnet": lambda: ResNetConfig(**CONV, embedding_size=8, layer_type="basic"),
    "pvt_v2": lambda: PvtV2Config(
        hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2]
    ),
    "focalnet": lambda: FocalNetConfig(embed_dim=8, hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 1, 1]),
    "hiera": lambda: HieraConfig(
        embed_dim=8, depths=[1, 1, 2, 1], num_heads=[1, 1, 2, 2], image_size=[96, 96]
    ),
    "dinov2": lambda: Dinov2Config(**VIT, image_size=56),
    "dinov2_with_registers": lambda: Dinov2WithRegistersConfig(**VIT, image_size=64),
    "dinov3_vit": lambda: DINOv3ViTConfig(**VIT),
    "dinov3_convnext": lambda: DINOv3ConvNextConfig(**CONV),
    "beit": lambda: BeitConfig(**VIT, image_size=64, use_relative_position_bias=True),
    "vitdet": lambda: VitDetConfig(**VIT, image_size=64, window_size=2, window_block_indices=[0]),
    "timm resnet": lambda: timm("resnet18", layers=(1, 1, 1, 1), channels=(8, 8, 16, 16)),
    "timm vit": lambda: timm("vit_tiny_patch16_224", embed_dim=12, depth=4, num_heads=2),
    "timm deit": lambda: timm("deit_tiny_patch16_224", embed_dim=12, depth=4, num_heads=2),
    "timm swin": lambda: timm(
        "swin_tiny_patch4_window7_224", embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2)
    ),
    "timm davit": lambda: timm(
        "davit_tiny", embed_dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2)
    ),
    "timm maxvit": lambda: timm("maxvit_rmlp_pico_rw_256", embed_dim=(32, 32, 32, 32), depths=(1, 1, 1, 1)),
    "timm pvt_v2": lambda: timm(
        "pvt_v2_b0", embed_dims=(8, 8, 16, 16), depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2)
    ),
    "timm shvit": lambda: timm("shvit_s1", embed_dim=(16, 24, 32), depth=(1, 1, 1), partial_dim=(8, 8, 8)),
    "timm tnt": lambda: timm(
        "tnt_s_legacy_patch16_224", embed_dim=12, inner_dim=8, depth=4, num_heads_outer=2
    ),
    "timm halonet": lambda: timm("halonet26t"),
}
SIZES = [(1, 1), (33, 3), (45, 70)]


@pytest.fixture(params=CONFIGS)
def config(request):
    torch.manual_seed(0)
    return CONFIGS[request.param]()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_maps_of_any_image_size_have_the_stated_widths_and_strides(config, size):
    backbone = build_backbone(config).eval()
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, *size)).feature_maps
    expected = [
        (1, channels, *(ceil(side / stride) for side in size))
        for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
    ]
    assert [tuple(feature_map.shape) for feature_map in maps] == expected
    assert list(backbone.strides) == sorted(backbone.strides)


def test_a_single_image_gives_every_parameter_a_gradient(config):
    backbone = build_backbone(config).train()
    sum(
        feature_map.square().sum() for feature_map in backbone(torch.randn(1, 3, 1, 1)).feature_maps
    ).backward()
    assert [name for name, value in backbone.named_parameters() if value.grad is None] == []
