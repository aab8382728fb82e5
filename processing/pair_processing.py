"""The method of image processors that cuts crop pairs for models with two scales.

Legend: B boxes, C channels, h, w pixels of a crop.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers.image_processing_utils import BatchFeature

from .crop_frames import SAMPLINGS, Frame, Sampling
from .crop_images import DecodedImage, RasterImage
from .image_opening import Source
from .label_maps import LabelMap
from .label_windows import LabelArray, LabelRaster
from .pair_cutting import cut_pair
from .pair_inputs import with_contexts
from .rasters import Raster
from .samples import SCALE, VALUE_RANGE, check_sizes
from .windowed_files import windowed_image, windowed_mask

Box = tuple[int, int, int, int]


class CropPairs:
    """Mixin of image processors."""

    def crop_pairs(
        self,
        image: Source | Raster,
        boxes: Sequence[Box],
        segmentation_map: Source | None = None,
        *,
        context_ratio: int,
        size: tuple[int, int] | None = None,
        angle: float = 0.0,
        context_sampling: Sampling = "area",
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
            ValueError: If boxes differ in size and there is no `size`, an option is unknown, or a mask does not fit.
        """
        check_cut(boxes, size, context_ratio, context_sampling)
        pixels = self._crop_image(image)
        labels = None if segmentation_map is None else self._crop_labels(segmentation_map)
        if labels is not None:
            check_sizes(pixels.shape, labels.shape, "the image")
        options = {
            "context_ratio": context_ratio,
            "fill": np.atleast_1d(np.asarray(self.image_mean) / self.rescale_factor),
            "ignore_index": self.ignore_index,
            "sampling": context_sampling,
        }
        samples = [
            cut_pair(pixels, labels, Frame.of_box(*box, angle=angle), size or tuple(box[2:]), **options)
            for box in boxes
        ]
        reading = {"do_resize": False, "do_convert_rgb": False, VALUE_RANGE: SCALE, "return_tensors": "pt"}
        inputs = dict(self([sample["image"] for sample in samples], **reading))
        if labels is not None:
            inputs["labels"] = torch.as_tensor(np.stack([sample["mask"] for sample in samples]))
        return BatchFeature(with_contexts(inputs, samples, self))

    def _crop_image(self, image: Source | Raster) -> DecodedImage | RasterImage:
        def read(pixels: Any) -> np.ndarray:
            layout = "channels_last" if isinstance(pixels, np.ndarray) else None
            return np.moveaxis(np.asarray(self.process_image(pixels, input_data_format=layout)), 0, -1)

        num_channels = 3 if self.do_convert_rgb else len(self.image_mean)
        if isinstance(image, Raster):
            return RasterImage(image, read, getattr(image, "name", "raster"))
        windows = windowed_image(image, num_channels, read)
        if windows is None:
            pixels = np.asarray(self.process_image(image, input_data_format=None))
            windows = DecodedImage(np.moveaxis(pixels, 0, -1))
        return windows

    def _crop_labels(self, mask: Source) -> LabelArray | LabelRaster:
        table = LabelMap(self.label_map, self.ignore_index, palette=self.palette)
        windows = None if self.do_reduce_labels else windowed_mask(mask, table)
        return windows or LabelArray(self.decode_mask(mask), self.ignore_index)


def check_cut(
    boxes: Sequence[Box], size: tuple[int, int] | None, context_ratio: int, context_sampling: str
) -> None:
    """Raises ValueError if crop pairs cannot be cut with these arguments of `crop_pairs`."""
    if not len(boxes) or any(np.shape(box) != (4,) or min(box[2:]) < 1 for box in boxes):
        raise ValueError(f"boxes={boxes} are not boxes. Give a list of (top, left, height, width) in pixels.")
    if size is None and len({tuple(box[2:]) for box in boxes}) > 1:
        raise ValueError("the boxes differ in size. Pass the size (height, width) that all crops get.")
    if not isinstance(context_ratio, int) or context_ratio < 1:
        raise ValueError(
            f"context_ratio={context_ratio} is not a whole number of 1 or more. Use that of the model, model.config.context_ratio."
        )
    if context_sampling not in SAMPLINGS:
        raise ValueError(
            f"context_sampling={context_sampling!r} is unknown. Use one of {', '.join(SAMPLINGS)}."
        )
