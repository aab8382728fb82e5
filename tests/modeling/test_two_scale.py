"""Pairs of crops: how they are cut from a whole image, and what segmenters with two scales make of them."""

import pytest
import torch
import torch.nn.functional as F
from cases import each
from tiny import tiny_relay, tiny_relay_swinv2

from contextseg.modeling import two_scale
from contextseg.modeling.crop_pairs import context_labels_of, contexts_of, joined_tiles, tiles_of

SIDES_AND_RATIOS = [(8, 4), (6, 4), (8, 3), (5, 2), (4, 1)]
SIZE = (17, 9)


def areas(images, side, ratio, outside):
    """The area around each tile, pixel by pixel: (B, C, H, W) -> (tiles, C, ratio * side, ratio * side)."""
    before, (height, width) = (ratio - 1) * side // 2, images.shape[2:]
    padded = F.pad(images, (ratio * side,) * 4, value=outside)
    found = []
    for image in padded:
        for top in range(0, height, side):
            for left in range(0, width, side):
                row, column = (first - before + ratio * side for first in (top, left))
                found.append(image[:, row : row + ratio * side, column : column + ratio * side])
    return torch.stack(found)


@each(("side", "ratio"), SIDES_AND_RATIOS)
def test_the_context_of_a_tile_is_the_area_around_it_averaged_in_blocks(side, ratio):
    images = torch.randn(2, 3, *SIZE)
    expected = F.avg_pool2d(areas(images, side, ratio, 0), ratio)
    torch.testing.assert_close(contexts_of(images, side, ratio), expected)


@each(("side", "ratio"), SIDES_AND_RATIOS)
def test_labels_of_a_context_are_those_at_the_centers_of_its_blocks(side, ratio):
    labels = torch.randint(0, 5, (2, *SIZE))
    expected = areas(labels[:, None], side, ratio, 255)[:, 0, ratio // 2 :: ratio, ratio // 2 :: ratio]
    assert torch.equal(context_labels_of(labels, side, ratio, 255), expected)


@each("side", [1, 4, 8, 32])
def test_tiles_put_together_are_the_image(side):
    images = torch.randn(2, 3, *SIZE)
    assert torch.equal(joined_tiles(tiles_of(images, side), SIZE, side), images)


def test_a_whole_image_gives_the_logits_of_its_pairs():
    model, images = tiny_relay_swinv2().eval(), torch.randn(2, 3, 16, 48)
    with torch.no_grad():
        whole = model(images).logits
        pairs = model(tiles_of(images, 16), context_values=contexts_of(images, 16, 4)).logits
    torch.testing.assert_close(torch.cat(list(pairs.unflatten(0, (2, 3)).unbind(1)), dim=-1), whole)


def test_the_loss_of_a_whole_image_is_that_of_its_tiles():
    model, images = tiny_relay_swinv2().eval(), torch.randn(1, 3, 20, 30)
    labels = torch.randint(0, 3, (1, 20, 30))
    pairs = tiles_of(images, 16), contexts_of(images, 16, 4)
    loss = model(*pairs, labels=tiles_of(labels[:, None], 16, 255)[:, 0]).loss
    torch.testing.assert_close(model(images, labels=labels).loss, loss)


def test_the_number_of_tiles_of_a_pass_changes_nothing(monkeypatch):
    model, images = tiny_relay(attn_implementation="eager").eval(), torch.randn(2, 3, 40, 20)
    asked = {"labels": torch.zeros(2, 40, 20).long(), "output_hidden_states": True, "output_attentions": True}
    at_once = model(images, **asked)
    monkeypatch.setattr(two_scale, "TILES_PER_PASS", 5)
    torch.testing.assert_close(dict(model(images, **asked)), dict(at_once))


def test_padding_counts_as_outside_the_image():
    model, image = tiny_relay().eval(), torch.randn(1, 3, 13, 20)
    padded, mask = F.pad(image, (0, 9, 0, 7), value=5.0), F.pad(torch.ones(1, 13, 20), (0, 9, 0, 7))
    with torch.no_grad():
        logits = model(padded, pixel_mask=mask).logits
        torch.testing.assert_close(logits[..., :13, :20], model(image).logits)


@each(
    ("wrong", "message"),
    {
        "size": ({"context_values": torch.randn(1, 3, 64, 64)}, r"context_values is \(1, 3, 64, 64\)"),
        "type": ({"context_values": [1]}, "context_values is of type list"),
        "labels without context": ({"context_labels": torch.zeros(1, 16, 16)}, "Leave them out for whole"),
        "labels": (
            {
                "context_values": torch.randn(1, 3, 16, 16),
                "labels": torch.zeros(1, 16, 16).long(),
                "context_labels": torch.zeros(1, 64, 64).long(),
            },
            r"context_labels is \(1, 64, 64\)",
        ),
    },
)
def test_a_wrong_context_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        tiny_relay()(torch.randn(1, 3, 16, 16), **wrong)


def test_tiles_must_be_whole_cells():
    with pytest.raises(ValueError, match="crop_size is 18, but must be a multiple of 4"):
        tiny_relay(crop_size=18)
