"""Cuts crop pairs for models with two scales: a sharp local crop, and its wide context.

Legend: C channels, h, w pixels of a crop.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .crop_frames import Frame, LabelReader, PixelReader, Sampling, cut_labels, cut_pixels
from .samples import SCALE, VALUE_RANGE


def cut_pair(
    image: PixelReader,
    labels: LabelReader | None,
    frame: Frame,
    size: tuple[int, int],
    *,
    context_ratio: int,
    fill: Sequence[float],
    ignore_index: int,
    sampling: Sampling = "area",
) -> dict[str, Any]:
    """Cuts a local crop and its context from an image.

    Args:
        image: Reads pixels of the image on the scale 0..255, such as a `DecodedImage` or `RasterImage`.
        labels: Reads class ids, such as a `LabelArray` or `LabelRaster`. None cuts no labels.
        frame: Where the local crop lies.
        size: (h, w) of both crops.
        context_ratio: Sides of the context in those of the local crop.
        fill: (C,), the mean, which pixels outside the image count as.
        ignore_index: Label of pixels outside the image, or without data.
        sampling: "area", or "point" as the authors of relay tokens do.

    Returns:
        A sample: `image` and `context` (h, w, C) float32 in 0..255; `valid` and `context_valid` (h, w), where they
        show any of the image; `mask` and `context_mask` (h, w) class ids if there are labels; `value_range`.
    """
    options = {"fill": np.asarray(fill, dtype=np.float32), "sampling": sampling}
    sample: dict[str, Any] = {VALUE_RANGE: SCALE}
    for names, place in (
        (("image", "valid", "mask"), frame),
        (("context", "context_valid", "context_mask"), frame.context(context_ratio)),
    ):
        pixels, inside = cut_pixels(image, place, size, **options)
        sample[names[0]] = np.ascontiguousarray(np.moveaxis(pixels, 0, -1))
        sample[names[1]] = inside
        if labels is not None:
            sample[names[2]] = np.where(inside, cut_labels(labels, place, size, sampling), ignore_index)
    return sample
