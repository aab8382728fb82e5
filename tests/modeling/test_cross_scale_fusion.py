import pytest
import torch
import torch.nn.functional as F
from cases import each
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedConfig

from contextseg.modeling.cross_scale_fusion import GATES, CrossScaleFusion


def fusion(gate="dynamic", **options):
    torch.manual_seed(0)
    config = PreTrainedConfig()
    config._attn_implementation = "sdpa"
    return CrossScaleFusion(config, 8, 2, gate, **options).eval()


def maps(*sides):
    return [torch.randn(2, side, side + 1, 8) for side in sides]


def parameter_counts(gate):
    return sum(parameter.numel() for parameter in GATES[gate](8).parameters())


def test_the_gates_have_the_parameters_of_their_names():
    assert {gate: parameter_counts(gate) for gate in GATES} == {
        "channel": 8,
        "scalar": 1,
        "dynamic": 16 * 8 + 8,
        "none": 0,
    }


@each("gate", ["channel", "scalar"])
def test_learned_gates_leave_the_features_as_they_are_at_the_start(gate):
    features, context = maps(5, 4)
    assert torch.equal(fusion(gate)(features, context), features)


def test_the_gates_of_attention_and_mlp_work_apart():
    module, (features, context) = fusion("scalar"), maps(5, 4)
    with torch.no_grad():
        module.mlp_gate.value.fill_(1.0)
    expected = features + module.mlp(module.norm(features))
    torch.testing.assert_close(module(features, context), expected)


@each("gate", ["dynamic", "none"])
def test_every_feature_attends_to_the_whole_context(gate):
    module, (features, context) = fusion(gate), maps(5, 4)
    context.requires_grad_()
    module(features, context)[:, 0, 0].square().sum().backward()
    assert (context.grad.abs().sum(-1) > 0).all()


def test_pooling_averages_keys_and_values():
    module, (features, context) = fusion(pooling=3, mlp_ratio=0), maps(5, 6)
    pooled = module.context_norm(context)[:, :, :6].unflatten(2, (2, 3)).unflatten(1, (2, 3)).mean((2, 4))
    keys = module.keys(context).unflatten(1, (2, 3))
    torch.testing.assert_close(keys[:, :, :2], pooled)
    torch.testing.assert_close(keys[:, 0, 2], module.context_norm(context)[:, :3, 6].mean(1))
    assert module(features, context).shape == features.shape


def test_blocks_larger_than_the_context_average_all_of_it():
    module, (context,) = fusion(pooling=9), maps(4)
    torch.testing.assert_close(module.keys(context)[:, 0], module.context_norm(context).mean((1, 2)))


class LargestTensor(TorchFunctionMode):
    """Records the number of values of the largest tensor that any torch function returns."""

    size = 0

    def __torch_function__(self, function, _types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.size = max(self.size, result.numel())
        return result


def test_no_tensor_holds_a_score_for_every_pair_of_tokens():
    module = fusion()
    sizes = {}
    for side in (16, 32):
        with LargestTensor() as largest, torch.no_grad():
            module(torch.randn(1, side, side, 8), torch.randn(1, side, side, 8))
        sizes[side] = largest.size
    assert sizes[16] < 16**4
    assert sizes[32] == 4 * sizes[16]


def test_attention_has_no_bias_so_that_a_fused_kernel_applies(monkeypatch):
    biases = []
    kernel = F.scaled_dot_product_attention

    def recorded(*args, attn_mask=None, **options):
        biases.append(attn_mask)
        return kernel(*args, attn_mask=attn_mask, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", recorded)
    fusion()(*maps(5, 4))
    assert biases == [None]


def test_an_unknown_gate_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="no gate 'chanel', did you mean 'channel'"):
        fusion("chanel")
