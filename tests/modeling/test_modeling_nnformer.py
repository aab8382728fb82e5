"""How new nnFormers are initialized, and identities of their decoder."""

import pytest
import torch
from tiny import labels_for, pixels_for, tiny_nnformer
from torch import nn

from contextseg.modeling import modeling_nnformer


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


@torch.no_grad()
def test_where_all_cells_of_the_skip_are_equal_queries_make_no_difference():
    block = tiny_nnformer().decoder.steps[-1].skip.eval()
    upsampled, skip = torch.randn(1, 4, 8, 8, 8), torch.randn(8).expand(1, 4, 8, 8, 8)
    attention = block.attention
    features = upsampled + skip + attention.o_proj(attention.v_proj(block.norm1(skip)))
    torch.testing.assert_close(block(upsampled, skip), features + block.mlp(block.norm2(features)))


def test_all_blocks_of_the_decoder_after_the_skip_attention_are_shifted():
    assert tiny_nnformer(depths=(3, 2)).decoder.steps[-1].stage.shifted_blocks == (True, True)


def test_coarser_logits_are_cut_where_the_volume_ends(monkeypatch):
    shapes = []
    monkeypatch.setattr(
        modeling_nnformer,
        "deep_supervision_loss",
        lambda outputs, *_, **__: shapes.extend(tuple(logits.shape[2:]) for logits in outputs),
    )
    model = tiny_nnformer(depths=(1, 1, 1), num_heads=(1, 2, 4), window_size=(2, 2, 2))
    pixels = pixels_for(model, 1, 6, 37, 53)
    model(pixels, labels=labels_for(pixels))
    assert shapes == [(6, 37, 53), (3, 18, 26)]
