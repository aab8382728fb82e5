"""Claims about 3x3 convolution by Winograd's algorithm."""

import pytest
import torch
import torch.nn.functional as F
from cases import each
from torch import Tensor

from contextseg.modeling import winograd
from contextseg.modeling.blocks import ConvNormAct
from contextseg.modeling.upsampling import pyramid_conv3x3
from contextseg.modeling.winograd import WinogradConv2d, saves_time, winograd_convolution


def maps_and_weight(size=(9, 14), batch=2, channels=3, dtype=torch.float64) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, channels, *size, dtype=dtype), torch.randn(5, channels, 3, 3, dtype=dtype)


@pytest.fixture
def _always(monkeypatch):
    """Winograd's algorithm for small maps too."""
    monkeypatch.setattr(winograd, "MIN_CHANNELS", 1)
    monkeypatch.setattr(winograd, "MIN_TILES", 0)


@each("size", [(8, 8), (9, 14), (1, 1), (3, 17), (4, 5)])
@each("strip", [1, 3, 1000])
def test_it_equals_the_convolution_for_any_size_and_strip(size, strip, monkeypatch):
    monkeypatch.setattr(winograd, "STRIP_TILES", strip)
    feature_map, weight = maps_and_weight(size)
    expected = F.conv2d(feature_map, weight, padding=1)
    for layout in (torch.contiguous_format, torch.channels_last):
        result = winograd_convolution(feature_map.contiguous(memory_format=layout), weight)
        torch.testing.assert_close(result, expected)


def test_its_rounding_errors_are_less_than_three_times_those_of_the_convolution():
    feature_map, weight = torch.randn(1, 256, 16, 16).relu(), torch.randn(64, 256, 3, 3)
    exact = F.conv2d(feature_map.double(), weight.double(), padding=1)
    direct, ours = F.conv2d(feature_map, weight, padding=1), winograd_convolution(feature_map, weight)
    assert (ours - exact).norm() < max(3 * (direct - exact).norm(), 3e-6 * exact.norm())


@torch.no_grad()
def test_it_is_used_for_large_maps_of_many_channels_only():
    large, weight = torch.empty(1, 256, 48, 48), torch.empty(256, 256, 3, 3)
    assert saves_time(large, weight)
    assert saves_time(torch.empty(4, 256, 24, 24), weight)
    assert not saves_time(torch.empty(1, 256, 24, 24), weight)
    assert not saves_time(large, torch.empty(64, 256, 3, 3))
    assert not saves_time(large, torch.empty(256, 256, 1, 1))


@torch.no_grad()
def test_it_is_used_for_inference_in_float32_on_a_cpu_only():
    large, weight = torch.empty(1, 256, 48, 48), torch.empty(256, 256, 3, 3)
    assert not saves_time(large.double(), weight.double())
    assert not saves_time(large.to("meta"), weight.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not saves_time(large, weight)
    with torch.enable_grad():
        assert not saves_time(large, weight)


@pytest.mark.usefixtures("_always")
def test_layers_give_the_same_maps_with_and_without_gradients():
    layer = ConvNormAct(3, 5, kernel_size=3).eval()
    feature_map = torch.randn(2, 3, 9, 14)
    expected = layer(feature_map)
    assert expected.requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(layer(feature_map), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("_always")
def test_convolution_over_a_pyramid_is_the_same_with_and_without_gradients():
    feature_maps, weight = [torch.randn(1, 3, 9, 14), torch.randn(1, 2, 5, 7)], torch.randn(5, 5, 3, 3)
    expected = pyramid_conv3x3(feature_maps, weight.requires_grad_())
    with torch.no_grad():
        torch.testing.assert_close(pyramid_conv3x3(feature_maps, weight), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("_always")
@torch.no_grad()
def test_a_layer_with_a_bias_or_a_smaller_kernel_is_the_convolution():
    feature_map = torch.randn(2, 3, 9, 14)
    for kernel, bias in ((1, True), (1, False), (3, True)):
        layer = WinogradConv2d(3, 5, kernel, padding=kernel // 2, bias=bias)
        expected = F.conv2d(feature_map, layer.weight, layer.bias, padding=kernel // 2)
        assert torch.equal(layer(feature_map), expected)
