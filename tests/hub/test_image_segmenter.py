"""The part of a served model that segments images of any size, with models that stand in for real ones."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cases import each
from PIL import Image

from contextseg import SegmentationImageProcessor
from contextseg.hub import image_segmenter
from contextseg.hub.image_segmenter import ImageSegmenter, as_rgb, class_sums, windows_over


def segmenter(forward, num_labels=3, **config):
    """A segmenter with this model: `pixel_values` (1, C, H, W) -> logits (1, K, h, w)."""
    made = ImageSegmenter.__new__(ImageSegmenter)
    made.processor = SegmentationImageProcessor()
    seen = made.seen = []

    def model(pixel_values):
        seen.append(tuple(pixel_values.shape[-2:]))
        return SimpleNamespace(logits=forward(pixel_values))

    made.model = model
    model.config = SimpleNamespace(num_labels=num_labels, **config)
    model.device, model.dtype = torch.device("cpu"), torch.float32
    made.labels = [str(index) for index in range(num_labels)]
    return made


def photo(height=70, width=50):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def small_windows(monkeypatch):
    for name, value in {"WHOLE_PIXELS": 1000, "WINDOW": 16, "MARGIN": 4}.items():
        monkeypatch.setattr(image_segmenter, name, value)


@pytest.mark.usefixtures("small_windows")
@each(("height", "width"), [(70, 50), (16, 17), (5, 300), (24, 24), (1, 2000)])
def test_windows_cover_every_pixel_once_and_stay_inside(height, width):
    times = np.zeros((height, width), dtype=int)
    for window in windows_over(height, width):
        times[window.place] += 1
        assert times[window.place].shape == np.zeros(window.size)[window.counted].shape
        for side, length in zip(window.seen, (height, width), strict=True):
            assert side.stop - side.start == min(24, length)
            assert 0 <= side.start < side.stop <= length
    assert (times == 1).all()


@pytest.mark.usefixtures("small_windows")
def test_a_model_of_single_pixels_gives_the_same_in_windows():
    in_windows, whole = segmenter(lambda values: values), segmenter(lambda values: values, context_ratio=2)
    ours, expected = in_windows(photo()), whole(photo())
    assert whole.seen == [(70, 50)]
    assert set(in_windows.seen) == {(24, 24)}
    assert np.array_equal(ours.mask, expected.mask)
    assert ours.scores == pytest.approx(expected.scores)
    probabilities = whole.inputs(photo())[0].softmax(0).numpy()
    for label, score in expected.scores.items():
        assert score == pytest.approx(probabilities[label][expected.mask == label].mean())


@pytest.mark.usefixtures("small_windows")
def test_a_mask_in_windows_fits_an_image_that_its_processor_resizes():
    made = segmenter(lambda values: values)
    made.processor = SegmentationImageProcessor(size={"height": 64, "width": 48})
    assert made(photo(30, 20)).mask.shape == (30, 20)
    assert len(made.seen) == 12


@each(("labels", "kind"), [(256, np.uint8), (300, np.uint16)])
def test_more_than_256_classes_have_16_bits(labels, kind):
    def highest_last(values):
        return torch.arange(labels, dtype=torch.float32)[None, :, None, None].expand(
            1, labels, *values.shape[-2:]
        )

    segmented = segmenter(highest_last, labels)(photo())
    assert segmented.mask.dtype == kind
    assert list(segmented.scores) == [labels - 1]


def test_images_of_four_channels_are_read_from_files(tmp_path):
    made = segmenter(lambda values: values[:, :3])
    made.processor = SegmentationImageProcessor(
        do_convert_rgb=False, image_mean=[0.5] * 4, image_std=[0.5] * 4
    )
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "bands.png")
    mask = made((tmp_path / "bands.png").read_bytes()).mask
    assert np.array_equal(mask, pixels[..., :3].argmax(-1))


def test_sums_are_of_the_pixels_that_count():
    logits, ids = torch.tensor([[[0.0, 5.0]], [[5.0, 0.0]]]), torch.tensor([[1, 0]])
    (label, total, count), *others = class_sums(logits, ids, (slice(0, 1), slice(1, 2)))
    assert (label, count, others) == (0, 1, [])
    assert total == pytest.approx(1 / (1 + np.exp(-5)))


def file_of(image, **options):
    with io.BytesIO() as file:
        image.save(file, "PNG", **options)
        return file.getvalue()


def test_an_image_for_models_of_rgb_has_its_levels_and_colors_and_stands_upright():
    levels = np.arange(256, dtype=np.uint16).reshape(1, 256)
    for image in (Image.fromarray(257 * levels), file_of(Image.fromarray(257 * levels))):
        np.testing.assert_array_equal(np.asarray(as_rgb(image))[..., 1], levels)
    indexed = Image.fromarray(levels[:, :2].astype(np.uint8), "P")
    indexed.putpalette([10, 20, 30, 40, 50, 60])
    content = file_of(indexed, transparency=b"\x00\xff")
    assert np.asarray(as_rgb(content)).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    exif = Image.Exif()
    exif[0x0112] = 6
    content = file_of(photo(3, 5), exif=exif)
    upright = np.rot90(np.asarray(photo(3, 5)), -1)
    np.testing.assert_array_equal(np.asarray(as_rgb(content)), upright)
    made = segmenter(lambda values: values)
    for image in (content, Image.open(io.BytesIO(content))):
        assert made.read(image)[1] == (5, 3)
        np.testing.assert_array_equal(made(image).mask, made(Image.fromarray(upright)).mask)
