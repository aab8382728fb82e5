import pytest
import torch
from cases import each
from tiny import tiny_cswin_unet, tiny_glam_swin_unet, tiny_maformer_unet
from torch import nn

from contextseg import GlamSwinConfig, GlamSwinForSemanticSegmentation, global_attention_maps
from contextseg.modeling.blocks import DropPath
from contextseg.modeling.patches import PatchEmbed, PatchExpand, PatchMerge

UPSAMPLINGS = ["expand", "nonlocal", "nonlocal_global"]
FAMILIES = {"glam_swin": tiny_glam_swin_unet, "maformer": tiny_maformer_unet, "cswin": tiny_cswin_unet}


def unet(family="glam_swin", **options):
    torch.manual_seed(0)
    heads = (1, 2, 4) if family == "glam_swin" else (2, 4, 2)
    sizes = {"depths": (2, 3, 2), "num_heads": heads, "drop_path_rate": 0.3}
    return FAMILIES[family](**{**sizes, **options}).eval()


def drop_path_rates(module):
    return [inner.rate for inner in module.modules() if isinstance(inner, DropPath)]


def bare(module):
    """The module's arrangement of values alone, without its norm."""
    module.norm = nn.Identity()
    return module


def test_expansion_puts_neighbors_where_merging_takes_them_from():
    merge, expand = bare(PatchMerge(1, (2, 2))), bare(PatchExpand(4, 1, (2, 2)))
    merge.reduction, expand.expansion = nn.Identity(), nn.Identity()
    image = torch.arange(24.0).reshape(1, 4, 6, 1)
    merged = merge(image)[..., [0, 2, 1, 3]]  # merging has sub-rows fastest, expansion sub-columns
    assert torch.equal(expand(merged), image)


def test_expansion_undoes_patches():
    embed, expand = bare(PatchEmbed(1, 16, (4, 4))), bare(PatchExpand(16, 1, (4, 4)))
    nn.init.eye_(embed.projection.weight.data.flatten(1))
    nn.init.zeros_(embed.projection.bias)
    nn.init.eye_(expand.expansion.weight)
    pixels = torch.randn(1, 1, 8, 12)
    torch.testing.assert_close(expand(embed(pixels)).movedim(-1, 1), pixels)


def test_expansion_is_cropped_at_its_end():
    expand, features = PatchExpand(8, 4, (2, 2)), torch.randn(2, 3, 5, 8)
    torch.testing.assert_close(expand(features, (5, 9)), expand(features)[:, :5, :9])


@each("family", [*FAMILIES])
def test_stages_mirror_the_encoder_without_its_bottleneck(family):
    model = unet(family)
    mirrored = [step.stage for step in model.decoder.steps][::-1]
    for ours, theirs in zip(mirrored, model.backbone.encoder.stages, strict=False):
        shapes = [{key: value.shape for key, value in stage.state_dict().items()} for stage in (ours, theirs)]
        assert shapes[0] == shapes[1]
        assert drop_path_rates(ours) == drop_path_rates(theirs) != []
    assert len(mirrored) == len(model.backbone.encoder.stages) - 1


def test_upsampling_drops_paths_at_the_first_rate_of_the_stage_that_it_reaches():
    model = unet()
    for step in model.decoder.steps:
        assert step.upsample.drop_path.rate == step.stage.blocks[0].drop_path.rate
    assert model.decoder.steps[0].upsample.drop_path.rate > 0


@each("family", [*FAMILIES])
@each("upsampling", UPSAMPLINGS)
def test_the_decoder_is_its_figure_written_out(upsampling, family):
    model = unet(family, upsampling=upsampling)
    pixels = torch.randn(1, 3, 50, 75)
    decoder, encoded = model.decoder, model.backbone.encoder(pixels)
    first, second, third = encoded.inputs
    with torch.no_grad():
        features = model.backbone.norms["stage3"](model.backbone.encoder.stages[2](third))
        for step, skip in zip(decoder.steps, (second, first), strict=True):
            features = step.stage(step.fuse(torch.cat([step.upsample(features, skip), skip], dim=-1)))
        logits = model.classifier(decoder.expand(decoder.norm(features)).movedim(-1, 1))
        torch.testing.assert_close(model(pixels).logits, logits)
    assert logits.shape[2:] == (52, 76)


@each(("family", "widths"), [("glam_swin", (8, 16, 32)), ("maformer", (8, 16, 16))])
def test_feature_maps_have_the_strides_and_widths_of_the_pyramid(family, widths):
    maps = unet(family).backbone(torch.randn(1, 3, 50, 75)).feature_maps
    grids = [(13, 19), (7, 10), (4, 5)]
    assert [tuple(map_.shape[1:]) for map_ in maps] == [
        (width, *grid) for width, grid in zip(widths, grids, strict=True)
    ]


# One block of MAFormer: its convolution of values reads padding beside the image, which a second block would spread.
SIZES = {"glam_swin": {"depths": (2, 2)}, "maformer": {"depths": (1, 2), "hidden_sizes": (8, 16)}}


@each("family", [*SIZES])
@each("upsampling", UPSAMPLINGS)
@torch.no_grad()
def test_padding_does_not_reach_the_image_through_the_decoder(upsampling, family):
    decoder = unet(family, upsampling=upsampling, num_heads=(2, 2), **SIZES[family]).decoder
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.4)
    mask = torch.ones(1, 128, 32)
    mask[:, 64:] = 0  # half of each map, whole windows
    maps = [torch.randn(1, 8, 32, 8), torch.randn(1, 16, 16, 4)]
    changed = [map_.clone() for map_ in maps]
    for map_ in changed:
        map_[:, :, map_.shape[2] // 2 :] = torch.randn(map_[:, :, map_.shape[2] // 2 :].shape)
    expected, padded = decoder(maps, mask).feature_map, decoder(changed, mask).feature_map
    inner = slice(8, 56)  # in no shifted window with padding, be it by the cyclic shift
    torch.testing.assert_close(padded[:, :, inner], expected[:, :, inner])
    difference = decoder(changed).feature_map - decoder(maps).feature_map
    assert difference[:, :, inner].abs().max() > 1e-4


def test_a_stage_that_its_nominal_grid_makes_one_window_never_shifts():
    model = unet(pretrain_image_size=36, window_size=4)  # nominal grids 9, 4 and 2
    stages = [*model.backbone.encoder.stages, *(step.stage for step in model.decoder.steps)]
    assert [stage.window for stage in stages] == [(4, 4), (4, 4), (2, 2), (4, 4), (4, 4)]
    shifts = [any(stage.cut(torch.zeros(1, 9, 9, 8), None, True).windows.shift) for stage in stages]
    assert shifts == [True, False, False, False, True]


def test_a_large_pretrain_image_size_changes_nothing():
    one, other = unet(pretrain_image_size=512), unet()
    other.load_state_dict(one.state_dict())
    pixels = torch.randn(1, 3, 40, 56)
    with torch.no_grad():
        assert torch.equal(one(pixels).logits, other(pixels).logits)


def test_without_global_tokens_it_is_swin_unet():
    names = [name for name, _ in unet(num_global_tokens=0, upsampling="expand").named_parameters()]
    assert not [name for name in names if "global" in name]


def test_attentions_are_those_of_the_encoder():
    model = unet(attn_implementation="eager", num_global_tokens=0)
    attentions = model(torch.randn(1, 3, 32, 32), output_attentions=True).attentions
    assert len(attentions) == sum(model.config.depths)


def test_global_attention_maps_show_the_encoder():
    maps = global_attention_maps(unet(), torch.randn(2, 3, 33, 50), position=(5, 9))
    assert maps.shape == (2, 33, 50)
    torch.testing.assert_close(maps.sum(dim=(1, 2)), torch.ones(2))


@pytest.mark.slow
def test_global_upsampling_exports_with_free_batch_height_and_width():
    model, free = tiny_glam_swin_unet(upsampling="nonlocal_global").eval(), torch.export.Dim.AUTO
    sizes = {"pixel_values": {0: free, 2: free, 3: free}}
    program = torch.export.export(model, (torch.randn(2, 3, 37, 53),), dynamic_shapes=sizes, strict=False)
    for size in [(1, 3, 64, 64), (3, 3, 37, 70)]:
        pixels = torch.randn(size)
        torch.testing.assert_close(program.module()(pixels).logits, model(pixels).logits)


def test_the_width_of_another_decoder_in_a_checkpoint_is_refused_with_advice(tmp_path):
    config = GlamSwinConfig.preset("nano", depths=(1, 1), num_heads=(1, 1), num_labels=2)
    GlamSwinForSemanticSegmentation(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="pass decoder_hidden_size=32"):
        GlamSwinForSemanticSegmentation.from_pretrained(tmp_path, decoder="unet")
