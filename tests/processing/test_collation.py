"""The collator: what a batch of mixed sizes becomes."""

import numpy as np
import pytest
import torch
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
