"""The collator: what a batch of mixed sizes becomes."""

import io

import numpy as np
import pytest
import torch
from cases import each
from PIL import Image

from contextseg import SegmentationCollator, SegmentationImageProcessor


def test_the_collator_pads_mixed_sizes_and_ignores_the_padding():
    samples = [
        {"image": Image.new("RGB", (width, height)), "mask": np.ones((height, width), np.int64)}
        for height, width in ((6, 8), (9, 4))
    ]
    batch = SegmentationCollator(SegmentationImageProcessor())(samples)
    assert batch["pixel_values"].shape == (2, 3, 9, 8)
    torch.testing.assert_close(batch["pixel_mask"].long(), (batch["labels"] == 1).long())
    assert (batch["labels"][batch["pixel_mask"] == 0] == 255).all()


def test_the_collator_leaves_class_ids_as_the_data_set_gave_them():
    """The processor's own label map is for mask files."""
    sample = {"image": Image.new("RGB", (2, 1)), "mask": np.array([[0, 255]])}
    processor = SegmentationImageProcessor(label_map={7: 0})
    assert SegmentationCollator(processor)([sample])["labels"].tolist() == [[[0, 255]]]


def test_the_collator_refuses_mixed_sizes_for_a_model_that_takes_no_pixel_mask():
    samples = [
        {"image": Image.new("RGB", (8, size)), "mask": np.ones((size, 8), np.int64)} for size in (6, 9)
    ]
    collator = SegmentationCollator(SegmentationImageProcessor(), can_pad=False)
    with pytest.raises(ValueError, match="images of 8x6, 8x9: .* per_device_eval_batch_size=1"):
        collator(samples)
    assert collator(samples[:1])["labels"].shape == (1, 6, 8)


def test_the_collator_refuses_an_empty_batch():
    with pytest.raises(ValueError, match="empty batch"):
        SegmentationCollator(SegmentationImageProcessor())([])


IDS = np.array([[0, 1, 2], [1, 255, 0]], np.uint8)


def as_png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@each(
    "cell",
    {
        "PIL": Image.fromarray(IDS),
        "array": IDS,
        "tensor": torch.from_numpy(IDS),
        "lists": IDS.tolist(),
        "cell of datasets": {"bytes": as_png(IDS), "path": None},
        "bytes": as_png(IDS),
    },
)
def test_rows_of_datasets_are_samples(cell):
    image = {"bytes": as_png(np.zeros((2, 3, 3), np.uint8)), "path": None}
    batch = SegmentationCollator(SegmentationImageProcessor())([{"image": image, "mask": cell}])
    assert batch["labels"].tolist() == [IDS.tolist()]


def test_stored_masks_are_decoded_by_the_label_map_of_the_processor():
    processor = SegmentationImageProcessor(label_map={7: 0, 9: 1, 0: "ignore"})
    sample = {"image": Image.new("RGB", (3, 1)), "mask": Image.fromarray(np.array([[7, 9, 0]], np.uint8))}
    assert SegmentationCollator(processor, 100)([sample])["labels"].tolist() == [[[0, 1, 100]]]


def test_samples_without_masks_are_inputs_for_prediction():
    samples = [{"image": Image.new("RGB", (8, size))} for size in (6, 9)]
    collator = SegmentationCollator(SegmentationImageProcessor())
    assert set(collator(samples)) == {"pixel_values", "pixel_mask"}
    with pytest.raises(ValueError, match="8x6, 8x9"):
        SegmentationCollator(SegmentationImageProcessor(), can_pad=False)(samples)


@each(
    ("sample", "message"),
    {
        "another name": (
            {"image": Image.new("RGB", (2, 2)), "label": IDS},
            "'image', 'label'; 'image' and 'mask'",
        ),
        "a tuple": ((IDS, IDS), "of type tuple, but must be a dict"),
        "an array": (IDS, "of type ndarray, but must be a dict"),
        "columns removed": ({}, "no keys.*remove_unused_columns=False"),
        "another size": ({"image": Image.new("RGB", (2, 2)), "mask": IDS}, "is 3x2, but its image is 2x2"),
        "no ids": ({"image": Image.new("RGB", (3, 2)), "mask": IDS / 2}, "class ids are integers"),
    },
)
def test_samples_that_cannot_be_used_are_answered_in_words(sample, message):
    with pytest.raises(ValueError, match=message):
        SegmentationCollator(SegmentationImageProcessor())([sample])
