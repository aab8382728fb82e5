import pytest
import torch
import torch.nn.functional as F
from cases import each

from contextseg import CswinBackbone, CswinConfig, CswinForImageClassification
from contextseg.modeling.cross_shaped import (
    COLUMNS,
    ROWS,
    CrossShapedAttention,
    LocallyEnhancedPosition,
    StripeAttention,
    cut_stripes,
    join_stripes,
    plan_stripes,
)

GRIDS = [(6, 8), (7, 9), (1, 1), (5, 2)]


def stripe_attention(axis, width, masks_padding=True):
    torch.manual_seed(0)
    module = StripeAttention(CswinConfig(), 8, 4, axis, width, masks_padding).eval()
    torch.nn.init.normal_(module.position.weight)
    return module


def attended(query, key, value):
    """(N, 8) thrice -> (N, 8): two heads, written out."""
    heads = [part.unflatten(-1, (2, 4)).transpose(0, 1) for part in (query, key, value)]
    scores = (heads[0] @ heads[1].transpose(1, 2) / 2).softmax(dim=-1)
    return (scores @ heads[2]).transpose(0, 1).flatten(1)


@each("pads_both_ends", [False, True])
@each("width", [0, 1, 2, 3])
@each("axis", [COLUMNS, ROWS])
@each("grid", GRIDS)
def test_joining_undoes_cutting(grid, axis, width, pads_both_ends):
    features = torch.randn(2, *grid, 4)
    stripes = plan_stripes(grid, axis, width, pads_both_ends)
    assert torch.equal(join_stripes(cut_stripes(features, stripes), stripes), features)


@each("width", [1, 2, 3])
@each("axis", [COLUMNS, ROWS])
@each("grid", GRIDS)
def test_each_stripe_attends_to_its_real_places_alone(grid, axis, width):
    module = stripe_attention(axis, width)
    maps = torch.randn(3, 1, *grid, 8)
    ours = module(*maps)[0].transpose(1, 1 + axis)[0]
    turned = maps[:, 0].transpose(1, 1 + axis)  # so that every stripe is a range of the first axis
    kernel = module.position.weight if axis == ROWS else module.position.weight.transpose(2, 3)
    for first in range(0, turned.shape[1], width):
        parts = turned[:, first : first + width]
        places = F.conv2d(parts[2].movedim(-1, 0)[None], kernel, module.position.bias, padding=1, groups=8)[
            0
        ].movedim(0, -1)
        expected = attended(*parts.flatten(1, 2)).reshape(parts[2].shape) + places
        torch.testing.assert_close(ours[first : first + width], expected)


def test_official_padding_takes_weight_and_masked_padding_does_not():
    maps = torch.randn(3, 1, 4, 5, 8)
    masked, official = (stripe_attention(COLUMNS, 2, masks)(*maps)[0] for masks in (True, False))
    assert (masked - official).abs().max() > 0.05
    maps = maps[:, :, :, :4]
    masked, official = (stripe_attention(COLUMNS, 2, masks)(*maps)[0] for masks in (True, False))
    torch.testing.assert_close(masked, official)


def test_hidden_places_are_not_attended_to():
    module, maps = stripe_attention(COLUMNS, 2), torch.randn(3, 1, 6, 5, 8)
    padding_mask = torch.ones(1, 6, 5, dtype=torch.bool)
    padding_mask[:, 4:] = False
    changed = maps.clone()
    changed[1:, :, 5:] = torch.randn(2, 1, 1, 5, 8)  # two rows away from what is visible, out of LePE's reach
    torch.testing.assert_close(
        module(*changed, padding_mask)[0][:, :4], module(*maps, padding_mask)[0][:, :4]
    )


def test_the_first_half_of_the_channels_has_vertical_stripes():
    attention = CrossShapedAttention(CswinConfig(), 8, 2, width=1).eval()
    torch.nn.init.eye_(attention.o_proj.weight)
    torch.nn.init.eye_(attention.v_proj.weight)
    changed = torch.zeros(1, 4, 5, 8)
    changed[0, 2, 3] = 1.0
    with torch.no_grad():
        difference = (attention(changed)[0] - attention(torch.zeros(1, 4, 5, 8))[0])[0].abs() > 1e-6
    assert difference[:, 3, :4].all()
    assert not difference[:, :3, :4].any()
    assert difference[2, :, 4:].all()
    assert not difference[:2, :, 4:].any()


def test_a_window_over_the_whole_grid_has_one_branch():
    attention = CrossShapedAttention(CswinConfig(), 8, 1, width=0).eval()
    probabilities = (
        CswinBackbone(CswinConfig.preset("nano", attn_implementation="eager"))
        .eval()(torch.randn(1, 3, 64, 64), output_attentions=True)
        .attentions
    )
    assert len(attention.branches) == 1
    assert probabilities[-1].shape == (1, 16, 4, 4)
    assert len(probabilities) == 2 * (1 + 2 + 4) + 1


@each(("padding", "grid"), [("masked", (18, 24)), ("official", (17, 23))])
def test_official_backbones_leave_out_pixels_that_fill_no_patch(padding, grid):
    backbone = CswinBackbone(CswinConfig.preset("nano", stripe_padding=padding)).eval()
    assert backbone(torch.randn(1, 3, 70, 93)).feature_maps[0].shape[2:] == grid
    assert backbone(torch.randn(1, 3, 1, 2)).feature_maps[-1].shape[2:] == (1, 1)


def test_paddings_agree_where_nothing_is_padded():
    options = {"hidden_sizes": (8, 16), "depths": (1, 1), "num_heads": (2, 4), "stripe_widths": (1, 2)}
    masked, official = (
        CswinBackbone(CswinConfig(**options, stripe_padding=padding)).eval()
        for padding in ("masked", "official")
    )
    official.load_state_dict(masked.state_dict())
    pixels = torch.randn(1, 3, 32, 48)
    torch.testing.assert_close(official(pixels).feature_maps, masked(pixels).feature_maps)


def test_the_classifier_trains_every_parameter():
    model = CswinForImageClassification(CswinConfig.preset("nano", num_labels=3)).train()
    model(torch.randn(2, 3, 32, 32), labels=torch.tensor([0, 2])).loss.backward()
    assert [key for key, value in model.named_parameters() if value.grad is None] == []


@each(
    ("options", "message"),
    [
        ({"stripe_widths": (1, 2)}, "one entry per stage"),
        ({"stripe_widths": (1, -2, 7, 0)}, "stripe_widths is .* a whole number from 0"),
        ({"num_heads": (1, 4, 8, 16)}, "even number"),
        ({"stripe_padding": "none"}, "Use 'masked' or 'official'"),
    ],
)
def test_settings_that_cannot_be_built_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CswinConfig(**options)


def test_official_padding_puts_the_smaller_half_in_front():
    before = [plan_stripes((4, size), COLUMNS, 7, pads_both_ends=True).before for size in (14, 13, 12, 11)]
    assert before == [0, 0, 1, 1]


def test_the_convolution_of_values_starts_as_torchs_own():
    (position, *_) = (
        module
        for module in CswinBackbone(CswinConfig.preset("nano")).modules()
        if isinstance(module, LocallyEnhancedPosition)
    )
    assert 0.3 < position.weight.abs().max() <= 1 / 3  # the bound for nine inputs
