"""Most tests are of models that look at single pixels: for them, every protocol must give what the whole image gives."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import each
from PIL import Image
from tiny import tiny_glam_swin
from torch import nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from contextseg import Inference, SegmentationImageProcessor, SegmentationImageProcessorPil
from contextseg.benchmarks.measuring import peak_memory
from contextseg.processing.image_windows import logits_stride

SIZES = [(1, 1), (1, 40), (23, 7), (64, 96), (61, 83)]


class PixelModel(nn.Module):
    """Logits that are a function of the mean color of a cell of `stride` pixels; it counts and measures its inputs."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, stride=1, num_labels=5, states_stride=True):
        super().__init__()
        self.stride, self.shapes = stride, []
        self.config = SimpleNamespace(**({"logits_stride": stride} if states_stride else {}))
        self.colors = torch.randn(num_labels, 3, generator=torch.Generator().manual_seed(0))

    def forward(self, pixel_values):
        self.shapes.append(tuple(pixel_values.shape))
        cells = F.avg_pool2d(pixel_values, self.stride, ceil_mode=True)
        return SimpleNamespace(logits=torch.einsum("kc,bchw->bkhw", self.colors, cells))


def noise(*size):
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))


def probabilities(inference, model, pixels, size):
    return torch.cat(list(inference.probabilities(model, [pixels], size)), dim=1)


def expected_logits(model, pixels, size):
    return F.interpolate(model(pixels).logits, size=size, mode="bilinear")[0]


@each("size", SIZES)
@each("target", [None, (50, 31), (130, 201)])
def test_the_whole_image_is_bilinear_interpolation_and_argmax(size, target):
    model, pixels, target = PixelModel(stride=4), noise(*size), target or size
    logits = expected_logits(model, pixels, target)
    assert torch.equal(Inference().mask(model, [pixels], target).long(), logits.argmax(0))
    torch.testing.assert_close(probabilities(Inference(), model, pixels, target), logits.softmax(0))


@each("size", SIZES)
@each("stride", [1, 4])
@each(
    "inference",
    [
        Inference(window=16, overlap=0.5),
        Inference(window=(16, 24), overlap=0.25, blend="constant", batch_size=1),
        Inference(window=17, overlap=0.0, batch_size=3),
        Inference(window=8, overlap=0.7, flip=True),
        Inference(window=500),
    ],
)
def test_windows_of_a_pixel_model_give_the_whole_images_result(size, stride, inference):
    pixels = noise(*size) if not inference.flip else noise(*(-(-side // 4) * 4 for side in size))
    model = PixelModel(stride)
    whole = expected_logits(model, pixels, size)
    torch.testing.assert_close(probabilities(inference, model, pixels, size), whole.softmax(0))
    assert torch.equal(inference.mask(model, [pixels], size).long(), whole.argmax(0))


@each("num_labels", [1, 2, 300])
def test_any_number_of_classes(num_labels):
    model, pixels = PixelModel(4, num_labels), noise(40, 60)
    windows = probabilities(Inference(window=16, flip=True), model, pixels, (40, 60))
    torch.testing.assert_close(windows, expected_logits(model, pixels, (40, 60)).softmax(0))


@each("stride", [1, 3, 4, 14])
def test_a_stride_that_the_configuration_does_not_state_is_measured(stride):
    stated, unstated = PixelModel(stride), PixelModel(stride, states_stride=False)
    inference, pixels = Inference(window=56), noise(100, 130)
    assert torch.equal(*(probabilities(inference, model, pixels, (100, 130)) for model in (stated, unstated)))


def test_cells_of_no_whole_number_of_pixels_are_resized_to_the_window():
    model = PixelModel(states_stride=False)
    model.forward = lambda pixel_values: SimpleNamespace(
        logits=F.interpolate(pixel_values.mean((2, 3), keepdim=True), size=(23, 37))
    )
    pixels = torch.full((1, 3, 50, 90), 0.5)
    assert probabilities(Inference(window=32), model, pixels, (50, 90)).shape == (3, 50, 90)


def test_a_batch_holds_at_most_so_many_windows_and_only_equal_ones():
    model = PixelModel(stride=4)
    Inference(window=16, overlap=0.0, batch_size=3).mask(model, [noise(16, 70)], (16, 70))
    assert model.shapes == [(3, 3, 16, 16), (1, 3, 16, 16), (1, 3, 16, 14)]


def test_no_window_is_padded_or_larger_than_asked_for():
    model = PixelModel(stride=4)
    Inference(window=32).mask(model, [noise(41, 20)], (41, 20))
    assert {shape[2:] for shape in model.shapes} == {(32, 20), (29, 20)}


def test_blending_weights_decide_between_windows_that_disagree():
    model = PixelModel()
    model.forward = (
        lambda pixel_values: SimpleNamespace(  # two classes by the mean color of the window
            logits=torch.stack([pixel_values.mean((1, 2, 3)), -pixel_values.mean((1, 2, 3))], 1)[
                ..., None, None
            ].expand(-1, -1, *pixel_values.shape[2:])
        )
    )
    pixels = torch.ones(1, 3, 16, 24)
    pixels[..., 12:] = -1.0  # windows of columns 0..15 and 8..23 have means of 0.5 and -0.5

    def shared(blend):
        return probabilities(Inference(window=16, blend=blend), model, pixels, (16, 24))[0, 8, 8:16]

    torch.testing.assert_close(shared("constant"), torch.full((8,), 0.5))
    assert (shared("gaussian").diff() < 0).all()


def test_memory_does_not_grow_with_the_height_of_the_image(monkeypatch):
    monkeypatch.setattr("contextseg.processing.inference.BAND_VALUES", 1 << 16)

    def peak(height, window):
        model, pixels = PixelModel(4, num_labels=100), noise(height, 64)
        channels = Inference(window).probabilities(model, [pixels], (height, 64))
        return peak_memory(lambda: [None for _ in channels], torch.device("cpu"))

    assert peak(768, 32) == pytest.approx(peak(256, 32), rel=0.02)
    canvas = 4 * 100 * (768 - 256) // 4 * 64 // 4  # bytes of a float for each class and cell
    assert peak(768, None) - peak(256, None) == pytest.approx(canvas, rel=0.02)


def test_scales_are_the_processors_own_resizing_of_the_image():
    processor = SegmentationImageProcessor(size={"shortest_edge": 20})
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    small, custom, large = Inference(scales=(0.5, 1.0, 1.75)).inputs(processor, image)
    assert [tuple(pixels.shape[2:]) for pixels in (small, custom, large)] == [(10, 15), (20, 30), (35, 52)]
    directly = SegmentationImageProcessor(size={"height": 10, "width": 15})
    assert torch.equal(small, directly(image, return_tensors="pt")["pixel_values"])


def test_scales_and_mirrors_average_probabilities_at_the_wanted_size():
    model, views, size = PixelModel(4), [noise(16, 24), noise(24, 36)], (32, 48)
    each = [
        F.interpolate(logits, size=size, mode="bilinear")[0].softmax(0)
        for pixels in views
        for logits in (model(pixels).logits, model(pixels.flip(-1)).logits.flip(-1))
    ]
    averaged = torch.cat(list(Inference(flip=True).probabilities(model, views, size)), dim=1)
    torch.testing.assert_close(averaged, torch.stack(each).mean(0))


@each("window", [None, 16])
def test_an_even_image_is_the_same_at_every_scale_and_mirrored(window):
    processor, model = SegmentationImageProcessor(), PixelModel(4)
    image = Image.new("RGB", (41, 30), (200, 60, 10))
    plain, augmented = Inference(), Inference(window, scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), flip=True)
    one, many = (
        torch.cat(list(inference.probabilities(model, inference.inputs(processor, image), (30, 41))), dim=1)
        for inference in (plain, augmented)
    )
    torch.testing.assert_close(one, many)


@pytest.fixture(scope="module")
def segmenter():
    torch.manual_seed(0)
    return tiny_glam_swin().eval()


def test_a_mirrored_image_gives_the_mirrored_result(segmenter):
    pixels, inference = noise(32, 44), Inference(flip=True)
    one = probabilities(inference, segmenter, pixels, (32, 44))
    other = probabilities(inference, segmenter, pixels.flip(-1), (32, 44))
    torch.testing.assert_close(other.flip(-1), one)


def test_a_window_of_a_model_with_context_sees_the_window_alone(segmenter):
    pixels = noise(16, 48)
    changed = pixels.clone()
    changed[..., 16:] += 1.0
    inference = Inference(window=16, overlap=0.0)
    one, other = (probabilities(inference, segmenter, image, (16, 48)) for image in (pixels, changed))
    assert torch.equal(
        one[..., :14], other[..., :14]
    )  # columns 14 and 15 lean on the cell of the next window
    assert not torch.equal(one[..., 16:], other[..., 16:])


def test_models_of_transformers_and_models_in_half_precision_predict_in_windows():
    sizes = {"hidden_sizes": [8, 8, 8, 8], "depths": [1] * 4, "num_attention_heads": [1] * 4}
    model = SegformerForSemanticSegmentation(
        SegformerConfig(**sizes, decoder_hidden_size=8, num_labels=3)
    ).eval()
    inference, pixels = Inference(window=32, flip=True), noise(50, 70)
    exact = probabilities(inference, model, pixels, (50, 70))
    torch.testing.assert_close(exact.sum(0), torch.ones(50, 70))
    rough = probabilities(inference, model.bfloat16(), pixels, (50, 70))
    torch.testing.assert_close(rough, exact, atol=0.05, rtol=0)


def test_a_call_gives_the_mask_at_the_images_own_size(segmenter):
    processor = SegmentationImageProcessor(size={"shortest_edge": 24})
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    mask = Inference(window=16)(segmenter, processor, image)
    assert (mask.shape, mask.dtype) == ((50, 70), torch.int32)
    pixels = processor(image, return_tensors="pt")
    with torch.no_grad():
        outputs = segmenter(**pixels)
    whole = processor.post_process_semantic_segmentation(outputs, target_sizes=[(50, 70)])[0]
    assert torch.equal(Inference()(segmenter, processor, image).long(), whole)


@each(
    ("options", "message"),
    [
        *[
            ({"window": window}, "is not a size")
            for window in (0, -5, (8,), (8,) * 4, (8, 0), 32.5, "32", True, (8.0, 8))
        ],
        *[({"batch_size": size}, "1 or more") for size in (0, 1.5, True)],
        *[({"overlap": overlap}, "not between 0 and 1") for overlap in (1.0, -0.1, float("nan"), "0.5")],
        ({"blend": "gausian"}, "Known: gaussian, constant"),
        *[
            ({"scales": s}, "at least one factor")
            for s in ((), (1, -0.5), (1, 0), (float("inf"),), (float("nan"),), 0.5)
        ],
    ],
)
def test_settings_without_a_meaning_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Inference(**options)


def test_settings_describe_themselves():
    assert str(Inference()) == "whole images"
    described = str(Inference(512, overlap=0.25, scales=(0.5, 1.0), flip=True))
    assert described == (
        "windows of 512x512 pixels, overlap 0.25, gaussian weights, scales 0.5, 1, averaged with the mirrored image"
    )


@pytest.mark.parametrize("flip", [False, True])
def test_the_mask_is_the_likeliest_class_of_all_views(flip):
    model, views, inference = PixelModel(4), [noise(16, 24), noise(24, 36)], Inference(flip=flip)
    likeliest = torch.cat(list(inference.probabilities(model, views, (32, 48))), dim=1).argmax(0)
    assert torch.equal(inference.mask(model, views, (32, 48)), likeliest.int())
    assert not torch.equal(inference.mask(model, views[:1], (32, 48)), likeliest.int())


@pytest.mark.parametrize("processor_class", [SegmentationImageProcessor, SegmentationImageProcessorPil])
def test_a_scale_may_leave_one_pixel_but_not_less(processor_class):
    processor, image = processor_class(), np.full((50, 70, 3), 200, np.uint8)
    (pixels,) = Inference(scales=(0.02,)).inputs(processor, image[:, :50])
    torch.testing.assert_close(pixels, processor(image[:1, :1], return_tensors="pt").pixel_values)
    with pytest.raises(
        ValueError, match="scale 0.01 leaves less than a pixel of an image of 50x70.* 0.02 or more"
    ):
        Inference(scales=(1.0, 0.01)).inputs(processor, image)


def test_an_image_of_one_pixel_has_a_pixel_at_every_scale():
    processor = SegmentationImageProcessor(do_resize=False)
    (pixels,) = Inference(scales=(0.25,)).inputs(processor, Image.new("RGB", (1, 1)))
    assert pixels.shape == (1, 3, 1, 1)


def test_cells_that_differ_between_the_axes_have_no_stride():
    model = PixelModel(states_stride=False)
    model.forward = lambda pixel_values: SimpleNamespace(logits=pixel_values[..., ::4, ::3])
    assert logits_stride(model, noise(32, 32)) == 1
