"""--deterministic switches PyTorch to deterministic kernels, and changes nothing but rounding."""

import os

import pytest
import torch
from cases import each
from safetensors.torch import load_file
from tiny import SEGMENTERS, labels_for, pixels_for
from tiny_runs import run_options

from contextseg.modeling import decoder_upernet, upsampling
from contextseg.scripts.train import main
from contextseg.training.command_line import CommandError
from contextseg.training.determinism import explained_missing_kernel, use_deterministic_kernels


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # restored afterwards
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    for name in ("benchmark", "deterministic"):
        monkeypatch.setattr(torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))
    yield
    torch.use_deterministic_algorithms(False)


def test_the_switch_sets_what_pytorch_asks_for():
    use_deterministic_kernels()
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@each("name", ["glam_swin", "glam_swin_unet", "maformer", "segdeformer", "nnformer", "glam_swin_volumes"])
def test_the_deterministic_model_is_the_same_model(name, monkeypatch):
    torch.manual_seed(0)
    model = SEGMENTERS[name]().eval()
    pixels = pixels_for(model, 2, 3, 33, 47)
    labels = labels_for(pixels)
    results = []
    for enabled in (False, True):
        for module in (upsampling, decoder_upernet):
            monkeypatch.setattr(module, "needs_matrices", lambda _, enabled=enabled: enabled)
        outputs = model(pixels, labels=labels)
        model.zero_grad()
        outputs.loss.backward()
        results.append((outputs.logits.detach(), [weight.grad.clone() for weight in model.parameters()]))
    torch.testing.assert_close(*results, atol=1e-6, rtol=1e-4)


def test_a_run_trains_deterministically_to_the_weights_of_an_ordinary_one(data, tmp_path):
    weights = []
    for name, option in (("plain", []), ("deterministic", ["--deterministic"])):
        assert main([*run_options(data, tmp_path / name), "--steps", "2", *option]) == 0
        weights.append(load_file(tmp_path / name / "last" / "model.safetensors"))
    assert torch.are_deterministic_algorithms_enabled()
    torch.testing.assert_close(*weights, atol=0, rtol=0)  # a CPU is deterministic anyway


def test_an_operation_without_a_deterministic_kernel_is_named():
    message = "nll_loss2d_forward_out_cuda_template does not have a deterministic implementation, but you set"
    with (
        pytest.raises(CommandError, match="the model uses nll_loss2d.*Leave out --deterministic"),
        explained_missing_kernel(),
    ):
        raise RuntimeError(message)
    with pytest.raises(RuntimeError, match="^other$"), explained_missing_kernel():
        raise RuntimeError("other")
