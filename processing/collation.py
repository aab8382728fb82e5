"""The collator that turns samples of any size into one batch, for a DataLoader or transformers' Trainer.

Legend: B batch, C channels, H, W pixels.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import BaseImageProcessor


class SegmentationCollator:
    """Collates samples {"image": image, "mask": (H, W) class ids} to the inputs of a segmenter.

    Other keys of the samples are dropped. Images are normalized but not resized, which is up to the
    augmentation. A batch of mixed sizes is padded to the largest height and width; padding is labeled
    `ignore_index`, and `pixel_mask` marks the pixels that are not padding.

    Args:
        processor: The image processor that normalizes and pads.
        ignore_index: Label of the padding.
        can_pad: Whether the model takes a `pixel_mask`. If False, mixed sizes raise an error.
    """

    def __init__(
        self, processor: BaseImageProcessor, ignore_index: int = 255, *, can_pad: bool = True
    ) -> None:
        self.processor = processor
        self.ignore_index = ignore_index
        self.can_pad = can_pad

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Collates a batch.

        Args:
            samples: One dict per image, with an "image" for the processor and a "mask" (H, W) of class ids.

        Returns:
            `pixel_values` (B, C, H, W), `labels` (B, H, W) int64, and for mixed sizes `pixel_mask` (B, H, W).

        Raises:
            ValueError: If there are no samples, or the sizes differ and `can_pad` is False.
        """
        if not samples:
            raise ValueError("got an empty batch. Give at least one sample.")
        sizes = {sample["mask"].shape for sample in samples}
        if len(sizes) > 1 and not self.can_pad:
            shown = ", ".join(f"{width}x{height}" for height, width in sorted(sizes))
            raise ValueError(
                f"cannot batch images of {shown}: this model takes no pixel_mask, so it cannot "
                "tell padding from image. Give images of one size, or one image per batch: "
                "per_device_eval_batch_size=1."
            )
        images = [sample["image"] for sample in samples]
        inputs = dict(self.processor(images, do_resize=False, return_tensors="pt"))
        labels = torch.full((len(samples), *inputs["pixel_values"].shape[-2:]), self.ignore_index)
        for label, sample in zip(labels, samples, strict=True):
            height, width = sample["mask"].shape
            label[:height, :width] = torch.as_tensor(sample["mask"])
        return inputs | {"labels": labels}
