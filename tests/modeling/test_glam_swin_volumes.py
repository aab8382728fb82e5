"""GLAM-Swin on volumes: a volume of one slice is the image, and its stages take the options of the token paths."""

import pytest
import torch
from cases import each
from tiny import tiny_glam_swin_unet, tiny_glam_swin_volumes

from contextseg import (
    GlamSwinConfig,
    GlamSwinForImageClassification,
    GlamSwinForMaskedImageModeling,
    SegDeformerConfig,
)
from contextseg.configuration.configuration_glam_swin import GLOBAL_BLOCKS
from contextseg.modeling.swin_stages import StageSizes, SwinStage

FLAT = {"patch_size": (1, 4, 4), "window_size": (1, 4, 4), "merge_strides": ((1, 2, 2),)}


def scattered(module):
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module.eval()


@each("upsampling", ["expand", "nonlocal", "nonlocal_global"])
@each("shortcut", ["expand", "bilinear"])
@torch.no_grad()
def test_a_volume_of_one_slice_is_the_image(upsampling, shortcut):
    options = {"upsampling": upsampling, "nonlocal_shortcut": shortcut, "global_block": "half"}
    flat = scattered(tiny_glam_swin_unet(num_channels=1, **options))
    volume = tiny_glam_swin_volumes(**FLAT, **options).eval()
    shapes = {name: value.shape for name, value in volume.state_dict().items()}
    volume.load_state_dict({name: value.reshape(shapes[name]) for name, value in flat.state_dict().items()})
    for height, width in ((21, 34), (20, 36)):
        pixels, labels = torch.randn(2, 1, height, width), torch.randint(0, 3, (2, height, width))
        image = flat(pixels, labels=labels)
        found = volume(pixels[:, :, None], labels=labels[:, None])
        torch.testing.assert_close(found.logits[:, :, 0], image.logits[:, :, :height, :width])
    torch.testing.assert_close(found.loss, image.loss)  # of whole patches


@torch.no_grad()
def test_slices_of_padding_do_not_reach_the_volume():
    # Whole windows of padding, which no shifted window joins to the first slices.
    model = scattered(tiny_glam_swin_volumes(upsampling="nonlocal_global"))
    volume, mask = torch.randn(1, 1, 12, 32, 32), torch.ones(1, 12, 32, 32)
    mask[:, 6:] = 0
    changed = volume.clone()
    changed[:, :, 6:] = 0.5
    volume[:, :, 6:] = 0
    difference = model(changed, pixel_mask=mask).logits - model(volume, pixel_mask=mask).logits
    assert difference[:, :, 2:4].abs().max() < 1e-4 < difference[:, :, 6:].abs().max()


@each("block", GLOBAL_BLOCKS)
@torch.no_grad()
def test_a_segmenter_of_volumes_starts_from_the_configuration_of_a_file(block, tmp_path):
    options = {"patch_size": [2, 4, 4], "window_size": [4, 4, 4], "decoder": "unet", "global_block": block}
    GlamSwinConfig.preset("nano", **options).save_pretrained(tmp_path)
    config = GlamSwinConfig.from_pretrained(tmp_path)
    assert (config.num_axes, config.strides) == (3, [(2, 4, 4), (4, 8, 8), (8, 16, 16), (16, 32, 32)])
    assert config.stage_window(3) == (4, 4, 4)
    assert {name: getattr(config, name) for name in options} == options


def test_table_rows_of_volumes_are_the_authors():
    sizes = {"patch_size": (2, 4, 4), "window_size": 4, "decoder": "unet"}
    config = GlamSwinConfig(**sizes, num_global_tokens=1)
    assert [config.position_rows(stage) for stage in range(4)] == [512, 64, 8, 1]


@torch.no_grad()
def test_volumes_are_classified():
    config = tiny_glam_swin_volumes().config
    assert GlamSwinForImageClassification(config)(torch.randn(2, 1, 3, 20, 20)).logits.shape == (2, 3)


@each(
    ("options", "message"),
    [
        ({"patch_size": (2, 4, 4)}, "only decoder 'unet'"),
        (
            {"patch_size": (2, 4, 4), "decoder": "unet", "use_auxiliary_head": True},
            "without use_auxiliary_head",
        ),
        ({"patch_size": (2, 4, 4), "decoder": "unet", "pretrain_image_size": 224}, "and pretrain_image_size"),
        ({"patch_size": (2, 4), "window_size": (4, 4, 4), "decoder": "unet"}, "do not fit together"),
        ({"patch_size": (4,)}, "one per axis"),
        ({"patch_size": (0, 4, 4), "decoder": "unet"}, r"patch_size is \(0, 4, 4\)"),
        ({"merge_strides": (2,)}, "merge_strides has 1 entries for 4 stages"),
        ({"merge_strides": ((1, 2),) * 3}, "not square"),
        ({"global_block": "whole"}, "Use one of bare, half, transformer"),
        ({"global_block": "transformer", "global_clamp": 1.0}, "takes neither global_clamp"),
    ],
)
def test_what_does_not_exist_for_volumes_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GlamSwinConfig(**options)


def test_models_of_images_refuse_volumes():
    config = tiny_glam_swin_volumes().config
    with pytest.raises(ValueError, match="masked image modeling is for images"):
        GlamSwinForMaskedImageModeling(config)
    with pytest.raises(ValueError, match="backbone_config is for volumes"):
        SegDeformerConfig(backbone_config=config)


def stage(block):
    sizes = StageSizes(8, 2, 2, (4, 4), 2.0, (0.0, 0.0), num_global_tokens=2, global_block=block)
    return scattered(SwinStage(GlamSwinConfig(attn_implementation="sdpa"), sizes))


@torch.no_grad()
def test_a_transformer_whose_second_step_adds_nothing_keeps_tokens_in_their_windows():
    whole = stage("transformer")
    first = whole.blocks[0]
    features = torch.randn(2, 8, 12, 8)
    mixed = whole(features)
    for last in (first.global_attention.o_proj, first.global_mlp.fc2):
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.zeros_(last.bias)
    alone = whole(features)
    first.global_attention = None  # as with use_global_attention=False
    torch.testing.assert_close(whole(features), alone)
    assert (mixed - alone).abs().max() > 1e-3


@each("block", GLOBAL_BLOCKS)
@torch.no_grad()
def test_tokens_that_nobody_attends_to_are_no_tokens(block):
    with_tokens, without = stage(block), stage("bare")
    sizes = StageSizes(8, 2, 2, (4, 4), 2.0, (0.0, 0.0))
    without = SwinStage(GlamSwinConfig(attn_implementation="sdpa"), sizes).eval()
    weights = with_tokens.state_dict()
    without.load_state_dict({name: weights[name] for name in without.state_dict()})
    for inner in with_tokens.blocks:
        visible = inner.attention_bias

        def hides(mask, batch, tokens, dtype, hidden, visible=visible):
            bias = visible(mask, batch, tokens, dtype, hidden).clone()
            bias[..., :tokens] = torch.finfo(dtype).min
            return bias

        inner.attention_bias = hides
    features = torch.randn(2, 8, 12, 8)
    torch.testing.assert_close(with_tokens(features), without(features))
