import pytest
import torch
import torch.nn.functional as F

from contextseg import GlamSwinConfig
from contextseg.modeling.attention import Attention
from contextseg.modeling.blocks import BatchNorm2d, DropPath


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_is_torchs_multi_head_attention(implementation):
    ours = Attention(GlamSwinConfig(attn_implementation=implementation), dim=12, num_heads=3)
    projections = (ours.q_proj, ours.k_proj, ours.v_proj)
    tokens, context, bias = torch.randn(2, 5, 12), torch.randn(2, 7, 12), torch.randn(2, 3, 5, 7)
    expected, _ = F.multi_head_attention_forward(
        tokens.transpose(0, 1), context.transpose(0, 1), context.transpose(0, 1), 12, 3,
        torch.cat([layer.weight for layer in projections]), torch.cat([layer.bias for layer in projections]),
        None, None, False, 0.0, ours.o_proj.weight, ours.o_proj.bias, attn_mask=bias.flatten(0, 1),
    )  # fmt: skip
    torch.testing.assert_close(ours(tokens, context, bias)[0], expected.transpose(0, 1))


def test_batch_norm_trains_on_a_single_value():
    norm = BatchNorm2d(3).train()
    norm(torch.randn(1, 3, 1, 1)).sum().backward()
    assert norm.bias.grad.tolist() == [1, 1, 1]
    assert norm.running_mean.tolist() == [0, 0, 0]


def test_batch_norm_is_torchs_for_more_values():
    ours, torchs = BatchNorm2d(3).train(), torch.nn.BatchNorm2d(3).train()
    values = torch.randn(2, 3, 4, 5)
    assert torch.equal(ours(values), torchs(values))
    assert torch.equal(ours.running_var, torchs.running_var)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    dropped = DropPath(0.25).train()(torch.ones(4000, 2, 3))
    assert set(dropped.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert (dropped.flatten(1).std(dim=1) == 0).all()
    assert abs(dropped.mean().item() - 1) < 0.05
