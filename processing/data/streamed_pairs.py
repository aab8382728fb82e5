"""Large rasters with their masks, scored without ever being in memory as a whole.

Legend: H, W pixels of the raster, R rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..boundary_metrics import BoundaryScore, ImageInBands
from ..image_reading import Source
from ..inference import Inference, channels_of
from ..label_maps import LabelMap
from ..metrics import ConfusionMatrix
from ..rasters.files import RasterFile, check_pair_grid, is_raster_file
from ..rasters.layers import Validity
from ..rasters.masks import RasterMask
from ..rasters.raster import open_raster
from ..rasters.segmentation import MEMORY, WHOLE_PIXELS, with_windows
from ..samples import check_sizes


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
        memory: Bytes that may be held besides the model. Default: 2 GiB.
        window: Side of the windows if `inference` has none. Default: the model's `crop_size`, or 512.
    """

    image: Source
    mask: Source | np.ndarray
    decoder: LabelMap
    ignore_index: int
    processor: Any
    name: str
    memory: int = MEMORY
    window: int | tuple[int, int] | None = None

    def score(
        self, model: nn.Module, inference: Inference, metrics: Sequence[ConfusionMatrix | BoundaryScore]
    ) -> None:
        """Predicts the raster in windows, and updates each metric as with the whole image, or not at all.

        Raises:
            ImageReadError: If a file cannot be read.
            ValueError: If the mask is not on the raster's grid, or has values that are not of a class.
        """
        size = RasterFile(self.image).shape[1:]
        counts = [
            metric.reduced(torch.zeros_like)
            if isinstance(metric, ConfusionMatrix)
            else ImageInBands(metric, size)
            for metric in metrics
        ]
        for prediction, labels in self.bands(model, inference):
            for count in counts:
                count.update(prediction, labels.to(prediction.device))
        for metric, count in zip(metrics, counts, strict=True):
            if isinstance(metric, ConfusionMatrix):
                metric.matrix = metric.matrix.to(count.matrix.device) + count.matrix

    @torch.no_grad()
    def bands(self, model: nn.Module, inference: Inference) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the predicted and the labeled class ids (R, W) of the next rows."""
        raster = open_raster(self.image, channels_of(self.processor))
        mask, validity, (height, width) = self.stored_mask(), Validity(raster), raster.shape[1:]
        check_sizes((height, width), mask.shape[:2], self.name)
        if not isinstance(mask, np.ndarray):
            check_pair_grid(self.image, self.mask, self.name)
        inference = with_windows(inference, model, (height, width), self.window)
        settings = {"memory": self.memory, "probabilities": False}
        for row, scores in inference.raster_scores(model, self.processor, raster, **settings):
            rows = row, row + scores.shape[1]
            stored = mask[slice(*rows)] if isinstance(mask, np.ndarray) else mask.read(rows, (0, width))
            labels = self.decoder.decode(stored, f"the mask of '{self.name}'")
            labels[~validity.rows(*rows)] = self.ignore_index
            yield scores.max(0).indices, torch.as_tensor(labels, dtype=torch.int64)

    def stored_mask(self) -> RasterMask | np.ndarray:
        return self.mask if isinstance(self.mask, np.ndarray) else RasterMask(self.mask, self.decoder)


def streamed_pair(data: Any, index: int, processor: Any, **settings: Any) -> StreamedPair | None:
    """The pair at an index of a dataset if its image is a large raster, above 4 megapixels; None for others.

    `settings` are `memory` and `window` of `StreamedPair`.
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
    return StreamedPair(pair.image, mask, data.decoder, data.ignore_index, processor, pair.name, **settings)
