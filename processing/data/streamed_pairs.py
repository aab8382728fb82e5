"""Large rasters with their masks, scored without ever being in memory as a whole.

Legend: H, W pixels of the raster, R rows.
"""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..boundary_metrics import BoundaryScore
from ..image_reading import Source
from ..inference import Inference
from ..label_maps import LabelMap
from ..metrics import ConfusionMatrix
from ..rasters.files import RasterFile, check_pair_grid, is_raster_file
from ..rasters.inference import MEMORY
from ..rasters.layers import nodata_of
from ..rasters.masks import RasterMask
from ..rasters.segmentation import WHOLE_PIXELS, RasterSegmentation, RasterTargets, work_folder
from ..rasters.spans import Span, spans_of
from ..row_scores import rows_of
from ..samples import check_sizes

STRIP_PIXELS = 1 << 22  # of the labels that are read at a time
Metrics = Sequence[ConfusionMatrix | BoundaryScore]


@dataclass
class StreamedPair:
    """A raster file and its mask, which are read by windows. Can be pickled.

    Args:
        image: Path of the raster.
        mask: Path of a raster file, or the mask as stored, if it is in another file.
        decoder: Makes class ids of what is stored in the mask.
        ignore_index: Label of pixels that do not count, such as those without data.
        processor: The model's image processor.
        name: Name in messages.
        index: Place in its dataset, which names its part files.
        memory: Bytes that may be held besides the model. Default: 2 GiB.
        window: Side of the windows if `inference` has none. Default: the model's `crop_size`, or 512.
        folder: Where part files are kept until the raster is scored, so that work can be stopped, continued and
            divided. Default: a temporary folder.
        model: The model's `model_record`, where part files are kept.
    """

    image: Source
    mask: Source | np.ndarray
    decoder: LabelMap
    ignore_index: int
    processor: Any
    name: str
    index: int = 0
    memory: int = MEMORY
    window: int | tuple[int, int] | None = None
    folder: Path | None = None
    model: str = "the model of this process"

    def score(self, model: nn.Module, inference: Inference, metrics: Metrics) -> None:
        """Predicts the raster in windows, and updates each metric as with the whole image, or not at all.

        Raises:
            ImageReadError: If a file cannot be read.
            ValueError: If the mask is not on the raster's grid, or has values that are not of a class.
        """
        with nullcontext(self.folder) if self.folder else TemporaryDirectory() as folder:
            scoring = RasterScoring(self, Path(folder), model, inference)
            scoring.predict(scoring.begin())
            add_sums(metrics, scoring.sums(metrics, scoring.bands))

    def remove_parts(self) -> None:
        """Removes the part files, where they are kept, when the raster is scored."""
        if self.folder is not None:
            shutil.rmtree(work_folder(self.target(self.folder)), ignore_errors=True)

    def target(self, folder: Path) -> Path:
        """The name of the mask in a folder; only part files of it are written."""
        return folder / f"{self.index:06d}.tif"

    def stored_mask(self) -> RasterMask | np.ndarray:
        return self.mask if isinstance(self.mask, np.ndarray) else RasterMask(self.mask, self.decoder)


class RasterScoring:
    """The scoring of one raster in steps, which processes can divide.

    One process calls `begin`; then each `predict` for its share of the bands that are to do; when all have, each
    `sums` for its share of all bands.

    Args:
        pair: The raster and its mask.
        folder: Where part files are kept.
        model: The segmenter, in evaluation mode.
        inference: How it is applied.

    Attributes:
        bands: The indices of all rows of windows.

    Raises:
        ImageReadError: If a file cannot be read.
        ValueError: If the mask is not on the raster's grid.
    """

    def __init__(self, pair: StreamedPair, folder: Path, model: nn.Module, inference: Inference) -> None:
        self.pair, self.device, self.no_data = pair, model.device, nodata_of(model.config.num_labels)
        targets = RasterTargets(pair.target(folder))
        self.work = RasterSegmentation(
            model, pair.processor, pair.image, targets, inference, pair.memory, pair.window
        )
        self.size, self.mask = tuple(self.work.raster.shape[1:]), pair.stored_mask()
        check_sizes(self.size, self.mask.shape[:2], pair.name)
        if not isinstance(self.mask, np.ndarray):
            check_pair_grid(pair.image, pair.mask, pair.name)
        self.bands = range(len(self.work.parts.bands))

    def begin(self) -> list[int]:
        """Prepares the part files; returns the bands that are to do."""
        self.work.begin(self.pair.model)
        return self.work.parts.to_do()

    def predict(self, bands: Sequence[int]) -> None:
        """Predicts bands into part files. Their labels are read before, since a wrong one is soon found."""
        for band in bands:
            for rows in self.strips(*self.work.parts.bands[band]):
                self.labels(*rows)
        self.work.segment(bands)

    def sums(self, metrics: Metrics, bands: Sequence[int]) -> list[Tensor]:
        """Compares neighboring bands with their labels; returns their sums for each metric.

        Those of several processes can be added, and those of all bands go to `add_sums`. `bands` must not be empty.
        """
        limits = self.work.parts.bands
        rows = limits[bands[0]][0], limits[bands[-1]][1]
        parts = [rows_of(metric, self.size, rows) for metric in metrics]
        for start, stop in self.strips(*self.joined(part.needed for part in parts)):
            prediction = torch.from_numpy(self.work.parts.read("mask", start, stop).astype(np.int32))
            labels = self.labels(start, stop)
            labels[prediction == self.no_data] = self.pair.ignore_index
            for part in parts:
                first, last = (max(0, row - start) for row in part.needed)
                if first < min(last, stop - start):
                    part.update(*(ids[first:last].to(self.device) for ids in (prediction, labels)))
        return [part.sums.cpu() for part in parts]

    def labels(self, start: int, stop: int) -> Tensor:
        """Class ids (R, W) of rows start..stop-1."""
        is_read = isinstance(self.mask, np.ndarray)
        stored = self.mask[start:stop] if is_read else self.mask.read((start, stop), (0, self.size[1]))
        labels = self.pair.decoder.decode(stored, f"the mask of '{self.pair.name}'")
        return torch.as_tensor(labels, dtype=torch.int32)

    def strips(self, start: int, stop: int) -> Iterator[Span]:
        """Divides rows start..stop-1 into strips: the first row, and the one after the last."""
        step = max(1, STRIP_PIXELS // self.size[1])
        return spans_of(stop, step, start)

    @staticmethod
    def joined(spans: Iterable[Span]) -> Span:
        """The smallest span of rows that contains all of these."""
        starts, stops = zip(*spans, strict=True)
        return min(starts), max(stops)


def add_sums(metrics: Metrics, sums: Sequence[Tensor]) -> None:
    """Adds the sums over all rows of an image to the metrics."""
    for metric, total in zip(metrics, sums, strict=True):
        metric.add(total)


def streamed_pair(data: Any, index: int, processor: Any, **settings: Any) -> StreamedPair | None:
    """The pair at an index of a dataset if its image is a large raster, above 4 megapixels; None for others.

    `settings` are `memory`, `window`, `folder` and `model` of `StreamedPair`.
    """
    pair = data.sources(index) if hasattr(data, "sources") else None
    if pair is None or not is_raster_file(pair.image):
        return None
    raster = RasterFile(pair.image)
    _, height, width = raster.shape
    is_small = height * width <= (data.pixel_limit if raster.is_picture else WHOLE_PIXELS)
    raster.close()
    if is_small:
        return None
    mask = pair.mask if is_raster_file(pair.mask) else data.read_stored_mask(pair.mask)
    labels = mask, data.decoder, data.ignore_index
    return StreamedPair(pair.image, *labels, processor, pair.name, index, **settings)
