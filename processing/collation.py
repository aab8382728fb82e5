"""The collator that turns samples of any size into one batch, for a DataLoader or transformers' Trainer.

Legend: B batch, C channels, H, W pixels.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BaseImageProcessor

from .image_reading import describe
from .label_maps import LabelMap
from .mask_reading import read_mask
from .pair_inputs import PAIR_ENTRIES, with_contexts
from .samples import MASK_COLUMNS, check_sizes, scale_for


class SegmentationCollator:
    """Collates samples {"image": image, "mask": mask} to the inputs of a segmenter.

    Samples are those of `open_data`, or rows of `datasets`. An image is anything that the processor reads. A
    mask is an array or tensor (H, W) of class ids, or a mask as stored (PIL image, path, bytes, or an array
    of colors), which the processor decodes. Either can also be a cell {"bytes", "path"} of `datasets`.
    Without masks, as for prediction, there are no labels. Crop pairs, as a `JointAugmentation` with a `context_ratio` or
    `cut_pair` makes them, also have a "context" and a "context_mask". Other keys of the samples are dropped. Images are
    normalized but not resized, which is up to the augmentation. A batch of mixed sizes is padded to the largest height and width; padding is labeled
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
            samples: One dict per image, with an "image" and, unless in prediction, a "mask".

        Returns:
            `pixel_values` (B, C, H, W); with masks `labels` (B, H, W) int64; for mixed sizes `pixel_mask`
            (B, H, W); and for crop pairs `context_values` and `context_labels`, see `with_contexts`.

        Raises:
            ValueError: If a sample has other keys, a mask does not fit its image, or the sizes differ and
                `can_pad` is False.
        """
        if not samples:
            raise ValueError("got an empty batch. Give at least one sample.")
        check_keys(samples)
        images = [plain_cell(sample["image"]) for sample in samples]
        masks = [self.class_ids(plain_cell(sample["mask"])) for sample in samples if "mask" in sample]
        self.check_batch([tuple(mask.shape) for mask in masks])
        inputs = dict(
            self.processor(
                images, do_resize=False, return_tensors="pt", **scale_for(self.processor, samples[0])
            )
        )
        sizes = sizes_of(inputs)
        self.check_batch(sizes)
        inputs = with_contexts(inputs, samples, self.processor)
        if not masks:
            return inputs
        labels = torch.full((len(samples), *inputs["pixel_values"].shape[-2:]), self.ignore_index)
        for label, mask, size, sample in zip(labels, masks, sizes, samples, strict=True):
            check_sizes(size, mask.shape, str(sample.get("name", "a sample")))
            label[: size[0], : size[1]] = torch.as_tensor(mask)
        return inputs | {"labels": labels}

    def class_ids(self, mask: Any) -> np.ndarray | Tensor:
        """A mask of class ids (H, W), unchanged, or of any other kind -> class ids (H, W)."""
        if isinstance(mask, np.ndarray | Tensor) and mask.ndim == 2 and "float" not in str(mask.dtype):
            return mask
        if hasattr(self.processor, "decode_mask"):
            return self.processor.decode_mask(mask, ignore_index=self.ignore_index)
        return LabelMap(None, self.ignore_index).decode(read_mask(mask), describe(mask))

    def check_batch(self, sizes: list[tuple[int, int]]) -> None:
        """Raises ValueError if the (height, width) differ, but the model takes no `pixel_mask`."""
        if len(set(sizes)) > 1 and not self.can_pad:
            shown = ", ".join(f"{width}x{height}" for height, width in sorted(set(sizes)))
            raise ValueError(
                f"cannot batch images of {shown}: this model takes no pixel_mask, so it cannot "
                "tell padding from image. Give images of one size, or one image per batch: "
                "per_device_eval_batch_size=1."
            )


def check_keys(samples: list[dict[str, Any]]) -> None:
    """Raises ValueError unless every sample has an image, and all or none have a mask."""
    for sample in samples:
        if not isinstance(sample, Mapping):
            raise ValueError(
                f"a sample is of type {type(sample).__name__}, but must be a dict with 'image' and 'mask'. Convert it, "
                "such as {'image': sample[0], 'mask': sample[1]}."
            )
    with_mask = sum("mask" in sample for sample in samples)
    for sample in samples:
        found = ", ".join(f"'{key}'" for key in sample) or "no keys"
        others = set(sample) - {"image", "mask", "name", *PAIR_ENTRIES}
        if "image" not in sample or ("mask" not in sample and others.intersection(MASK_COLUMNS)):
            raise ValueError(
                f"a sample has {found}; 'image' and 'mask' are needed (only 'image' for prediction). Rename the columns, "
                "such as dataset.rename_columns({'label': 'mask'}), and with Trainer pass remove_unused_columns=False."
            )
    if with_mask not in (0, len(samples)):
        raise ValueError(f"{with_mask} of {len(samples)} samples have a 'mask'. Give one to all or to none.")


def plain_cell(value: Any) -> Any:
    """A cell {"bytes", "path"} of `datasets` -> its bytes or path; nested lists -> an array; others unchanged."""
    if isinstance(value, Mapping) and {"bytes", "path"} <= value.keys():
        return value["path"] if value["bytes"] is None else value["bytes"]
    return np.asarray(value) if isinstance(value, list) else value


def sizes_of(inputs: dict[str, Tensor]) -> list[tuple[int, int]]:
    """(height, width) of each image of a batch, without its padding."""
    if "pixel_mask" not in inputs:
        return [tuple(inputs["pixel_values"].shape[-2:])] * len(inputs["pixel_values"])
    return [(int(mask[:, 0].sum()), int(mask[0].sum())) for mask in inputs["pixel_mask"]]
