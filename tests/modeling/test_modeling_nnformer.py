"""How new nnFormers are initialized."""

import pytest
import torch
from tiny import tiny_nnformer
from torch import nn


def test_linear_layers_and_convolutions_are_initialized_as_pytorch_does():
    torch.manual_seed(0)
    layers = [module for module in tiny_nnformer().modules() if isinstance(module, nn.Linear | nn.Conv3d)]
    assert layers
    for layer in layers:
        bound = layer.weight[0].numel() ** -0.5
        assert layer.weight.abs().max().item() <= bound * 1.0001
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.25)


def test_the_initializer_range_is_the_deviation_of_position_tables():
    torch.manual_seed(0)
    weights = tiny_nnformer(initializer_range=0.5).state_dict()
    tables = torch.cat([value.flatten() for key, value in weights.items() if key.endswith("table")])
    assert tables.std().item() == pytest.approx(0.5, rel=0.15)
