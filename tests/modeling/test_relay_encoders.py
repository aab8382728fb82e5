"""The encoders of relay tokens: without tokens they are transformers' ViT and Swin V2, and only tokens link the crops."""

import re
from pathlib import Path

import pytest
import timm
import torch
from cases import each
from torch import nn
from transformers import (
    ConvNextConfig,
    PreTrainedModel,
    Swinv2Backbone,
    Swinv2Config,
    Swinv2ForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from contextseg.configuration.configuration_relay import RelayConfig
from contextseg.modeling.modeling_relay import RelayForSemanticSegmentation
from contextseg.modeling.modeling_relay_backbone import RelayBackbone
from contextseg.modeling.renaming import fill
from contextseg.modeling.swinv2_blocks import SwinV2Block, SwinV2Sizes, cut_windows
from contextseg.scripts.conversion.relay_official import SWINV2_BLOCK, flat_scales

VIT = {
    "encoder_type": "vit",
    "depths": (3,),
    "num_heads": (3,),
    "embed_dim": 24,
    "patch_size": 8,
    "crop_size": 48,
}
TINY_VIT = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 96}
SWINV2 = {"depths": (2, 2, 2), "num_heads": (1, 2, 2), "embed_dim": 8, "window_size": 4, "crop_size": 64}


def randomized(module: nn.Module) -> nn.Module:
    """Every parameter away from its neutral value."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = 0.3 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + noise if re.search(r"norm\w*\.weight$", name) else noise)
    return module.eval()


def backbone(options: dict, **changed) -> RelayBackbone:
    return randomized(RelayBackbone(RelayConfig(**options, **changed)))


def local_only(theirs: PreTrainedModel, folder: Path, **options) -> RelayBackbone:
    """Our backbone without relay tokens, with the weights of a model of transformers."""
    theirs.save_pretrained(folder)
    model = RelayForSemanticSegmentation.from_backbone(folder, num_relay_tokens=0, **options)
    return model.backbone


@torch.no_grad()
@each("attention", ["eager", "sdpa"])
def test_without_relay_tokens_vit_is_the_vit_of_transformers(attention, tmp_path):
    theirs = ViTModel(
        ViTConfig(**TINY_VIT, image_size=48, patch_size=8, layer_norm_eps=1e-6), add_pooling_layer=False
    )
    randomized(theirs)
    ours = local_only(theirs, tmp_path, crop_size=48, attn_implementation=attention)
    images = torch.randn(2, 3, 48, 48)
    tokens = theirs.embeddings.patch_embeddings(images) + theirs.embeddings.position_embeddings[:, 1:]
    for layer in getattr(theirs, "layers", None) or theirs.encoder.layer:
        tokens = layer(tokens)
    found = ours(images, torch.randn_like(images)).feature_maps[-1].flatten(2).transpose(1, 2)
    torch.testing.assert_close(found, tokens, rtol=0, atol=1e-5)


@torch.no_grad()
@each(
    ("attention", "trained", "size"),
    {
        "one window in the last stage": ("eager", None, (64, 64)),
        "smaller windows there": ("sdpa", None, (32, 32)),
        "pretrained with other windows": ("sdpa", (6, 6, 3), (128, 192)),
    },
)
def test_without_relay_tokens_swinv2_is_that_of_transformers(attention, trained, size, tmp_path):
    config = Swinv2Config(
        image_size=size, embed_dim=8, depths=[2, 2, 2], num_heads=[1, 2, 2], window_size=4, drop_path_rate=0.0,
        pretrained_window_sizes=trained or [0, 0, 0], out_features=["stage1", "stage2", "stage3"],
    )  # fmt: skip
    theirs = randomized(Swinv2Backbone(config))
    ours = local_only(theirs, tmp_path, attn_implementation=attention)
    images = torch.randn(2, 3, *size)
    states = ours(images, torch.randn_like(images), output_hidden_states=True).hidden_states[1:]
    for found, expected in zip(states, theirs(images).feature_maps, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_both_crops_and_blocks_start_from_a_checkpoint(tmp_path):
    theirs = ViTForImageClassification(ViTConfig(**TINY_VIT, image_size=32, patch_size=8))
    theirs.save_pretrained(tmp_path)
    options = {"num_channels": 4, "crop_size": 48, "share_blocks": False, "num_labels": 3}
    ours = RelayForSemanticSegmentation.from_backbone(tmp_path, **options).backbone.encoder
    embeds = ours.local_embed, ours.context_embed
    kernel = theirs.vit.embeddings.patch_embeddings.projection.weight
    for embed in embeds:
        torch.testing.assert_close(embed.patch_embed.projection.weight[:, :3], kernel * 0.75)
        assert torch.equal(embed.position.table, embeds[0].position.table)
        assert embed.position.table.shape == (36, 24)
    for local, context in zip(ours.blocks.parameters(), ours.context_blocks.parameters(), strict=True):
        assert torch.equal(local, context)


def test_the_last_norm_of_swinv2_is_taken_over(tmp_path):
    config = Swinv2Config(image_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)
    theirs = randomized(Swinv2ForImageClassification(config))
    theirs.save_pretrained(tmp_path)
    ours = RelayForSemanticSegmentation.from_backbone(tmp_path, decoder="upernet")
    assert torch.equal(ours.backbone.pyramid["stage2"].weight, theirs.swinv2.layernorm.weight)


def test_only_swinv2_and_vit_start_relay_tokens(tmp_path):
    ConvNextConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a 'convnext'. Relay tokens start from a Swin V2"):
        RelayForSemanticSegmentation.from_backbone(tmp_path)


@torch.no_grad()
@each("grid", [(8, 8), (7, 9), (3, 10), (1, 2)])
def test_a_block_without_shift_is_that_of_timm_on_any_grid(grid):
    theirs = timm.models.swin_transformer_v2.SwinTransformerV2Block(8, grid, 2, window_size=4)
    randomized(theirs)
    ours = SwinV2Block(RelayConfig(), SwinV2Sizes(8, 2, (4, 4)))
    fill(ours, flat_scales(SWINV2_BLOCK.apply(theirs.state_dict())))
    features = torch.randn(2, *grid, 8)
    found, _ = ours.eval()(
        features, features.new_zeros(2, 0, 8), cut_windows(features, (4, 4), shifted=False)
    )
    torch.testing.assert_close(found, theirs(features), rtol=0, atol=1e-5)


@each("rule", ["sequential", "mean"])
@each("options", {"vit": VIT, "swinv2": SWINV2})
def test_only_relay_tokens_carry_the_context_to_the_local_crop(rule, options):
    images = torch.randn(1, 3, options["crop_size"], options["crop_size"])
    for tokens in (0, 1, 8):
        context = torch.randn_like(images, requires_grad=True)
        model = backbone(options, num_relay_tokens=tokens, relay_update=rule)
        model(images, context).feature_maps[-1][0, 0, 0, 0].backward()
        assert bool((context.grad != 0).any()) == bool(tokens)


@torch.no_grad()
@each("options", {"vit": VIT, "swinv2": SWINV2})
def test_the_first_context_block_of_the_sequential_rule_does_not_see_the_local_crop(options):
    one = {**options, "depths": (1,), "num_heads": options["num_heads"][:1]}
    context, crops = torch.randn(1, 3, 32, 32), torch.randn(2, 1, 3, 32, 32)
    for depth in (1, 2):
        model = backbone({**one, "depths": (depth,)}, relay_update="sequential")
        first, second = (model(crop, context).context_maps[-1] for crop in crops)
        assert torch.equal(first, second) == (depth == 1)


@torch.no_grad()
@each("options", {"vit": VIT, "swinv2": SWINV2})
def test_the_rules_differ_in_what_the_first_local_block_sees(options):
    one = {**options, "depths": (1,), "num_heads": options["num_heads"][:1]}
    crop, contexts = torch.randn(1, 3, 32, 32), torch.randn(2, 1, 3, 32, 32)
    for rule in ("sequential", "mean"):
        model = backbone(one, relay_update=rule)
        first, second = (model(crop, context).feature_maps[-1] for context in contexts)
        assert torch.equal(first, second) == (rule == "mean")


@torch.no_grad()
def test_tokens_of_each_window_are_shared_ones_where_there_is_one_window():
    block = randomized(SwinV2Block(RelayConfig(), SwinV2Sizes(8, 2, (4, 4))))
    features, tokens = torch.randn(2, 4, 4, 8), torch.randn(2, 3, 8)
    cut = cut_windows(features, (4, 4), shifted=True)
    shared = block(features, tokens, cut)
    apart = block(features, tokens[:, None], cut)
    torch.testing.assert_close((apart[0], apart[1][:, 0]), shared)


@torch.no_grad()
def test_tokens_of_one_window_reach_that_window_only():
    block = randomized(SwinV2Block(RelayConfig(), SwinV2Sizes(8, 2, (4, 4))))
    features, tokens = torch.randn(1, 8, 8, 8), torch.randn(1, 4, 2, 8)
    cut = cut_windows(features, (4, 4), shifted=False)
    changed = tokens.clone()
    changed[:, 3] += 1
    before, after = block(features, tokens, cut), block(features, changed, cut)
    assert torch.equal(before[0][:, :4], after[0][:, :4])
    assert torch.equal(before[1][:, :3], after[1][:, :3])
    assert not torch.isclose(before[0][:, 4:, 4:], after[0][:, 4:, 4:]).all()


@each("dtype", [torch.float16, torch.bfloat16])
def test_padding_stays_finite_in_half_precision(dtype):
    block = randomized(SwinV2Block(RelayConfig(), SwinV2Sizes(8, 2, (4, 4)))).to(dtype)
    features, tokens = torch.randn(1, 5, 6, 8, dtype=dtype), torch.randn(1, 2, 8, dtype=dtype)
    found, _ = block(features, tokens, cut_windows(features, (4, 4), shifted=True))
    found.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in block.parameters())
    assert found.isfinite().all()


@torch.no_grad()
@each("decoder", ["one_step", "semantic_fpn"])
@each("options", {"vit": VIT, "swinv2": SWINV2})
@each("size", [(44, 44), (33, 70), (1, 1)])
def test_maps_of_crops_of_any_size_have_whole_cells_only(decoder, options, size):
    model = backbone(options, decoder=decoder)
    outputs = model(torch.randn(1, 3, *size), torch.randn(1, 3, *size))
    for maps in (outputs.feature_maps, outputs.context_maps):
        for level, channels, stride in zip(maps, model.channels, model.strides, strict=True):
            assert level.shape == (1, channels, *(-(-side // stride) for side in size))
