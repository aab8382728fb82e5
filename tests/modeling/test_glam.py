"""GLAM in encoders of transformers and timm: without tokens, or with hidden ones, they are the encoders themselves."""

from copy import deepcopy

import glam_hosts
import pytest
import torch
from cases import each, slow_but
from glam_hosts import HOSTS
from torch import nn
from transformers import (
    AutoBackbone,
    Dinov2Config,
    PvtV2Config,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from contextseg import (
    GlamBackbone,
    GlamConfig,
    GlamSwinBackbone,
    GlamSwinConfig,
    SegDeformerForSemanticSegmentation,
    add_global_tokens,
    global_attention_maps,
)
from contextseg.modeling import windowed_blocks
from contextseg.modeling.backbones import build_backbone
from contextseg.modeling.modeling_glam import with_tokens

PATHS = ("bare", "half", "transformer")
each_host = pytest.mark.parametrize("name", slow_but(HOSTS, "swinv2"))


def encoder_of(config, std=0.2):
    """An encoder in the adapter, whose random matrices let each layer change the features."""
    torch.manual_seed(0)
    backbone = build_backbone(config).eval()
    for parameter in backbone.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=std)
    return backbone


def images(count=2, size=(64, 64)):
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def maps(backbone, pixels):
    return backbone.eval()(pixels).feature_maps


def close(found, expected, tolerance=1e-5):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance * max(1, other.abs().max()), rtol=0)


def hide_tokens(monkeypatch, num_tokens):
    """Makes the windows' keys of global tokens invisible."""

    def attend(module, query, key, value, bias=None):
        hidden = torch.zeros(1, 1, 1, key.shape[2])
        hidden[..., :num_tokens] = float("-inf")
        return original(module, query, key, value, hidden if bias is None else bias + hidden)

    original = windowed_blocks.attend
    monkeypatch.setattr(windowed_blocks, "attend", attend)


@each_host
def test_no_tokens_leave_the_encoder_as_it_is(name):
    config = HOSTS[name]()
    plain = encoder_of(config)
    glam = GlamBackbone(GlamConfig(backbone_config=config, num_global_tokens=0))
    glam.encoder.load_state_dict(plain.state_dict())
    assert [*glam.encoder.state_dict()] == [*plain.state_dict()]
    close(maps(glam, images()), maps(plain.encoder, images()), 0)


@each_host
def test_hidden_tokens_leave_the_features_of_the_encoder(name, monkeypatch):
    plain = encoder_of(HOSTS[name]())
    glam = with_tokens(deepcopy(plain), 3, "bare", "all")
    expected = maps(plain.encoder, images())
    assert (maps(glam, images())[1] - expected[1]).abs().max() > 1e-3
    hide_tokens(monkeypatch, 3)
    close(maps(glam, images()), expected)


@each("size", [(60, 90), (33, 17)])
def test_hidden_tokens_leave_the_features_where_windows_need_padding(size, monkeypatch):
    plain = encoder_of(glam_hosts.swinv2())
    expected = maps(plain.encoder, images(size=size))
    hide_tokens(monkeypatch, 2)
    close(maps(with_tokens(plain, 2, "bare", "all"), images(size=size)), expected)


@each_host
def test_the_encoder_keeps_its_weights_under_their_names(name):
    encoder = encoder_of(HOSTS[name]()).encoder
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    after = add_global_tokens(encoder, 2).encoder.encoder.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    added = {key.split(".")[-2] for key in after.keys() - before.keys()}
    assert added == {"initial_tokens", "q_proj", "k_proj", "v_proj", "o_proj"}


@each("path", PATHS)
@each_host
def test_every_parameter_has_a_gradient(name, path):
    glam = GlamBackbone(GlamConfig(backbone_config=HOSTS[name](), num_global_tokens=2, global_block=path))
    sum(feature_map.square().sum() for feature_map in glam.train()(images()).feature_maps).backward()
    assert [key for key, value in glam.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize("path", slow_but(PATHS, "transformer"))
def test_over_swin_it_is_glam_swin(path, tmp_path):
    host = encoder_of(glam_hosts.swin()).encoder
    host.save_pretrained(tmp_path)
    options = {"num_global_tokens": 3, "global_block": path, "out_features": ["stage1", "stage2"]}
    ours = GlamSwinBackbone.from_swin(tmp_path, **options).eval()
    glam = add_global_tokens(host, 3, path)
    for stage, (_, blocks) in zip(ours.encoder.stages, glam.strides_and_blocks(), strict=True):
        blocks[0].initial_tokens.load_state_dict(stage.global_tokens.state_dict())
        own = {key: value for key, value in stage.blocks[0].state_dict().items() if key.startswith("global_")}
        blocks[0].global_step.load_state_dict(own)
    close(maps(glam, images(size=(60, 90))), maps(ours, images(size=(60, 90))))


@pytest.mark.parametrize("name", slow_but(["swin", "swinv2", "nest"], "swinv2"))
def test_without_tokens_a_far_pixel_has_no_gradient_and_with_them_it_has(name):
    seen = []
    for tokens in (0, 2):
        torch.manual_seed(0)
        config = GlamConfig(backbone_config=HOSTS[name](), num_global_tokens=tokens)
        pixels = images(1).requires_grad_()
        GlamBackbone(config).eval()(pixels).feature_maps[0][0, 0, 0, 0].backward()
        seen.append(pixels.grad[..., 34:46, 34:46].abs().max().item())  # windows wrap around the border
    assert seen[0] == 0 < seen[1]


def test_stages_can_be_chosen():
    glam = GlamBackbone(GlamConfig(backbone_config=glam_hosts.swinv2(), num_global_tokens=2, stages=[1]))
    assert [any("initial" in key for key, _ in blocks[0].named_parameters()) for _, blocks in glam.strides_and_blocks()] == [
        False,
        True,
    ]  # fmt: skip


def test_stages_that_no_feature_map_needs_get_no_tokens():
    glam = GlamBackbone(GlamConfig(backbone_config=glam_hosts.swinv2(), out_indices=[0, 1]))
    assert glam.strides == [4, 4]
    sum(feature_map.sum() for feature_map in glam(images()).feature_maps).backward()
    assert [key for key, value in glam.named_parameters() if value.grad is None] == []


def test_added_tokens_are_saved_and_loaded_with_a_segmenter(tmp_path):
    encoder_of(glam_hosts.swinv2()).encoder.save_pretrained(tmp_path / "encoder")
    model = SegDeformerForSemanticSegmentation.from_backbone(tmp_path / "encoder", decoder_hidden_size=8)
    weight = model.backbone.encoder.encoder.layers[0].blocks[1].attention.self.query.weight.clone()
    add_global_tokens(model, 2).eval()
    kept = model.backbone.encoder.encoder.encoder.encoder.layers[0].blocks[1].attention.self.query.weight
    assert torch.equal(kept, weight)
    model.save_pretrained(tmp_path / "model")
    loaded = SegDeformerForSemanticSegmentation.from_pretrained(tmp_path / "model").eval()
    assert loaded.config.backbone_config.num_global_tokens == 2
    with torch.no_grad():
        torch.testing.assert_close(loaded(images()).logits, model(images()).logits)


def test_added_tokens_are_saved_and_loaded_with_upernet_of_transformers(tmp_path):
    torch.manual_seed(0)
    heads = {"hidden_size": 8, "pool_scales": [1, 2], "use_auxiliary_head": False}
    plain = UperNetForSemanticSegmentation(UperNetConfig(backbone_config=glam_hosts.swin(), **heads))
    model = add_global_tokens(plain, 2).eval()
    model.save_pretrained(tmp_path)
    loaded = UperNetForSemanticSegmentation.from_pretrained(tmp_path).eval()
    assert isinstance(loaded.backbone, GlamBackbone)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images()).logits, model(images()).logits)


def test_a_saved_backbone_is_loaded_into_a_segmenter(tmp_path):
    glam = add_global_tokens(encoder_of(glam_hosts.swinv2()).encoder, 2)
    glam.save_pretrained(tmp_path)
    model = SegDeformerForSemanticSegmentation.from_backbone(tmp_path, decoder_hidden_size=8)
    close(maps(model.backbone, images()), maps(glam, images()))


def test_adding_tokens_keeps_device_type_and_mode():
    encoder = encoder_of(glam_hosts.swinv2()).encoder.to(torch.float64).train()
    glam = add_global_tokens(encoder, 2)
    assert {parameter.dtype for parameter in glam.parameters()} == {torch.float64}
    assert glam.training


def test_maps_of_global_attention_are_equation_7():
    glam = with_tokens(encoder_of(glam_hosts.swinv2(), std=0.5), 2, "bare", "all").eval()
    for step in (block.global_step for block in glam.modules() if hasattr(block, "global_step")):
        for parameter in [] if step is None else step.parameters():
            nn.init.normal_(parameter, std=0.5)
    found = global_attention_maps(glam, images(), position=(40, 20), token=1)  # in window 1 * 4 + 2
    glam.set_attn_implementation("eager")
    with torch.no_grad():
        within, across = glam(images(), output_attentions=True).attentions[:2]
    within, across = within.mean(1).unflatten(0, (2, 16))[:, :, :2], across.mean(1)[:, 6 * 2 + 1]
    across = across.unflatten(1, (16, 2))
    taken = torch.einsum("bwt,bwtn->bwn", across, within)
    expected = taken[..., 2:] + taken[..., :2].sum(-1, keepdim=True) / 16
    expected = expected.unflatten(1, (4, 4)).unflatten(3, (4, 4)).transpose(2, 3).reshape(2, 16, 16)
    torch.testing.assert_close(found[:, ::4, ::4], expected / 16)
    assert found.std() > 1e-6


@each(
    "config",
    {"pvt": PvtV2Config(out_features=["stage4"]), "dino": Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2)},
)  # fmt: skip
def test_encoders_without_windows_are_refused_with_what_to_take(config):
    with pytest.raises(ValueError, match=r"has no attention windows .* GlamSwinConfig.* relay tokens"):
        add_global_tokens(AutoBackbone.from_config(config))


@each(
    ("options", "message"),
    [
        ({"backbone_config": GlamSwinConfig()}, "has global tokens already"),
        ({"backbone_config": {"model_type": "cswin"}}, "in stripes, not in windows"),
        ({"global_block": "haf"}, "global_block is 'haf'"),
        ({"stages": "last"}, "stages is 'last'"),
        ({"stages": [-1]}, "stages is"),
        ({"num_global_tokens": -1}, "num_global_tokens is -1"),
        ({"num_global_token": 1}, "did you mean 'num_global_tokens'"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GlamConfig(**options)


def test_a_stage_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="the encoder has 2. Use 0 to 1"):
        GlamBackbone(GlamConfig(backbone_config=glam_hosts.swinv2(), stages=[2]))


def test_an_encoder_that_returns_its_last_stage_alone_is_refused():
    encoder = AutoBackbone.from_config(glam_hosts.swinv2(out_indices=[2]))
    with pytest.raises(ValueError, match=r"Load it with out_indices=\[1, 2\]"):
        add_global_tokens(encoder)


def test_attention_dropout_is_refused():
    with pytest.raises(ValueError, match="drops attention probabilities"):
        GlamBackbone(GlamConfig(backbone_config=glam_hosts.swinv2(attention_probs_dropout_prob=0.1)))
