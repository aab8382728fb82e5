"""What needs a GPU: the same logits as on the CPU, steps in bf16, compilation, and attention without its matrix.

`make gpu-check` runs these tests too. CONTEXTSEG_TEST_DEVICE=cpu runs them without a GPU, to check the tests themselves.
"""

import os

import pytest
import torch
from cases import each
from tiny import SEGMENTERS, labels_for, pixels_for, tiny_glam_swin

from contextseg import GlamSwinConfig
from contextseg.benchmarks.gpu_parts import attention_calls, training_step
from contextseg.benchmarks.measuring import peak_memory
from contextseg.modeling.attention import Attention

DEVICE = torch.device(os.environ.get("CONTEXTSEG_TEST_DEVICE", "cuda"))
HAS_DEVICE = DEVICE.type != "cuda" or torch.cuda.is_available()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HAS_DEVICE, reason="PyTorch finds no CUDA device")]
SIZE = (16, 32, 32)  # images take the last two


def model_and_inputs(name):
    torch.manual_seed(0)
    model = SEGMENTERS[name]()
    pixels = pixels_for(model, 2, *SIZE)
    return model, {"pixel_values": pixels, "labels": labels_for(pixels)}


def on_device(inputs):
    return {name: values.to(DEVICE) for name, values in inputs.items()}


@each("name", list(SEGMENTERS))
def test_the_loss_is_that_of_the_cpu(name):
    model, inputs = model_and_inputs(name)
    with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
        expected = model.eval()(**inputs).loss
        loss = model.to(DEVICE)(**on_device(inputs)).loss
    torch.testing.assert_close(loss.cpu(), expected, atol=1e-3, rtol=1e-3)


@each("name", list(SEGMENTERS))
def test_a_step_in_bf16_gives_every_parameter_a_finite_gradient(name):
    model, inputs = model_and_inputs(name)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        loss = model.to(DEVICE).train()(**on_device(inputs)).loss
    loss.backward()
    missing = [key for key, value in model.named_parameters() if value.grad is None]
    wrong = [
        key
        for key, value in model.named_parameters()
        if value.grad is not None and not value.grad.isfinite().all()
    ]
    assert loss.isfinite()
    assert not missing + wrong


def test_a_few_steps_in_bf16_lower_the_loss():
    model, inputs = model_and_inputs("glam_swin")
    inputs["labels"] = torch.ones_like(inputs["labels"])
    model, inputs = model.to(DEVICE).train(), on_device(inputs)
    step = training_step(model, inputs, DEVICE, learning_rate=1e-2)
    before = model(**inputs).loss
    for _ in range(10):
        step()
    assert model(**inputs).loss < 0.9 * before


def test_a_compiled_model_gives_the_same_logits():
    model, inputs = model_and_inputs("glam_swin")
    model, pixels = model.to(DEVICE).eval(), inputs["pixel_values"].to(DEVICE)
    compiled = torch.compile(model, backend="inductor" if DEVICE.type == "cuda" else "eager")
    with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
        torch.testing.assert_close(compiled(pixels).logits, model(pixels).logits, atol=1e-3, rtol=1e-3)


def global_attention(count):
    """A step of the first stage's global attention in bf16 with so many tokens, in heads of an odd width."""
    torch.manual_seed(0)
    attention = Attention(GlamSwinConfig(attn_implementation="sdpa"), dim=60, num_heads=3).to(DEVICE)
    tokens = torch.randn(1, count, 60, device=DEVICE)

    def step():
        with torch.autocast(DEVICE.type, torch.bfloat16):
            attended, _ = attention(tokens)
        attended.sum().backward()

    return step


def test_global_attention_is_fused():
    found = attention_calls(global_attention(64), DEVICE)
    assert sum(found["operators"].values()) == 1
    assert found["all_fused"]


def test_memory_of_global_attention_grows_with_the_tokens_and_not_with_their_square():
    steps = [global_attention(count) for count in (1024, 4096)]
    for step in steps:
        step()  # the first step allocates the gradients
    few, many = (peak_memory(step, DEVICE) for step in steps)
    assert many < 6 * few


def test_memory_of_a_checkpointed_step_is_less():
    _, inputs = model_and_inputs("glam_swin")
    step = training_step(tiny_glam_swin(depths=(6, 2)).to(DEVICE).train(), on_device(inputs), DEVICE)
    checkpointed = tiny_glam_swin(depths=(6, 2)).to(DEVICE).train()
    checkpointed.gradient_checkpointing_enable({"use_reentrant": False})
    less = training_step(checkpointed, on_device(inputs), DEVICE)
    for one in (step, less):
        one()
    assert peak_memory(less, DEVICE) < peak_memory(step, DEVICE)
