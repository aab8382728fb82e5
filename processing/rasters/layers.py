"""What is written of a raster: rows of the mask and of maps, made of class probabilities, with nodata where there are none.

- mask: class ids, uint8 with nodata 255; with more than 255 classes uint16 with nodata 65535.
- confidence, entropy: uint16 as in the PNGs of images, 65535 is 1; nodata is 0, and no valid pixel is below 1.
- probabilities: float16, one value per class, NaN where there are no data.

Legend: K classes, W columns, R rows.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..logits_to_masks import mean_probabilities
from ..plain_text import one_line
from ..prediction_maps import IMAGE_MAPS, ONE
from .geotiff import BandContent
from .part_files import Layer
from .raster import read_window
from .spans import spans_of

DESCRIPTIONS = {
    "confidence": "probability of the predicted class",
    "entropy": "entropy of the class probabilities divided by the logarithm of their number",
}
VALID_PIXELS = 1 << 24  # whose validity is in memory at once
READ_PIXELS = 1 << 21  # that are read at once to find it


def nodata_of(num_labels: int) -> int:
    """Returns the mask's value of pixels without data, which is not the id of a class."""
    return 255 if num_labels <= 255 else 65535


def mask_type(num_labels: int) -> str:
    """Returns the type of a mask. Raises ValueError for more classes than uint16 holds."""
    if num_labels > 65535:
        raise ValueError(
            f"the model has {num_labels} classes, but the mask of a raster has at most 65535. Merge classes."
        )
    return "uint8" if num_labels <= 255 else "uint16"


def layers_of(names: Sequence[str], num_labels: int, width: int) -> dict[str, Layer]:
    """Returns the layers of the mask and of the maps `names`."""
    types = {"probabilities": Layer("float16", (width, num_labels))}
    maps = {name: types.get(name, Layer("uint16", (width,))) for name in names}
    return {"mask": Layer(mask_type(num_labels), (width,)), **maps}


def mask_content(names: Sequence[str], colors: Sequence[Sequence[int]]) -> BandContent:
    """Returns what the band of a mask is: its colors, and the class names as tags class_0, class_1, ..."""
    tags = {f"class_{index}": one_line(name) for index, name in enumerate(names)}
    return BandContent(mask_type(len(names)), nodata_of(len(names)), "class ids", colors, tags)


def map_content(name: str) -> BandContent:
    """Returns what the band of the map `name` is."""
    return BandContent("uint16", 0, DESCRIPTIONS[name], scale=1 / ONE)


def layer_rows(
    names: Sequence[str],
    scores: Tensor,
    valid: np.ndarray,
    *,
    are_logits: bool = False,
    are_scores: bool = False,
) -> dict[str, np.ndarray]:
    """Class scores (K, R, W) and where the raster has data (R, W) -> rows of the layers `names`.

    The scores are probabilities, or logits, whose probabilities are computed only for other layers than the mask;
    with `are_scores`, in proportion to probabilities, as of `MaskSegmenter`.
    """
    missing, rows, num_labels = ~valid, {}, len(scores)
    needs_probabilities = are_logits and set(names) != {"mask"}
    probabilities = mean_probabilities([scores], are_scores) if needs_probabilities else scores
    for name in names:
        if name == "mask":
            values = scores.max(0).indices.cpu().numpy().astype(mask_type(num_labels))
            values[missing] = nodata_of(num_labels)
        elif name == "probabilities":
            values = probabilities.half().cpu().numpy().transpose(1, 2, 0)
            values = np.where(missing[..., None], np.float16(np.nan), values)
        else:
            values = (IMAGE_MAPS[name](probabilities) * ONE).round().clamp(1, ONE).to(torch.int32)
            values = values.cpu().numpy().astype(np.uint16)
            values[missing] = 0
        rows[name] = values
    return rows


class Validity:
    """Where a raster has data, for rows that are asked for from top to bottom; read in pieces, so that memory is bounded."""

    def __init__(self, raster: Any) -> None:
        self.raster, self.start = raster, 0
        self.held = np.empty((0, raster.shape[2]), dtype=bool)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Returns (stop - start, W), True where there are data."""
        if start < self.start or stop > self.start + len(self.held):
            self._hold(start, stop)
        return self.held[start - self.start : stop - self.start]

    def _hold(self, start: int, stop: int) -> None:
        _, height, width = self.raster.shape
        rows = min(height - start, max(stop - start, VALID_PIXELS // width))
        self.start, self.held = start, np.ones((rows, width), dtype=bool)
        if not getattr(self.raster, "may_lack_data", True):
            return
        step = max(1, READ_PIXELS // rows)
        for left, right in spans_of(width, step):
            self.held[:, left:right] = read_window(self.raster, start, left, rows, right - left)[1]
