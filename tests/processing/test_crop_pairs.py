"""Crop pairs for models with two scales: both crops show the same place, and fit what a model cuts for itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import each
from PIL import Image

from contextseg import SegmentationImageProcessor
from contextseg.modeling.crop_pairs import context_labels_of, contexts_of, tiles_of
from contextseg.processing.collation import SegmentationCollator
from contextseg.processing.crop_frames import Frame, cut_pixels
from contextseg.processing.crop_images import DecodedImage
from contextseg.processing.data.augmentation import AugmentedDataset, JointAugmentation
from contextseg.processing.data.batches import TrainingSamples

MEAN = tuple(255 * mean for mean in (0.485, 0.456, 0.406))
PAIRS = JointAugmentation((16, 16), context_ratio=4, fill=MEAN, use_photometric_distortion=False)
PLAIN = {"scale_range": (1, 1), "flip_probability": 0}


def scene(height=48, width=80, seed=0):
    random = np.random.default_rng(seed)
    ids = random.integers(0, 3, (height // 8, width // 8)).repeat(8, 0).repeat(8, 1)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)), ids


def ramp(height=64, width=64):
    """An image whose red and green are the row and the column."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    return np.stack([rows, columns, rows * 0], -1)


class Data:
    ignore_index = 255

    def __len__(self):
        return 1

    def __getitem__(self, index):
        image, mask = scene()
        return {"image": image, "mask": mask, "name": "scene"}


def crop(augmentation, image, mask, index=0):
    return augmentation.crop({"image": image, "mask": mask}, epoch=0, index=index)


@each(("ratio", "side"), [(1, 16), (2, 16), (4, 16), (2, 17), (3, 15), (4, 51)])
def test_the_processor_cuts_the_pairs_that_a_model_cuts_from_a_whole_image(ratio, side):
    image, ids = scene(40, 72)
    processor, boxes = (
        SegmentationImageProcessor(),
        [(y, x, side, side) for y in range(0, 40, side) for x in range(0, 72, side)],
    )
    whole = processor(image, ids, return_tensors="pt")
    pairs = processor.crop_pairs(image, boxes, ids, context_ratio=ratio)
    expected = {
        "pixel_values": tiles_of(whole["pixel_values"], side),
        "context_values": contexts_of(whole["pixel_values"], side, ratio),
        "labels": tiles_of(whole["labels"][:, None], side, 255)[:, 0],
        "context_labels": context_labels_of(whole["labels"], side, ratio, 255),
    }
    for name, values in expected.items():
        torch.testing.assert_close(pairs[name], values, rtol=0, atol=1e-5)
    assert ((expected["context_values"] == 0) == (pairs["context_values"] == 0)).all()


@each("angle", [0, 30, -75, 180])
@each("is_mirrored", [False, True])
def test_the_middle_of_the_context_shows_what_the_crop_shows(angle, is_mirrored):
    frame = Frame.of_box(24, 24, 16, 16, angle=angle, is_mirrored=is_mirrored)
    fill, image = np.zeros(3, np.float32), DecodedImage(ramp())
    local = cut_pixels(image, frame, (16, 16), fill=fill).pixels
    context = cut_pixels(image, frame.context(2), (16, 16), fill=fill).pixels
    blocks = local.reshape(3, 8, 2, 8, 2).mean((2, 4))
    np.testing.assert_allclose(context[:, 4:12, 4:12], blocks, atol=1e-3)


@each("sampling", ["area", "point"])
def test_a_quarter_turn_and_a_mirror_are_those_of_numpy(sampling):
    image, fill = DecodedImage(np.asarray(scene(32, 32)[0])), np.zeros(3, np.float32)
    upright = cut_pixels(image, Frame.of_box(8, 8, 16, 16), (16, 16), fill=fill, sampling=sampling).pixels
    turned = Frame.of_box(8, 8, 16, 16, angle=90)
    mirrored = Frame.of_box(8, 8, 16, 16, is_mirrored=True)
    found = [cut_pixels(image, frame, (16, 16), fill=fill).pixels for frame in (turned, mirrored)]
    np.testing.assert_allclose(found[0], np.rot90(upright, axes=(1, 2)), atol=1e-3)
    np.testing.assert_array_equal(found[1], upright[:, :, ::-1])


@each("scale", [0.4, 1.7, 3.0])
def test_area_sampling_keeps_the_mean_and_smooths(scale):
    noise = np.random.default_rng(0).normal(100, 20, (96, 96, 1)).astype(np.float32)
    frame, fill = Frame.of_box(24, 24, 16 * scale, 16 * scale, angle=20), np.zeros(1, np.float32)
    area, point = (
        cut_pixels(DecodedImage(noise), frame, (16, 16), fill=fill, sampling=s).pixels
        for s in ("area", "point")
    )
    assert abs(area.mean() - 100) < 6
    assert area.std() < (0.8 * point.std() if scale > 1 else 20)


@each("seed", range(4))
@each("rotation", [0, 60])
def test_image_and_labels_of_both_crops_agree(seed, rotation):
    _, ids = scene(96, 96, seed)
    image = np.repeat(80 * ids[..., None], 3, axis=2).astype(np.float32)
    augmentation = replace(PAIRS, seed=seed, rotation=rotation, fill=(240,) * 3)
    sample = crop(augmentation, image, ids)
    for pixels, labels in ((sample["image"], sample["mask"]), (sample["context"], sample["context_mask"])):
        expected = np.where(labels == 255, 240, 80 * labels)
        assert (np.abs(pixels[..., 0] - expected) < 40).mean() > 0.6  # borders of classes are blended
    assert (sample["mask"] == 255).sum() == (~sample["valid"]).sum()


def test_crops_of_a_small_image_are_padded_and_have_their_context_around_them():
    image, ids = scene(8, 8)
    sample = crop(replace(PAIRS, **PLAIN), image, ids)
    assert sample["valid"].sum() == 64
    assert sample["context_valid"].sum() == 4
    np.testing.assert_array_equal(sample["image"][:8, :8], np.asarray(image))
    np.testing.assert_allclose(sample["image"][~sample["valid"]], np.broadcast_to(MEAN, (192, 3)), rtol=1e-6)
    assert sample["context_mask"][~sample["context_valid"]].tolist() == [255] * 252


def test_point_sampling_selects_every_fourth_pixel():
    image, ids = scene(64, 64)
    sample = crop(replace(PAIRS, **PLAIN, context_sampling="point"), image, ids, index=3)
    whole = np.asarray(image)
    top, left = (
        (y, x)
        for y in range(49)
        for x in range(49)
        if (whole[y : y + 16, x : x + 16] == sample["image"]).all()
    ).__next__()
    rows, columns = (start - 24 + 4 * np.arange(16) for start in (top, left))
    inside = ((rows >= 0) & (rows < 64))[:, None] & ((columns >= 0) & (columns < 64))
    chosen = whole[rows.clip(0, 63)[:, None], columns.clip(0, 63)]
    np.testing.assert_array_equal(sample["context"][inside], chosen[inside])


def test_both_crops_get_the_same_colors():
    image = Image.new("RGB", (64, 64), (90, 140, 60))
    for index in range(4):
        sample = crop(replace(PAIRS, use_photometric_distortion=True), image, np.zeros((64, 64), int), index)
        inner = sample["context"][6:10, 6:10]  # within the crop, and so within the image
        assert (sample["image"] == sample["image"][0, 0]).all()
        np.testing.assert_array_equal(inner, np.broadcast_to(sample["image"][0, 0], inner.shape))


def test_training_and_the_collator_give_the_same_pairs_with_zero_outside_the_image():
    processor, data, pairs = SegmentationImageProcessor(), Data(), replace(PAIRS, **PLAIN)
    sample = TrainingSamples(data, pairs, processor)[0, 0]
    batch = SegmentationCollator(processor)([AugmentedDataset(data, pairs)[0]] * 2)
    assert set(batch) == {"pixel_values", "context_values", "labels", "context_labels"}
    for name, values in batch.items():
        assert torch.equal(values[1], sample[name])
    outside = ~torch.from_numpy(crop(pairs, *scene())["context_valid"])
    assert outside.any()  # the context is larger than the image
    assert (sample["context_values"][:, outside] == 0).all()


def test_pairs_of_numbers_with_a_range_are_read_as_the_processor_reads_them():
    image = np.random.default_rng(0).random((20, 30, 4), dtype=np.float32) * 50
    normalization = {"image_mean": [0.4] * 4, "image_std": [0.2] * 4}
    processor = SegmentationImageProcessor(do_convert_rgb=False, value_range=(0, 50), **normalization)
    pairs = processor.crop_pairs(image, torch.tensor([[0, 0, 20, 30]]), context_ratio=2)
    whole = processor(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pairs["pixel_values"], whole, rtol=0, atol=1e-5)


def test_a_batch_with_a_single_pair_is_refused():
    pair = crop(PAIRS, *scene())
    alone = {name: pair[name] for name in ("image", "mask", "value_range")}
    with pytest.raises(ValueError, match="only some samples of a batch have a 'context'"):
        SegmentationCollator(SegmentationImageProcessor())([pair, alone])


def test_shares_of_resized_and_rotated_crops():
    random = [np.random.default_rng(index) for index in range(200)]
    half = replace(PAIRS, rotation=90, resize_share=0.5, rotation_share=0.25)
    plans = [half._plan(scene()[1], generator) for generator in random]
    assert 0.35 < np.mean([plan.region.height == 16 for plan in plans]) < 0.65
    assert 0.65 < np.mean([plan.angle == 0 for plan in plans]) < 0.85


@each(
    "wrong",
    [
        ({"boxes": []}, "not boxes"),
        ({"boxes": [(0, 0, 8)]}, "not boxes"),
        ({"boxes": [(0, 0, 8, 8), (0, 0, 9, 9)]}, "differ in size"),
        ({"boxes": [(0, float("nan"), 8, 8)]}, "not boxes"),
        ({"size": 8}, "not a size"),
        ({"size": (0, 8)}, "not a size"),
        ({"angle": float("inf")}, "not a number of degrees"),
        ({"context_ratio": 1.5}, "whole number"),
        ({"context_sampling": "nearest"}, "area, point"),
        ({"segmentation_map": np.zeros((9, 9), np.uint8)}, "is 9x9"),
    ],
)
def test_arguments_that_give_no_pairs_are_refused(wrong):
    given = {"boxes": [(0, 0, 8, 8)], "context_ratio": 2} | wrong[0]
    with pytest.raises(ValueError, match=wrong[1]):
        SegmentationImageProcessor().crop_pairs(scene()[0], **given)
