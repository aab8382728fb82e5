"""The inputs of models with two scales that samples of crop pairs have beside those of all models."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BaseImageProcessor

from .samples import scale_for

CONTEXT, CONTEXT_MASK = "context", "context_mask"  # entries of a sample with a crop pair
VALID, CONTEXT_VALID = "valid", "context_valid"
PAIR_ENTRIES = (CONTEXT, CONTEXT_MASK, VALID, CONTEXT_VALID)


def with_contexts(
    inputs: dict[str, Tensor], samples: Sequence[Mapping[str, Any]], processor: BaseImageProcessor
) -> dict[str, Tensor]:
    """Adds the contexts of samples to a batch of their local crops.

    Args:
        inputs: `pixel_values` (B, C, h, w), and other inputs.
        samples: Samples of crop pairs, see `cut_pair`; those without a `context` leave the inputs as they are.
        processor: The image processor.

    Returns:
        The inputs with `pixel_values` set to 0 outside the image, `context_values` (B, C, h, w), and with masks
        `context_labels` (B, h, w) int64.

    Raises:
        ValueError: If only some of the samples have a context, or one has another size than its local crop.
    """
    present = [name for name in (CONTEXT, CONTEXT_MASK) if any(name in sample for sample in samples)]
    for name in present:
        if not all(name in sample for sample in samples):
            raise ValueError(f"only some samples of a batch have a '{name}'. Give one to all or to none.")
    if CONTEXT not in present:
        return inputs
    options = {"do_resize": False, "return_tensors": "pt", **scale_for(processor, samples[0])}
    contexts = processor([sample[CONTEXT] for sample in samples], **options)["pixel_values"]
    if contexts.shape != inputs["pixel_values"].shape:
        raise ValueError(
            f"the contexts are of shape {tuple(contexts.shape)}, but the local crops of {tuple(inputs['pixel_values'].shape)}. "
            "Make them the same size."
        )
    added = {
        "pixel_values": inside(inputs["pixel_values"], samples, VALID),
        "context_values": inside(contexts, samples, CONTEXT_VALID),
    }
    if CONTEXT_MASK in present:
        masks = np.stack([np.asarray(sample[CONTEXT_MASK]) for sample in samples])
        added["context_labels"] = torch.as_tensor(masks, dtype=torch.int64)
    return inputs | added


def inside(values: Tensor, samples: Sequence[Mapping[str, Any]], name: str) -> Tensor:
    """(B, C, h, w) values, 0 where the entry `name` of the samples, if they have it, is False."""
    if not all(name in sample for sample in samples):
        return values
    valid = np.stack([np.asarray(sample[name], dtype=bool) for sample in samples])
    return torch.where(torch.from_numpy(valid)[:, None], values, 0.0)
