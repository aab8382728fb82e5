"""Claims about interpolation by matrices and about 3x3 convolutions over upsampled maps."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from cases import each
from torch import Tensor

from contextseg.modeling import decoder_upernet, upsampling
from contextseg.modeling.decoder_upernet import averaged, averaged_by_product
from contextseg.modeling.upsampling import interpolation_matrix, pyramid_conv3x3, upsample, upsampled_conv3x3

PYRAMIDS = {
    "halves": [(16, 24), (8, 12), (4, 6), (2, 3)],
    "odd sides": [(13, 29), (7, 15), (4, 8), (2, 4)],
    "down to one pixel": [(5, 7), (3, 4), (2, 2), (1, 1)],
    "all one pixel": [(1, 1), (1, 1)],
    "equal sizes": [(6, 5), (6, 5)],
    "coarser maps larger": [(4, 5), (7, 6)],
    "one row": [(1, 9), (1, 5), (1, 3)],
    "unrelated sizes": [(11, 6), (4, 5), (9, 1)],
    "one map": [(6, 5)],
}
pyramids = each("sizes", PYRAMIDS)


def plain_formula(feature_maps: list[Tensor], weight: Tensor, size: tuple[int, int]) -> Tensor:
    resized = [F.interpolate(m, size, mode="bilinear", align_corners=False) for m in feature_maps]
    return F.conv2d(torch.cat(resized, dim=1), weight, padding=1)


def random_pyramid(sizes, dtype=torch.float32) -> tuple[list[Tensor], Tensor]:
    """Maps of 2, 3, 4, ... channels (a batch of two) and the weight of a convolution over all of them."""
    channels = range(2, 2 + len(sizes))
    maps = [torch.randn(2, c, *size, dtype=dtype) for c, size in zip(channels, sizes, strict=True)]
    return maps, torch.randn(5, sum(channels), 3, 3, dtype=dtype)


@each("source", [1, 2, 3, 8, 13])
@each("target", [1, 2, 7, 8, 16, 33])
def test_interpolation_matrix_is_bilinear_interpolation_of_one_axis(source, target):
    line = torch.randn(source, dtype=torch.float64)
    matrix = interpolation_matrix(source, target, dtype=line.dtype, device=line.device)
    expected = F.interpolate(line[None, None], target, mode="linear", align_corners=False)[0, 0]
    torch.testing.assert_close(matrix @ line, expected)


def test_interpolation_matrix_has_the_asked_type_and_rows_that_sum_to_one():
    matrix = interpolation_matrix(8, 32, dtype=torch.bfloat16, device=torch.device("cpu"))
    assert matrix.dtype is torch.bfloat16
    assert matrix.float().sum(1).eq(1).all()


def test_upsample_takes_any_sequence_as_size():
    feature_map = torch.randn(1, 2, 3, 4)
    expected = F.interpolate(feature_map, (5, 9), mode="bilinear", align_corners=False)
    torch.testing.assert_close(upsample(feature_map, torch.Size([5, 9])), expected)


@pyramids
def test_convolution_over_a_pyramid_equals_the_plain_formula(sizes):
    feature_maps, weight = random_pyramid(sizes)
    expected = plain_formula(feature_maps, weight, sizes[0])
    torch.testing.assert_close(pyramid_conv3x3(feature_maps, weight), expected, atol=1e-5, rtol=1e-5)


@pyramids
def test_convolution_over_upsampled_maps_reaches_any_size(sizes):
    feature_maps, weight = random_pyramid(sizes)
    expected = plain_formula(feature_maps, weight, (17, 10))
    torch.testing.assert_close(
        upsampled_conv3x3(feature_maps, weight, (17, 10)), expected, atol=1e-5, rtol=1e-5
    )


@pyramids
def test_gradients_equal_those_of_the_plain_formula(sizes):
    feature_maps, weight = random_pyramid(sizes, torch.float64)
    inputs = [tensor.requires_grad_() for tensor in (*feature_maps, weight)]
    result = pyramid_conv3x3(feature_maps, weight)
    direction = torch.randn_like(result)
    expected = torch.autograd.grad(plain_formula(feature_maps, weight, sizes[0]), inputs, direction)
    torch.testing.assert_close(torch.autograd.grad(result, inputs, direction), expected)


def test_memory_layout_of_the_maps_does_not_matter():
    feature_maps, weight = random_pyramid([(9, 6), (5, 3), (3, 2)])
    channels_last = [m.contiguous(memory_format=torch.channels_last) for m in feature_maps]
    torch.testing.assert_close(pyramid_conv3x3(channels_last, weight), pyramid_conv3x3(feature_maps, weight))


def test_autocast_keeps_bfloat16_and_stays_close_to_float32():
    feature_maps, weight = random_pyramid([(12, 10), (6, 5), (3, 3)])
    with torch.autocast("cpu", torch.bfloat16):
        result = pyramid_conv3x3(feature_maps, weight)
    assert result.dtype is torch.bfloat16
    exact = pyramid_conv3x3(feature_maps, weight)
    assert (result.float() - exact).norm() < 0.01 * exact.norm()


def test_weights_in_half_precision_are_the_rounded_exact_ones():
    half, exact = (
        interpolation_matrix(300, 700, dtype=dtype, device=torch.device("cpu"))
        for dtype in (torch.bfloat16, torch.float32)
    )
    assert torch.equal(half, exact.bfloat16())


@pytest.fixture
def _deterministic(monkeypatch):
    """As on a GPU under `torch.use_deterministic_algorithms`."""
    for module in (upsampling, decoder_upernet):
        monkeypatch.setattr(module, "needs_matrices", lambda _: True)


def test_matrices_are_needed_on_a_gpu_under_pytorchs_switch_only():
    on_gpu, on_cpu = (SimpleNamespace(device=torch.device(name)) for name in ("cuda", "cpu"))
    assert not upsampling.needs_matrices(on_gpu)
    torch.use_deterministic_algorithms(True)
    try:
        assert upsampling.needs_matrices(on_gpu)
        assert not upsampling.needs_matrices(on_cpu)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_deterministic")
@each("align_corners", [False, True])
@each(("source", "target"), [((5, 7), (18, 25)), ((4, 4), (8, 8)), ((9, 11), (4, 3)), ((1, 3), (2, 1))])
def test_deterministic_upsampling_equals_that_of_pytorch(source, target, align_corners):
    feature_map = torch.randn(2, 3, *source, requires_grad=True)
    weight = torch.randn(2, 3, *target)
    ours = upsample(feature_map, target, align_corners)
    assert ours.grad_fn.name() != "UpsampleBilinear2DBackward0"
    theirs = F.interpolate(feature_map, target, mode="bilinear", align_corners=align_corners)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    gradients = [torch.autograd.grad((output * weight).sum(), feature_map)[0] for output in (ours, theirs)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("_deterministic")
@each("bins", [1, 2, 3, 6])
@each("size", [(7, 11), (6, 12), (4, 5)])
def test_deterministic_pooling_equals_that_of_pytorch(bins, size):
    feature_map = torch.randn(2, 3, *size, dtype=torch.float64)
    for ours in (averaged(feature_map, bins), averaged_by_product(feature_map, [2, bins])[1]):
        torch.testing.assert_close(ours, F.adaptive_avg_pool2d(feature_map, bins), rtol=0, atol=1e-6)


@pytest.mark.usefixtures("_deterministic")
def test_deterministic_upsampling_keeps_the_type_under_autocast():
    feature_map = torch.randn(1, 2, 4, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert upsample(feature_map, (8, 8)).dtype == torch.bfloat16
