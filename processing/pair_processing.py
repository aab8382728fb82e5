"""The method of image processors that cuts crop pairs for models with two scales."""

from collections.abc import Sequence
from typing import Any

from transformers.image_processing_utils import BatchFeature

from .image_opening import Source
from .raster_library import library_module


class CropPairs:
    """Mixin of image processors."""

    def crop_pairs(
        self,
        image: Source | Any,
        boxes: Sequence[tuple[int, int, int, int]],
        segmentation_map: Source | None = None,
        *,
        context_ratio: int,
        size: tuple[int, int] | None = None,
        angle: float = 0.0,
        context_sampling: str = "area",
    ) -> BatchFeature:
        """Cuts sharp crops and their wide contexts from one image, as models with two scales take them.

        A context has the center and turn of its crop, `context_ratio` times its sides, and is reduced to its size.
        Boxes and contexts may reach beyond the image, where values are 0 (the mean) and labels ignored. Of raster
        files, only these windows are read.

        Args:
            image: Any source of an image, or a raster.
            boxes: (top, left, height, width) of each crop in pixels.
            segmentation_map: The mask of the image; None gives no labels.
            context_ratio: That of the model's configuration.
            size: (h, w) to which crops and contexts are resized. Default: that of the boxes.
            angle: Angle in degrees by which the content is turned counterclockwise about the center of each box.
            context_sampling: "area": each pixel is the mean over its area; "point": interpolated at its upper left
                corner without smoothing, as the authors of relay tokens do, with labels of the nearest pixel.

        Returns:
            `pixel_values` and `context_values` (B, C, h, w) float32; with a mask `labels` and `context_labels`
            (B, h, w) int64.

        Raises:
            ImageReadError: If the image or mask cannot be read.
            ImportError: If contextseg is not installed.
            ValueError: If boxes differ in size and there is no `size`, an option is unknown, or a mask does not fit.
        """
        cutting = library_module("processing.pair_cutting", "cutting crop pairs")
        return cutting.processed_pairs(
            self,
            image,
            boxes,
            segmentation_map,
            context_ratio=context_ratio,
            size=size,
            angle=angle,
            context_sampling=context_sampling,
        )
