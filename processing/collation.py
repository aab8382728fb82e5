"""From samples of any size to one batch: what a DataLoader or transformers' Trainer takes as its collator.

Legend: B batch, C bands, H, W pixels.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import BaseImageProcessor


class SegmentationCollator:
    """Samples {"image": picture, "mask": (H, W) class ids} -> inputs of a segmenter; other keys are left out.

    Images are normalised and never resized: that is left to the augmentation. A batch of mixed sizes is padded to the largest;
    padding is labelled as ignored, and `pixel_mask` tells the model where it is.

    can_pad: False for a model that takes no `pixel_mask`; mixed sizes then raise.
    """

    def __init__(
        self, processor: BaseImageProcessor, ignore_index: int = 255, *, can_pad: bool = True
    ) -> None:
        self.processor = processor
        self.ignore_index = ignore_index
        self.can_pad = can_pad

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """-> pixel_values (B, C, H, W), labels (B, H, W), and pixel_mask (B, H, W) where sizes differ."""
        sizes = {sample["mask"].shape for sample in samples}
        if len(sizes) > 1 and not self.can_pad:
            shown = ", ".join(f"{width}x{height}" for height, width in sorted(sizes))
            raise ValueError(
                f"images of {shown} are to become one batch, and this model takes no pixel_mask that would tell padding from "
                "image. Give images of one size, or one at a time: per_device_eval_batch_size=1."
            )
        images = [sample["image"] for sample in samples]
        inputs = dict(self.processor(images, do_resize=False, return_tensors="pt"))
        labels = torch.full((len(samples), *inputs["pixel_values"].shape[-2:]), self.ignore_index)
        for label, sample in zip(labels, samples, strict=True):
            height, width = sample["mask"].shape
            label[:height, :width] = torch.as_tensor(sample["mask"])
        return inputs | {"labels": labels}
