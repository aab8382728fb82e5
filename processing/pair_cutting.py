"""Cuts crop pairs for models with two scales: a sharp local crop, and its wide context.

Legend: B boxes, C channels, h, w pixels of a crop.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers.image_processing_utils import BatchFeature

from .crop_frames import Frame, LabelReader, PixelReader, Sampling, check_sampling, cut_labels, cut_pixels
from .crop_images import DecodedImage, RasterImage
from .image_opening import Source
from .label_maps import LabelMap
from .pair_inputs import with_contexts
from .rasters.label_windows import LabelArray, LabelRaster
from .rasters.raster import Raster
from .rasters.windowed_files import windowed_image, windowed_mask
from .samples import SCALE, VALUE_RANGE, check_sizes

Box = tuple[int, int, int, int]  # (top, left, height, width)


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


def processed_pairs(
    processor: Any,
    image: Source | Raster,
    boxes: Sequence[Box],
    segmentation_map: Source | None,
    *,
    context_ratio: int,
    size: tuple[int, int] | None,
    angle: float,
    context_sampling: Sampling,
) -> BatchFeature:
    """Does what `SegmentationImageProcessor.crop_pairs` says, whose arguments these are."""
    check_cut(boxes, size, angle, context_ratio, context_sampling)
    boxes = [tuple(map(float, box)) for box in boxes]
    size = size or tuple(max(1, round(side)) for side in boxes[0][2:])
    pixels = image_to_cut(processor, image)
    labels = None if segmentation_map is None else labels_to_cut(processor, segmentation_map)
    if labels is not None:
        check_sizes(pixels.shape, labels.shape, "the image")
    options = {
        "context_ratio": context_ratio,
        "fill": np.atleast_1d(np.asarray(processor.image_mean) / processor.rescale_factor),
        "ignore_index": processor.ignore_index,
        "sampling": context_sampling,
    }
    samples = [cut_pair(pixels, labels, Frame.of_box(*box, angle=angle), size, **options) for box in boxes]
    reading = {"do_resize": False, "do_convert_rgb": False, VALUE_RANGE: SCALE, "return_tensors": "pt"}
    inputs = dict(processor([sample["image"] for sample in samples], **reading))
    if labels is not None:
        inputs["labels"] = torch.as_tensor(np.stack([sample["mask"] for sample in samples]))
    return BatchFeature(with_contexts(inputs, samples, processor))


def image_to_cut(processor: Any, image: Source | Raster) -> DecodedImage | RasterImage:
    """The image as a processor reads it, whole or by windows."""

    def read(pixels: Any) -> np.ndarray:
        layout = "channels_last" if isinstance(pixels, np.ndarray) else None
        return np.moveaxis(np.asarray(processor.process_image(pixels, input_data_format=layout)), 0, -1)

    num_channels = 3 if processor.do_convert_rgb else len(processor.image_mean)
    if isinstance(image, Raster):
        return RasterImage(image, read, getattr(image, "name", "raster"))
    windows = windowed_image(image, num_channels, read)
    if windows is None:
        pixels = np.asarray(processor.process_image(image, input_data_format=None))
        windows = DecodedImage(np.moveaxis(pixels, 0, -1))
    return windows


def labels_to_cut(processor: Any, mask: Source) -> LabelArray | LabelRaster:
    """The mask as a processor decodes it, whole or by windows."""
    table = LabelMap(processor.label_map, processor.ignore_index, palette=processor.palette)
    windows = None if processor.do_reduce_labels else windowed_mask(mask, table)
    return windows or LabelArray(processor.decode_mask(mask), processor.ignore_index)


def check_cut(
    boxes: Sequence[Box],
    size: tuple[int, int] | None,
    angle: float,
    context_ratio: int,
    context_sampling: str,
) -> None:
    """Raises ValueError if crop pairs cannot be cut with these arguments of `crop_pairs`."""
    if not len(boxes) or any(
        np.shape(box) != (4,) or not np.isfinite(np.asarray(box)).all() or min(box[2:]) < 1 for box in boxes
    ):
        raise ValueError(f"boxes={boxes} are not boxes. Give a list of (top, left, height, width) in pixels.")
    if size is None and len({tuple(map(float, box[2:])) for box in boxes}) > 1:
        raise ValueError("the boxes differ in size. Pass the size (height, width) that all crops get.")
    if size is not None and (np.shape(size) != (2,) or any(side < 1 or side != int(side) for side in size)):
        raise ValueError(f"size={size} is not a size. Give (height, width) in whole pixels.")
    if not np.isfinite(angle):
        raise ValueError(f"angle={angle} is not a number of degrees. 0 turns nothing.")
    if not isinstance(context_ratio, int | np.integer) or context_ratio < 1:
        raise ValueError(
            f"context_ratio={context_ratio} is not a whole number of 1 or more. Use that of the model, model.config.context_ratio."
        )
    check_sampling(context_sampling)
