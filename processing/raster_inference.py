"""Class probabilities of a raster, read by windows and given out in bands of rows."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def raster_rows(inference: Any, model: nn.Module, raster: Any) -> list[int]:
    """First rows of the result of each row of windows."""
    return [0]


@torch.no_grad()
def raster_scores(
    inference: Any,
    model: nn.Module,
    processor: Any,
    raster: Any,
    rows: tuple[int, int] | None = None,
    memory: int = 2 << 30,
) -> Iterator[tuple[int, Tensor]]:
    """Yields (first row, class probabilities (K, r, W)) of the given rows, from top to bottom."""
    from .rasters import read_window, window_values  # the simple form, until the windows are read one by one

    _, height, width = raster.shape
    first, end = rows or (0, height)
    inputs = [
        window_values(processor, *read_window(raster, 0, 0, height, width, scale))[None]
        for scale in inference.scales
    ]
    row = 0
    for band in inference.probabilities(model, inputs, (height, width)):
        top, bottom = max(first, row), min(end, row + band.shape[1])
        if top < bottom:
            yield top, band[:, top - row : bottom - row]
        row += band.shape[1]
