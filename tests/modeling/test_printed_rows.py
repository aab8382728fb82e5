"""Options with which the networks of the papers' printed rows are built: flat maps, depths, and encoders changed in part."""

import pytest
import torch
from cases import each
from tiny import LABELS, PLAIN_VIT, tiny_segdeformer
from transformers import SwinConfig, SwinForImageClassification, TimmBackbone, TimmBackboneConfig

from contextseg import MaskRcnnConfig, SegDeformerConfig, SegDeformerForSemanticSegmentation
from contextseg.modeling.decoder_semantic_fpn import SemanticFpnDecoder
from contextseg.modeling.pyramid_fusion import ConvFusion, SegformerFusion

SMALL_DECODER = {"decoder_hidden_size": 8, "auxiliary_hidden_size": 8, "id2label": LABELS}
SWIN = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
TIMM = {"embed_dim": 12, "depth": 4, "num_heads": 2}


@each("options", [{"decoder": "upernet"}, {"neck": "upernet", "use_auxiliary_head": True}])
def test_upernet_takes_the_maps_of_a_plain_transformer_as_they_are(options):
    pixels, labels = torch.randn(2, 3, 48, 40), torch.randint(0, 3, (2, 48, 40))
    kept, pyramid = (
        tiny_segdeformer(backbone_config=PLAIN_VIT, flat_maps=maps, auxiliary_map=-1, **options)
        for maps in ("keep", None)
    )
    assert kept.backbone.strides == (8, 8, 8, 8)
    assert kept.backbone.pyramid is None
    assert pyramid.backbone.strides == (2, 4, 8, 16)
    kept.train()(pixels, labels=labels).loss.backward()
    assert all(parameter.grad is not None for parameter in kept.parameters())
    assert kept.eval()(pixels).logits.shape == (2, 3, 6, 5)


def test_an_auxiliary_head_needs_a_map_that_is_there():
    with pytest.raises(
        ValueError, match="auxiliary_map is -3, but the backbone returns 2 feature maps. Use -2 to 1"
    ):
        tiny_segdeformer(use_auxiliary_head=True, auxiliary_map=-3)


@each("fusion", [ConvFusion, SegformerFusion])
def test_every_further_layer_of_the_decoder_is_a_projection_with_batch_norm(fusion):
    two, four = (fusion([4, 6], 8, depth).eval() for depth in (2, 4))
    numbers = [sum(parameter.numel() for parameter in neck.parameters()) for neck in (two, four)]
    assert numbers[1] - numbers[0] == 2 * (8 * 8 + 2 * 8)
    maps = [torch.randn(2, 4, 8, 8), torch.randn(2, 6, 4, 4)]
    four.load_state_dict(two.state_dict(), strict=False)
    fused = two(maps).feature_map
    for layer in four.deeper:
        with torch.no_grad():
            layer.convolution.weight.copy_(torch.eye(8)[:, :, None, None])
    torch.testing.assert_close(four(maps).feature_map, fused / (1 + 1e-5), rtol=1e-4, atol=1e-5)


def test_a_neck_without_a_depth_says_so():
    with pytest.raises(ValueError, match="neck_depth is 3, but the neck 'upernet' has a depth of its own"):
        SegDeformerConfig(neck="upernet", neck_depth=3)


def test_the_semantic_branch_has_no_pyramid():
    maps = [torch.randn(1, 4, 9, 7), torch.randn(1, 6, 5, 4)]
    branch = SemanticFpnDecoder([4, 6], 8, use_pyramid=False)
    assert branch(maps).feature_map.shape == (1, 8, 9, 7)
    assert not list(branch.pyramid.parameters())


@each("config_class", [SegDeformerConfig, MaskRcnnConfig])
def test_a_dictionary_without_a_type_changes_the_encoder_of_a_preset(config_class):
    before = config_class.preset("nano").backbone_config
    after = config_class.preset("nano", backbone_config={"drop_path_rate": 0.25}).backbone_config
    assert after.drop_path_rate == 0.25
    assert {**after.to_dict(), "drop_path_rate": 0} == {**before.to_dict(), "drop_path_rate": 0}


CHANGES = {
    "a misspelled field": (
        {"drop_path_ratee": 0.1},
        "the backbone 'swin' has no option 'drop_path_ratee', did you mean",
    ),
    "another type": ({"model_type": "vit"}, "of type 'vit', but the encoder is 'swin'"),
    "an impossible size": ({"embed_dim": -4}, "embed_dim"),
}


@each(("changes", "message"), CHANGES)
def test_a_change_that_the_encoder_does_not_have_is_refused(changes, message, tmp_path):
    SwinForImageClassification(SwinConfig(**SWIN, image_size=32)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        SegDeformerForSemanticSegmentation.from_backbone(tmp_path, backbone_config=changes, **SMALL_DECODER)


def test_a_checkpoint_gives_its_weights_to_an_encoder_with_other_options(tmp_path):
    source = SwinForImageClassification(SwinConfig(**SWIN, image_size=32, drop_path_rate=0.1))
    source.save_pretrained(tmp_path)
    model = SegDeformerForSemanticSegmentation.from_backbone(
        tmp_path, backbone_config={"drop_path_rate": 0.4}, **SMALL_DECODER
    )
    assert model.config.backbone_config.drop_path_rate == 0.4
    (loaded,) = (value for name, value in model.named_parameters() if name.endswith("projection.weight"))
    assert torch.equal(loaded, source.swin.embeddings.patch_embeddings.projection.weight)


@each("labels", [{}, {"id2label": {0: "one", 1: "more"}}])
def test_a_segmenter_is_continued_with_other_options_of_its_encoder(labels, tmp_path):
    old = tiny_segdeformer(backbone_config={"model_type": "swin", **SWIN})
    old.save_pretrained(tmp_path)
    new = type(old).from_pretrained(tmp_path, backbone_config={"drop_path_rate": 0.4}, **labels)
    assert new.config.backbone_config.drop_path_rate == 0.4
    assert new.config.backbone_config.embed_dim == 8
    assert torch.equal(next(new.parameters()), next(old.parameters()))


def test_positions_of_timms_weights_are_resized_to_the_size_of_the_crops(tmp_path):
    config = TimmBackboneConfig(backbone="deit_tiny_patch16_224", out_indices=[-1])
    weights = TimmBackbone(config, **TIMM)._backbone.model.state_dict()
    torch.save(weights, tmp_path / "weights.pth")
    options = {**TIMM, "img_size": 64, "pretrained_cfg_overlay": {"file": str(tmp_path / "weights.pth")}}
    model = SegDeformerForSemanticSegmentation.from_backbone(
        "deit_tiny_patch16_224", backbone_config={"model_kwargs": options}, flat_maps="keep", **SMALL_DECODER
    )
    encoder = model.backbone.encoder._backbone.model
    assert encoder.pos_embed.shape == (1, 4 * 4 + 1, 12)
    assert torch.equal(encoder.pos_embed[:, :1], weights["pos_embed"][:, :1])
    assert torch.equal(encoder.patch_embed.proj.weight, weights["patch_embed.proj.weight"])
