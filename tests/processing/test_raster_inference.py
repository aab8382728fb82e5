"""A raster, read by windows, must give what the same picture gives in memory, whatever the bounds of memory and rows."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import each
from tiny import tiny_caswit, tiny_relay
from torch import nn

from contextseg import Inference, SegmentationImageProcessor
from contextseg.benchmarks.measuring import peak_memory
from contextseg.processing.context_windows import shared_context_box
from contextseg.processing.rasters.raster import ArrayRaster

PROCESSOR = SegmentationImageProcessor()
SETTINGS = [
    Inference(window=16),
    Inference(window=(16, 24), overlap=0.25, blend="constant", flip=True),
    Inference(window=17, overlap=0.0, batch_size=3),
    Inference(window=16, blend="center"),
    Inference(window=20, overlap=0.0, blend="center", flip=True),
    Inference(window=500),
    Inference(),
]


class Blur(nn.Module):
    """Logits that depend on the surroundings of a cell, so that it matters what a window shows."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, stride, num_labels=3, **config):
        super().__init__()
        self.stride, self.config = stride, SimpleNamespace(num_labels=num_labels, **config)
        self.colors = torch.randn(num_labels, 3, generator=torch.Generator().manual_seed(0))

    def forward(self, pixel_values):
        cells = F.avg_pool2d(F.avg_pool2d(pixel_values, 9, stride=1, padding=4), self.stride, ceil_mode=True)
        return SimpleNamespace(logits=torch.einsum("kc,bchw->bkhw", self.colors, cells))


class Reads(ArrayRaster):
    """A raster that records the sizes of the windows that are read."""

    def read_with_validity(self, rows, columns, scale=1.0):
        self.sizes = [*getattr(self, "sizes", []), (rows[1] - rows[0], columns[1] - columns[0])]
        return super().read_with_validity(rows, columns, scale)


def picture(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def raster_of(image):
    return Reads(image, channels_first=False)


def in_memory(inference, model, image):
    inputs = inference.inputs(PROCESSOR, image)
    return torch.cat(list(inference.probabilities(model, inputs, image.shape[:2])), dim=1)


def of_raster(inference, model, raster, rows=None, **options):
    """(K, R, W), after a check that the bands follow each other and hold the rows asked for."""
    next_row, last = rows or (0, raster.shape[1])
    bands = []
    for row, band in inference.raster_scores(model, PROCESSOR, raster, rows, **options):
        assert row == next_row
        next_row += band.shape[1]
        bands.append(band)
    assert next_row == last
    return torch.cat(bands, dim=1)


@each("inference", SETTINGS)
@each("size", [(1, 30), (33, 41)])
@each("model", [Blur(4, logits_stride=4), Blur(3)])
def test_a_raster_gives_the_result_of_the_image_in_memory(inference, size, model):
    image = picture(*size)
    torch.testing.assert_close(
        of_raster(inference, model, raster_of(image)), in_memory(inference, model, image)
    )


@each("inference", [*SETTINGS[:5], Inference(window=16, scales=(1.0, 0.6))])
def test_neither_memory_nor_rows_change_a_bit(inference, monkeypatch):
    monkeypatch.setattr("contextseg.processing.rasters.inference.BAND_VALUES", 700)
    model, raster = Blur(4, logits_stride=4), raster_of(picture(45, 30))
    whole, starts = of_raster(inference, model, raster), inference.raster_rows(model, raster)
    assert starts[0] == 0
    assert len(starts) > 2
    assert torch.equal(of_raster(inference, model, raster, memory=1), whole)
    for rows in pairwise([*starts[::2], 45]):
        assert torch.equal(of_raster(inference, model, raster, rows, memory=1), whole[:, slice(*rows)])


@each("inference", [SETTINGS[0], SETTINGS[3]])
def test_probabilities_are_the_softmax_of_the_logits_of_one_view(inference):
    model, raster = Blur(4, logits_stride=4), raster_of(picture(33, 41))
    logits = of_raster(inference, model, raster, probabilities=False)
    assert logits.min() < 0
    torch.testing.assert_close(logits.softmax(0), of_raster(inference, model, raster), rtol=1e-6, atol=0)


def test_probabilities_of_several_views_are_averaged_even_where_only_the_classes_count():
    model, raster = Blur(4, logits_stride=4), raster_of(picture(33, 41))
    inference = Inference(window=16, flip=True)
    averaged = of_raster(inference, model, raster, probabilities=False)
    assert torch.equal(averaged, of_raster(inference, model, raster))


@each("make", [tiny_caswit, tiny_relay])
@each("size", [(8, 19), (37, 41)])
def test_windows_of_a_model_of_two_scales_are_the_tiles_of_its_forward_pass(make, size):
    torch.manual_seed(0)
    model, image = make().eval(), picture(*size)
    pixels = PROCESSOR(image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = model(pixel_values=pixels).logits
    whole = F.interpolate(logits, size=size, mode="bilinear")[0].softmax(0)
    for inference in (Inference(), Inference(window=16, overlap=0.0)):
        torch.testing.assert_close(in_memory(inference, model, image), whole)
        raster = raster_of(image.astype(np.float32))  # means of areas are not rounded
        PROCESSOR.value_range = (0, 255)
        torch.testing.assert_close(of_raster(inference, model, raster), whole, atol=1e-5, rtol=1e-4)
    assert max(raster.sizes) <= (64, 64)  # a window of 16 pixels has a context of at most 64


@each(
    "inference",
    [Inference(window=16, share_context=True), Inference(window=16, blend="center", share_context=True)],
)
def test_shared_contexts_are_computed_once_and_give_what_computing_them_again_gives(inference, monkeypatch):
    model, image, calls = tiny_caswit().eval(), picture(20, 45), []
    compute = model.context_features
    monkeypatch.setattr(model, "context_features", lambda values: calls.append(0) or compute(values))
    shared, count = in_memory(inference, model, image), len(calls)
    monkeypatch.setattr("contextseg.processing.image_windows.CONTEXT_BYTES", 0)
    assert torch.equal(in_memory(inference, model, image), shared)
    assert count <= len(calls) / 2
    monkeypatch.setattr(
        "contextseg.processing.image_windows.context_box",
        shared_context_box,
    )
    alone = Inference(window=16, blend=inference.blend)
    torch.testing.assert_close(in_memory(alone, model, image), shared)
    torch.testing.assert_close(of_raster(inference, model, raster_of(image)), shared, atol=2e-3, rtol=0)


def test_only_models_that_allow_it_share_contexts():
    for model in (tiny_relay().eval(), Blur(4)):
        for run in (in_memory, lambda inference, model, image: of_raster(inference, model, raster_of(image))):
            with pytest.raises(ValueError, match="no context features that windows can share"):
                run(Inference(window=16, share_context=True), model, picture(20, 20))


@each("scale", [0.5, 0.6, 1.7])
def test_scales_of_a_raster_are_resized_as_the_processor_resizes(scale):
    image, model = picture(61, 83), Blur(1, logits_stride=1)
    inference = Inference(window=24, scales=(scale,))
    of_image = in_memory(inference, model, image)
    torch.testing.assert_close(of_raster(inference, model, raster_of(image)), of_image, atol=0.01, rtol=0)


def test_windows_at_a_small_scale_are_averages_of_areas():
    image, model = np.full((200, 300, 3), (200, 60, 10), np.uint8), Blur(1, logits_stride=1)
    raster = raster_of(image)
    small, whole = Inference(window=16, scales=(0.05,)), Inference()
    torch.testing.assert_close(
        of_raster(small, model, raster)[:, 90:110, 90:210],
        in_memory(whole, model, image)[:, 90:110, 90:210],
        atol=0.01,
        rtol=0,
    )


def test_only_windows_are_read():
    raster = raster_of(picture(60, 72))
    of_raster(Inference(window=32, flip=True), Blur(4, logits_stride=4), raster)
    assert set(raster.sizes) == {(32, 32)}


@each("memory", [1, 1 << 30])
def test_memory_does_not_grow_with_the_height_of_a_raster(memory, monkeypatch):
    monkeypatch.setattr("contextseg.processing.rasters.inference.BAND_VALUES", 1 << 13)

    def peak(height, width, memory=memory):
        scores = Inference(window=32).raster_scores(
            Blur(4, 50, logits_stride=4), PROCESSOR, raster_of(picture(height, width)), memory=memory
        )
        return peak_memory(lambda: [None for _ in scores], torch.device("cpu"))

    assert peak(96, 48) == pytest.approx(peak(64, 48), rel=0.02)
    sums = 4 * 8 * 51 * 12  # rows of a window, classes and the weight, columns of the map
    assert peak(64, 48, 1 << 30) - peak(64, 48, 1) > 0.8 * sums


@each("rows", [(0, 0), (-1, 5), (3, 21), (7, 2)])
def test_rows_outside_a_raster_are_refused(rows):
    with pytest.raises(ValueError, match="are not rows of a raster of 20 rows"):
        of_raster(Inference(), Blur(4), raster_of(picture(20, 20)), rows)
