"""Neighborhood attention equals its definition, position by position."""

import pytest
import torch
from cases import each
from transformers import DinatConfig

from contextseg.modeling.neighborhood_attention import (
    DinatEncoderBackbone,
    NeighborhoodAttention,
    axis_neighbors,
)


def neighbors_by_definition(position, length, kernel_size, dilation):
    """The window of consecutive members of the position's dilation group, as centered on it as the border allows."""
    group = list(range(position % dilation, length, dilation))
    place = group.index(position)
    starts = range(len(group) - kernel_size + 1)
    start = min(starts, key=lambda first: abs(first + kernel_size // 2 - place))
    return group[start : start + kernel_size]


@each(
    ("length", "kernel_size", "dilation"),
    [(7, 7, 1), (9, 3, 1), (9, 3, 3), (11, 3, 2), (13, 5, 2), (30, 7, 4)],
)
def test_neighbors_are_the_nearest_of_the_dilation_group(length, kernel_size, dilation):
    found, steps = axis_neighbors(length, kernel_size, dilation)
    expected = [neighbors_by_definition(place, length, kernel_size, dilation) for place in range(length)]
    assert found.tolist() == expected
    assert torch.equal(steps * dilation, found - torch.arange(length)[:, None])


@pytest.fixture
def attention():
    torch.manual_seed(0)
    module = NeighborhoodAttention(dim=8, num_heads=2, kernel_size=3, dilation=2, qkv_bias=True)
    torch.nn.init.normal_(module.rpb)
    return module.eval()


def test_attention_equals_its_equations_written_out(attention):
    features = torch.randn(1, 6, 7, 8)
    query, key, value = (
        project(features)[0].unflatten(-1, (2, 4))
        for project in (attention.query, attention.key, attention.value)
    )
    expected = torch.zeros(6, 7, 2, 4)
    for row, column, head in torch.cartesian_prod(torch.arange(6), torch.arange(7), torch.arange(2)).tolist():
        places = [
            (i, j)
            for i in neighbors_by_definition(row, 6, 3, 2)
            for j in neighbors_by_definition(column, 7, 3, 2)
        ]
        scores = torch.stack(
            [
                query[row, column, head] @ key[i, j, head] / 2
                + attention.rpb[head, (i - row) // 2 + 2, (j - column) // 2 + 2]
                for i, j in places
            ]
        )
        values = torch.stack([value[i, j, head] for i, j in places])
        expected[row, column, head] = scores.softmax(0) @ values
    torch.testing.assert_close(attention(features)[0][0], expected.flatten(-2))


def test_a_window_over_the_whole_grid_is_full_attention():
    torch.manual_seed(0)
    attention = NeighborhoodAttention(dim=8, num_heads=2, kernel_size=5, dilation=1, qkv_bias=False)
    features = torch.randn(2, 5, 5, 8)
    heads = [
        project(features).flatten(1, 2).unflatten(-1, (2, 4)).transpose(1, 2)
        for project in (attention.query, attention.key, attention.value)
    ]
    full = torch.nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(-2)
    torch.testing.assert_close(attention(features)[0].flatten(1, 2), full)


def test_probabilities_and_hidden_states_are_those_of_every_stage():
    config = DinatConfig(embed_dim=4, depths=[1, 1], num_heads=[1, 2], kernel_size=3, dilations=[[1], [2]])
    outputs = DinatEncoderBackbone(config)(
        torch.randn(1, 3, 32, 48), output_hidden_states=True, output_attentions=True
    )
    assert [tuple(probabilities.shape) for probabilities in outputs.attentions] == [
        (1, 1, 8, 12, 9),
        (1, 2, 6, 6, 9),
    ]
    torch.testing.assert_close(outputs.attentions[0].sum(-1), torch.ones(1, 1, 8, 12))
    assert len(outputs.hidden_states) == 3
