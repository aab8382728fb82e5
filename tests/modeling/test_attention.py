import logging

import pytest
import torch
import torch.nn.functional as F
from cases import each
from tiny import SEGMENTERS, size_for

from contextseg import GlamSwinConfig
from contextseg.benchmarks.measuring import peak_memory
from contextseg.modeling import attention
from contextseg.modeling.attention import (
    Attention,
    attend,
    attend_in_blocks,
    eager_attention_forward,
    padding_bias,
)
from contextseg.modeling.blocks import BatchNorm2d, DropPath


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True


def heads(*shape, on_gpu=False):
    torch.manual_seed(0)
    parts = [torch.randn(shape).requires_grad_() for _ in range(3)]
    return [part.as_subclass(OnGpu) for part in parts] if on_gpu else parts


def with_gradients(kernel, query, key, value, **options):
    """The result, and what a loss on it leaves in the three inputs."""
    attended, _ = kernel(None, query, key, value, attention_mask=None, scaling=0.3, **options)
    return attended, *torch.autograd.grad(attended.square().sum(), (query, key, value))


@pytest.fixture
def module():
    """What attends, as far as its kernel needs to know."""
    return Attention(GlamSwinConfig(attn_implementation="sdpa"), dim=30, num_heads=3)


@each("implementation", ["eager", "sdpa"])
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


@each(
    "max_scores",
    {
        "rows": 1,
        "uneven blocks": 2 * 3 * 7 * 2,
        "one block": 10**6,
    },
)
def test_attention_in_blocks_is_eager_attention(max_scores):
    parts = heads(2, 3, 7, 5)
    blocks = with_gradients(attend_in_blocks, *parts, max_scores=max_scores)
    torch.testing.assert_close(blocks, with_gradients(eager_attention_forward, *parts))


def test_attention_in_blocks_never_holds_the_matrix():
    parts = heads(1, 1, 512, 8)
    matrix = 512 * 512 * 4
    peaks = [
        peak_memory(
            lambda: with_gradients(attend_in_blocks, *parts, max_scores=16 * 512), torch.device("cpu")
        ),
        peak_memory(lambda: with_gradients(eager_attention_forward, *parts), torch.device("cpu")),
    ]
    assert peaks[0] < matrix / 2
    assert peaks[1] > 2 * matrix


def test_without_a_fused_kernel_a_gpu_attends_in_blocks_and_says_so_once(module, monkeypatch, caplog):
    monkeypatch.setattr(attention, "has_fused_kernel", lambda *_: False)
    attention.warn_of_blocks.cache_clear()
    expected = attend(module, *heads(2, 3, 7, 10))[0]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            attended, _ = attend(module, *heads(2, 3, 7, 10, on_gpu=True))
    torch.testing.assert_close(attended.as_subclass(torch.Tensor), expected)
    assert [record.message.count("heads of width 16") for record in caplog.records] == [1]


def test_fused_kernels_get_a_width_that_eight_divides(module, monkeypatch):
    widths = []
    monkeypatch.setattr(
        attention, "has_fused_kernel", lambda *parts: widths.extend(p.shape[-1] for p in parts) is None
    )
    attended, _ = attend(module, *heads(2, 3, 7, 10, on_gpu=True))
    assert widths == [16, 16, 16]
    torch.testing.assert_close(attended.as_subclass(torch.Tensor), attend(module, *heads(2, 3, 7, 10))[0])


def test_attention_with_a_bias_goes_straight_to_the_kernel(module, monkeypatch):
    monkeypatch.setattr(attention, "has_fused_kernel", lambda *_: pytest.fail("asked for a kernel"))
    bias = torch.randn(2, 3, 7, 7)
    ours, _ = attend(module, *heads(2, 3, 7, 10, on_gpu=True), bias)
    torch.testing.assert_close(ours.as_subclass(torch.Tensor), attend(module, *heads(2, 3, 7, 10), bias)[0])


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SEGMENTERS)
def test_an_image_of_padding_alone_has_finite_logits(name, dtype):
    model = SEGMENTERS[name]().eval().to(dtype)
    size = size_for(model, 5, 21, 34)
    pixels, mask = torch.randn(2, model.config.num_channels, *size, dtype=dtype), torch.zeros(2, *size)
    mask[0] = 1
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        with torch.no_grad():
            logits = model(pixels, pixel_mask=mask).logits
        assert logits.isfinite().all(), implementation


def test_scores_of_hidden_keys_stay_finite_in_half_precision():
    bias = padding_bias(torch.zeros(1, 4, dtype=torch.bool), torch.float16)
    assert (bias - 100).isfinite().all()


def test_a_block_of_queries_has_no_more_scores_than_asked_for_in_all_heads(monkeypatch):
    counts = []
    original = attention.attended_block

    def counted(query, key, *rest):
        counts.append(query.shape[:-1].numel() * key.shape[2])
        return original(query, key, *rest)

    monkeypatch.setattr(attention, "attended_block", counted)
    attend_in_blocks(None, *heads(2, 3, 7, 5), scaling=1.0, max_scores=2 * 3 * 7 * 2)
    assert counts == [2 * 3 * 7 * 2] * 3 + [2 * 3 * 7]


def test_the_hiding_bias_is_zero_for_what_is_visible_and_keeps_the_rest_out_of_the_softmax():
    padding_mask = torch.tensor([[True, False, True]])
    probabilities = (
        torch.tensor([[[[0.0, 50.0, 0.0]]]]) + padding_bias(padding_mask, torch.float32)
    ).softmax(-1)
    assert probabilities.flatten().tolist() == [0.5, 0.0, 0.5]
