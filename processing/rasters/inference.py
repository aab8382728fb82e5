"""Class probabilities of a raster of any size, in bands of rows from top to bottom, in bounded memory.

Windows are read one batch at a time, and rows of results leave as soon as no further window covers them. What
is held at once does not grow with the height of the raster, and what grows with its width is in a file, where
it would exceed the setting. No value depends on the setting, or on which rows are requested.

Legend: C channels, H, W pixels of the raster, K classes, R rows, h, w pixels of a window.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor, nn

from ..context_windows import Box, reduced
from ..image_windows import (
    CONTEXT_BYTES,
    View,
    logits_of,
    scaled_size,
    view_of,
    window_sides,
)
from ..logits_to_masks import cells_at, mean_probabilities, upsampled_rows
from ..mask_models import as_segmenter, gives_scores, image_part
from ..tiling import RowReader
from .gdal import GDAL_OPTIONS
from .raster import Raster, read_window, window_values
from .row_sums import summed_rows
from .spans import Span

MEMORY = 2 << 30  # bytes that may be held besides the model, by default
BAND_VALUES = 1 << 20  # class scores in a band of rows, 4 MiB, or a row if that has more; a few exist at once
STRIP_ROWS = 64  # rows of a context that are read at once, where it reaches over the raster
BATCH_VALUES = 1 << 26  # logits of a batch of windows, 256 MiB, or a window if that has more


class RasterPixels:
    """Values of a raster at its own scale.

    Args:
        raster: The raster.
        processor: The model's image processor.
    """

    def __init__(self, raster: Raster, processor: Any) -> None:
        self.raster, self.processor, self.size = raster, processor, tuple(raster.shape[1:])

    def read(self, box: Box, ratio: int = 1) -> Tensor:
        """(C, h / ratio, w / ratio) of a window; 0 outside the raster, means of ratio x ratio blocks."""
        if ratio == 1 or self.is_inside(box):
            return self.values(box, 1 / ratio)
        step = ratio * STRIP_ROWS  # areas at the border hold zeros, which count in their mean
        strips = [
            Box(top, box.left, min(step, box.top + box.height - top), box.width)
            for top in range(box.top, box.top + box.height, step)
        ]
        return torch.cat([reduced(self.values(strip), ratio) for strip in strips], dim=1)

    def values(self, box: Box, scale: float = 1.0) -> Tensor:
        """(C, h * scale, w * scale) of a window; 0 outside the raster."""
        window = read_window(self.raster, *box, scale=scale)
        return window_values(self.processor, *window, name=getattr(self.raster, "name", None))

    def is_inside(self, box: Box) -> bool:
        """Whether a window does not reach over the raster."""
        return all(
            start >= 0 and start + length <= side
            for start, length, side in zip(box[:2], box[2:], self.size, strict=True)
        )


class ScaledRasterPixels(RasterPixels):
    """Values of a raster at another scale, resized as image processors do it: linearly, with antialiasing.

    At scales far below 1, areas of pixels are averaged before, as the raster does it.

    Args:
        raster: The raster.
        processor: The model's image processor.
        scale: Factor of its size; a side of one pixel is never less.
    """

    def __init__(self, raster: Raster, processor: Any, scale: float) -> None:
        super().__init__(raster, processor)
        self.area = max(1, int(0.5 / scale))  # pixels on a side that are averaged before
        self.size = scaled_size(self.size, scale)

    def read(self, box: Box, ratio: int = 1) -> Tensor:
        """(C, h / ratio, w / ratio) of a window; 0 outside the raster, means of ratio x ratio blocks."""
        rows, columns = (
            resizing(start, start + length, size, side / self.area, ceil(side / self.area))
            for start, length, size, side in zip(
                box[:2], box[2:], self.size, self.raster.shape[1:], strict=True
            )
        )
        (top, by_row), (left, by_column) = rows, columns
        sides = by_row.shape[1], by_column.shape[1]
        source = Box(*(self.area * n for n in (top, left, *sides)))
        values = by_row @ self.values(source, 1 / self.area) @ by_column.T
        return values if ratio == 1 else reduced(values, ratio)


def resizing(start: int, stop: int, size: int, side: float, cells: int) -> tuple[int, Tensor]:
    """Linear resizing with antialiasing along one axis of `side` pixels, of which there are `cells`, to `size`.

    Returns:
        The first pixel that counts, and the weights (stop - start, pixels) of it and the next ones; no weight
        is above 0 for results outside 0..size-1.
    """
    factor, results = side / size, torch.arange(start, stop, dtype=torch.float64)
    reach, centers = max(1.0, factor), (results + 0.5) * factor
    first = min(max(0, int(centers[0] - reach)), cells - 1)
    last = min(max(first + 1, ceil(float(centers[-1]) + reach)), cells)
    pixels = torch.arange(first, last, dtype=torch.float64) + 0.5
    weights = (1 - (pixels - centers[:, None]).abs() / reach).clamp(min=0)
    weights /= weights.sum(1, keepdim=True).clamp(min=1e-12)
    weights[(results < 0) | (results >= size)] = 0
    return first, weights.float()


def raster_rows(inference: Any, model: nn.Module, raster: Raster) -> list[int]:
    """First rows of the result of each row of windows, see `Inference.raster_rows`."""
    grid = raster_view(inference, model, None, raster, inference.scales[0], False).grid
    return sorted({ceil(max(0, start) * raster.shape[1] / grid.cells[0]) for start in grid.starts[0]})


@torch.no_grad()
def raster_scores(
    inference: Any,
    model: nn.Module,
    processor: Any,
    raster: Raster,
    rows: Span | None,
    memory: int,
    probabilities: bool,
) -> Iterator[tuple[int, Tensor]]:
    """Yields bands of class probabilities or logits, see `Inference.raster_scores`."""
    size = tuple(raster.shape[1:])
    first, stop = rows or (0, size[0])
    if not 0 <= first < stop <= size[0]:
        raise ValueError(f"rows={rows} are not rows of a raster of {size[0]} rows. Give (first, last + 1).")
    views = [
        raster_view(inference, model, processor, raster, scale, is_mirrored)
        for scale in inference.scales
        for is_mirrored in sorted({False, inference.flip})
    ]
    for_sums = (memory - other_bytes(views, raster)) // len(views)
    readers = [(view.grid.cells[0], row_reader(view, size[0], first, for_sums)) for view in views]
    step = max(1, BAND_VALUES // (readers[0][1].channels * size[1]))
    are_averaged = probabilities or inference.has_several_views
    are_scores = gives_scores(model)
    for top, next_top in pairwise([*raster_rows(inference, model, raster), size[0]]):
        for start in range(top, next_top, step):
            band = max(start, first), min(start + step, next_top, stop)
            if band[0] < band[1]:
                logits = (upsampled_rows(rows, n, size, *band) for n, rows in readers)
                yield band[0], mean_probabilities(logits, are_scores) if are_averaged else next(logits)


def raster_view(
    inference: Any, model: nn.Module, processor: Any, raster: Raster, scale: float, is_mirrored: bool
) -> View:
    """A raster as a model sees it in windows. Batches are small enough for any number of classes."""
    model, processor = as_segmenter(model, processor), image_part(processor)
    pixels = RasterPixels(raster, processor) if scale == 1 else ScaledRasterPixels(raster, processor, scale)
    sides = map(min, window_sides(inference, model, pixels.size)[0], pixels.size)
    window = torch.zeros(1, channels_seen(model, raster), *sides)
    view = view_of(inference, model, pixels, window, is_mirrored)
    most = BATCH_VALUES // (num_labels_of(model, window) * prod(view.grid.window))
    return replace(view, batch_size=max(1, min(view.batch_size, most)))


def channels_seen(model: nn.Module, raster: Raster) -> int:
    """The number of channels that a model takes, which image processors make of those of a raster."""
    configs = model.config, getattr(model.config, "backbone_config", None)
    stated = (getattr(config, "num_channels", None) for config in configs)
    return next((channels for channels in stated if channels), raster.shape[0])


def num_labels_of(model: nn.Module, window: Tensor) -> int:
    """The number of classes, from the configuration or by a forward pass on `window`."""
    known = getattr(model.config, "num_labels", None)
    return logits_of(model, window).shape[1] if known is None else known


def row_reader(view: View, height: int, first: int, memory: int) -> RowReader:
    """A reader of the view's logits for rows of a result of `height` rows, from row `first` on.

    Args:
        view: The view.
        height: Rows of the result.
        first: The first row of the result that is read.
        memory: Bytes of sums that may be in memory.
    """
    cell = int(cells_at(first, first + 1, view.grid.cells[0], height))
    tops = view.grid.starts[0]
    index = next(index for index, top in enumerate(tops) if top + view.grid.part[0] > cell)
    pieces = summed_rows(view.grid, view.logits, first=index, memory=memory, piece=BAND_VALUES)
    return RowReader(pieces, max(0, tops[index]))


def other_bytes(views: list[View], raster: Raster) -> int:
    """Bytes that are held besides the sums of rows of windows, rounded up generously."""
    view, (channels, height, width) = views[0], raster.shape
    seen = channels_seen(view.model, raster)
    num_labels = num_labels_of(view.model, torch.zeros(1, seen, *view.box((0, 0))[2:]))
    window, part = prod(view.grid.window), prod(view.grid.part)
    batch = 2 * view.batch_size * window * (num_labels + 2 * channels * view.stride**2)
    strip = 4 * (num_labels + 1) * part
    bands = (6 + 3 * len(views)) * max(BAND_VALUES, num_labels * width)
    contexts = 0 if view.contexts is None else CONTEXT_BYTES * len(views)
    cache = min(GDAL_OPTIONS["GDAL_CACHEMAX"] << 20, channels * height * width)
    return 4 * (batch + strip + bands) + contexts + cache
