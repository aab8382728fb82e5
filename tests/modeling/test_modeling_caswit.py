import pytest
import torch
from cases import each
from tiny import LABELS, tiny_caswit
from transformers import AutoModelForSemanticSegmentation, SwinBackbone, SwinConfig

from contextseg import (
    CaswitConfig,
    CaswitForSemanticSegmentation,
    GlamSwinConfig,
    GlamSwinForSemanticSegmentation,
)

SWIN = {"embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2), "window_size": 4}
GATE_VALUES = ("gate.value", "mlp_gate.value")


def pair(side=16, channels=3):
    return torch.randn(2, channels, side, side), torch.randn(2, channels, side, side)


def some_labels(side=16):
    return torch.randint(0, len(LABELS), (2, side, side))


def caswit(**options):
    torch.manual_seed(0)
    return tiny_caswit(**options).eval()


def plain_swin(model):
    """Our Swin with the local branch of a CASWiT."""
    names = ("decoder", "decoder_hidden_size", "auxiliary_hidden_size", "upsampling")
    shared = {name: getattr(model.config, name) for name in names}
    config = GlamSwinConfig(**SWIN, **shared, id2label=LABELS, num_global_tokens=0)
    weights = {key.replace("encoder.local.", "encoder."): value for key, value in model.state_dict().items()}
    swin = GlamSwinForSemanticSegmentation(config).eval()
    swin.load_state_dict({key: weights[key] for key in swin.state_dict()})
    return swin


@each(
    "options",
    [
        {},
        {"gate": "scalar", "fusion_mlp_ratio": 0},
        {"decoder": "unet", "decoder_hidden_size": None, "upsampling": "nonlocal"},
        {"decoder": "semantic_fpn", "tie_encoders": True},
        {"fusion_feeds_next_stage": False, "kv_pooling": (2, 1)},
    ],
)
def test_with_gates_of_zero_it_is_our_swin_with_its_decoder(options):
    model = caswit(**{"gate": "channel", **options})
    crops, context = pair()
    with torch.no_grad():
        assert torch.equal(model(crops, context).logits, plain_swin(model)(crops).logits)


@each("options", [{}, {"tie_encoders": True}, {"kv_pooling": (3, 2)}, {"fusion_feeds_next_stage": False}])
def test_cached_features_of_a_context_give_the_bits_of_the_context(options):
    model, (crops, context) = caswit(**options), pair()
    with torch.no_grad():
        cached = model.context_features(context)
        assert torch.equal(model(crops, context_features=cached).logits, model(crops, context).logits)


def test_crops_share_the_features_of_their_context():
    model, (crops, context) = caswit(), pair()
    with torch.no_grad():
        shared = [features.expand(2, -1, -1, -1) for features in model.context_features(context[:1])]
        together = model(crops, context_features=tuple(shared)).logits
    torch.testing.assert_close(together[1:], model(crops[1:], context[:1]).logits)


@each("given", ["labels", "context_values"])
def test_cached_features_are_for_inference_only(given):
    model, (crops, context) = caswit(), pair()
    others = {"labels": some_labels(), "context_values": context}
    with pytest.raises(ValueError, match="context_features come with"):
        model(crops, context_features=model.context_features(context), **{given: others[given]})


@each(
    ("changed", "found"),
    {
        "one of two": (lambda cached: cached[:1], r"\[\(2, 8, 4, 4\)\]"),
        "none": (lambda _: (), r"\[\]"),
        "from coarse to fine": (lambda cached: cached[::-1], r"\[\(2, 16, 2, 2\), \(2, 8, 4, 4\)\]"),
        "not in a tuple": (lambda cached: cached[0], r"\(2, 8, 4, 4\)"),
        "arrays": (lambda cached: [level.numpy() for level in cached], "of type ndarray"),
    },
)
@torch.no_grad()
def test_other_features_than_those_of_the_context_are_refused(changed, found):
    model, (crops, context) = caswit(), pair()
    with pytest.raises(ValueError, match=rf"context_features is .*{found}.* with \[8, 16\] channels"):
        model(crops, context_features=changed(model.context_features(context)))


@each("gate", ["none", "dynamic"])
def test_an_open_gate_sees_the_context(gate):
    model, (crops, context) = caswit(gate=gate), pair()
    context.requires_grad_()
    model(crops, context).logits[:, :, 0, 0].sum().backward()
    assert (context.grad.abs().amax(1) > 0).float().mean() > 0.9


@each("feeds", [True, False])
def test_the_context_does_not_depend_on_the_crop(feeds):
    model, (crops, context) = caswit(fusion_feeds_next_stage=feeds), pair()
    crops.requires_grad_()
    for features in model.backbone(crops, context).context_maps.outputs:
        assert torch.autograd.grad(features.sum(), crops, allow_unused=True) == (None,)


def test_fusion_feeds_the_next_stage_unless_it_is_for_the_decoder_only():
    feeding, (crops, context) = caswit(), pair()
    apart = caswit(fusion_feeds_next_stage=False)
    apart.load_state_dict(feeding.state_dict())
    with torch.no_grad():
        fed = feeding(crops, context, output_hidden_states=True).hidden_states
        own = apart(crops, context, output_hidden_states=True).hidden_states
    assert torch.equal(fed[1], own[1])
    assert not torch.equal(fed[2], own[2])


def test_zero_gates_open_by_their_own_gradient():
    model, (crops, context) = caswit(gate="channel").train(), pair()
    model(crops, context, labels=some_labels(), context_labels=some_labels()).loss.backward()
    gradients = {name: value.grad for name, value in model.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    fusions = {name: gradient for name, gradient in gradients.items() if ".fusions." in name}
    moving = {name for name, gradient in fusions.items() if gradient.any()}
    assert moving == {name for name in fusions if name.endswith(GATE_VALUES)}


def test_the_loss_of_the_context_has_labels_and_a_weight_of_its_own():
    model, (crops, context) = caswit(), pair()
    labels, context_labels = some_labels(), some_labels()

    def loss(weight, **given):
        model.config.context_loss_weight = weight
        return model(crops, context, labels=labels, **given).loss.item()

    local = loss(0.4)
    assert loss(0.0, context_labels=context_labels) == local
    terms = [loss(weight, context_labels=context_labels) - local for weight in (0.5, 1.0)]
    assert terms[1] == pytest.approx(2 * terms[0], rel=1e-4)
    assert terms[0] > 0.1


@each("decoder", ["one_step", "progressive", "segdeformer", "semantic_fpn", "unet", "upernet"])
@torch.no_grad()
def test_every_decoder_gives_logits_of_the_context_like_those_of_the_crop(decoder):
    scores, _ = caswit(decoder=decoder).score_pairs(*pair(), has_labels=True)
    assert scores.context.shape == scores.local.shape


def test_the_context_head_is_not_used_at_inference():
    model, (crops, context) = caswit(), pair()
    expected = model(crops, context).logits
    model.context_head.forward = None
    assert torch.equal(model(crops, context).logits, expected)


def test_tied_encoders_share_their_weights_and_survive_saving(tmp_path):
    model, (crops, context) = caswit(tie_encoders=True), pair()
    assert not [key for key in model.state_dict() if "encoder.context" in key]
    model.save_pretrained(tmp_path)
    loaded = CaswitForSemanticSegmentation.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(crops, context).logits, model(crops, context).logits)
    context_only = model.backbone.encoder.encode_context(context).outputs
    local_only = model.backbone.encoder.local(context).outputs
    assert all(torch.equal(one, other) for one, other in zip(context_only, local_only, strict=True))


def test_a_model_is_found_by_its_auto_class(tmp_path):
    caswit().save_pretrained(tmp_path)
    assert type(AutoModelForSemanticSegmentation.from_pretrained(tmp_path)) is CaswitForSemanticSegmentation


def test_both_encoders_start_from_a_swin(tmp_path):
    swin = SwinBackbone(SwinConfig(**SWIN, out_features=["stage1", "stage2"])).eval()
    swin.save_pretrained(tmp_path)
    sizes = {"decoder_hidden_size": 8, "auxiliary_hidden_size": 8, "crop_size": 16, "id2label": LABELS}
    model = CaswitForSemanticSegmentation.from_swin(tmp_path, **sizes)
    crops, context = pair()
    with torch.no_grad():
        outputs, expected = model.backbone(crops, context), swin(crops).feature_maps
        head = model.context_head.norms(outputs.context_maps)
        torch.testing.assert_close(outputs.feature_maps, expected, atol=1e-5, rtol=0)
        for found, wanted in zip(head, swin(context).feature_maps, strict=True):
            torch.testing.assert_close(found.movedim(-1, 1), wanted, atol=1e-5, rtol=0)


@each(
    ("options", "message"),
    [
        ({"gate": "chanel"}, "no gate 'chanel', did you mean 'channel'"),
        ({"kv_pooling": (1, 1, 1)}, "kv_pooling has 3 entries for 2 stages"),
        (
            {"decoder": "unet", "decoder_hidden_size": None, "fusion_feeds_next_stage": False},
            "Change one of the two",
        ),
        ({"context_ratio": 0}, "context_ratio is 0, but must be a whole number from 1"),
    ],
)
def test_impossible_fusions_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tiny_caswit(**options)


def test_the_default_is_what_the_authors_name():
    config = CaswitConfig()
    assert (config.embed_dim, config.window_size, config.crop_size, config.context_ratio) == (128, 12, 512, 2)
    assert config.kv_pooling == (1, 1, 1, 1)
