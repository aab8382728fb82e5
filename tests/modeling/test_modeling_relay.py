"""Relay tokens: what they carry from one scale to the other, and what the losses of both scales train."""

import torch
from cases import each
from tiny import tiny_relay, tiny_relay_swinv2

from contextseg.modeling.scale_losses import scale_losses
from contextseg.modeling.two_scale import PairScores

BUILDERS = {"vit": tiny_relay, "swinv2": tiny_relay_swinv2}


def gradient_outside(model):
    """The gradient of a pixel's logit to the context, which lies outside the local crop wherever it is not 0."""
    local, context = torch.randn(2, 1, 3, 16, 16)
    context.requires_grad_()
    model.eval()(local, context_values=context).logits[0, 0, 1, 1].backward()
    return torch.zeros(()) if context.grad is None else context.grad


@each(("encoder", "rule"), [(encoder, rule) for encoder in BUILDERS for rule in ("sequential", "mean")])
def test_relay_tokens_alone_carry_what_lies_outside_the_local_crop(encoder, rule):
    build = BUILDERS[encoder]
    assert gradient_outside(build(relay_update=rule)).any()
    assert not gradient_outside(build(relay_update=rule, num_relay_tokens=0)).any()


@each("build", BUILDERS)
def test_a_tile_of_an_image_sees_pixels_of_other_tiles_through_relay_tokens_only(build):
    for tokens in (0, 2):
        model, image = build(num_relay_tokens=tokens).eval(), torch.randn(1, 3, 16, 48)
        image.requires_grad_()
        model(image).logits[0, 0, 0, 0].backward()
        assert image.grad[..., :16].any()
        assert image.grad[..., 16:].any() == (tokens > 0)


def test_without_relay_tokens_the_two_rules_are_equal():
    model, images = tiny_relay(num_relay_tokens=0).eval(), torch.randn(1, 3, 20, 20)
    other = tiny_relay(num_relay_tokens=0, relay_update="merge").eval()
    other.load_state_dict(model.state_dict())
    assert other.config.relay_update == "mean"
    torch.testing.assert_close(other(images).logits, model(images).logits)


def test_a_detached_consistency_leaves_the_local_logits_alone():
    labels = torch.zeros(1, 8, 8).long()
    for detach in (False, True):
        local, context = (torch.randn(1, 3, 8, 8, requires_grad=True) for _ in range(2))
        scale_losses(local, context, labels, ratio=4, detach_consistency=detach).consistency.backward()
        assert context.grad.any()
        assert (local.grad is None or not local.grad.any()) == detach


def test_the_configuration_decides_whether_the_consistency_is_detached():
    labels = torch.zeros(1, 16, 16).long()
    for detach in (False, True):
        logits = torch.randn(2, 1, 3, 16, 16, requires_grad=True)
        model = tiny_relay(detach_consistency=detach)
        model.context_loss(PairScores(logits[0], context=logits[1]), labels, None).backward()
        assert logits.grad[0].any() != detach


@each("side", [1, 3, 4, 6, 17])
def test_crops_of_any_side_have_finite_losses_and_gradients(side):
    local, context = torch.randn(2, 1, 3, side, side, requires_grad=True)
    losses = scale_losses(local, context, torch.zeros(1, side, side).long(), ratio=4)
    sum(losses).backward()
    assert all(loss.isfinite() for loss in losses)
    assert sum(losses) > 0 or side < 4


def test_the_context_learns_within_the_footprint_of_the_crop_only():
    local, context = torch.randn(2, 1, 3, 16, 16)
    context.requires_grad_()
    sum(scale_losses(local, context, torch.zeros(1, 16, 16).long(), ratio=4)).backward()
    assert context.grad[..., 6:10, 6:10].all()
    context.grad[..., 6:10, 6:10] = 0
    assert not context.grad.any()
