"""The image processor of every 2-D segmenter: images and masks in, `pixel_values` and `labels` out.

One class per backend of transformers, `SegmentationImageProcessor` (torchvision) and
`SegmentationImageProcessorPil`. They differ only in the arithmetic of resizing and normalizing; everything
else is in `SegmentationProcessing`, and post-processing from logits to masks in `SemanticPostProcessing`.

Legend: B batch, C channels, K classes, H, W pixels.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_transforms import group_images_by_shape, reorder_images
from transformers.image_utils import SizeDict
from transformers.processing_utils import Unpack

from .image_opening import Source, describe, read_orientation
from .image_processor_options import REDUCED_LABELS, SegmentationImageProcessorKwargs, SegmentationOptions
from .image_reading import read_channels, read_rgb
from .label_maps import LabelMap
from .logits_to_masks import SemanticPostProcessing
from .mask_reading import read_mask
from .orientation import swaps_sides
from .pair_processing import CropPairs
from .processor_numbers import check_processor_numbers
from .resize_rules import resized_nearest, resized_size
from .saving import SavedWithCode


class SegmentationProcessing(CropPairs, SegmentationOptions, SemanticPostProcessing, SavedWithCode):
    """What both backends share. Subclasses implement `_to_backend`, `resize` and `_preprocess`."""

    def preprocess(
        self,
        images: Source | Sequence[Source],
        segmentation_maps: Source | Sequence[Source] | None = None,
        **kwargs: Unpack[SegmentationImageProcessorKwargs],
    ) -> BatchFeature:
        """Prepares one image or a batch, with or without masks.

        Images are rotated upright by their EXIF orientation, masks by their own. In a batch of mixed sizes,
        images are padded on the right and at the bottom with 0 (the mean color), and labels with
        `ignore_index`.

        Args:
            images: A path, URL, bytes, binary file, PIL image, array or tensor, or a list of them (or a 4-D
                array or tensor).
            segmentation_maps: One mask per image, of the size of its upright image: a path, bytes, binary
                file, PIL image, array or tensor of ids (H, W) or RGB colors (H, W, 3).
            **kwargs: Options that replace those of the processor in this call, and `return_tensors`.

        Returns:
            `pixel_values` (B, C, H, W) float32; with masks `labels` (B, H, W) int64; and `pixel_mask`
            (B, H, W), 1 on the images and 0 on the padding, if images were padded.

        Raises:
            ImageReadError: If a file cannot be read, or has the wrong number of channels.
            ValueError: If an option is unknown or invalid, a mask does not fit its image, or a mask has a
                value without a class.
        """
        check_processor_numbers(kwargs)
        return super().preprocess(images, segmentation_maps, **kwargs)

    def process_image(self, image: Source, **options: Any) -> Tensor | np.ndarray:
        """Reads an image: upright, (C, H, W), uint8 or float32 in 0..255, as a copy."""
        reading = {name: options.get(name, getattr(self, name)) for name in ("value_range", "pixel_limit")}
        reading["input_data_format"] = options.get("input_data_format")
        if options.get("do_convert_rgb", self.do_convert_rgb):
            channels = read_rgb(image, **reading)
        else:
            mean = options.get("image_mean", self.image_mean)
            channels = read_channels(image, len(mean) if isinstance(mean, Sequence) else None, **reading)
        if isinstance(image, Image.Image) and swaps_sides(read_orientation(image)):
            warnings.warn(
                "an image was turned upright by its EXIF orientation, which swaps height and width. "
                "To get a mask that fits the stored pixels, pass "
                "orientations=[processor.read_orientation(image)] to post_process_semantic_segmentation.",
                stacklevel=2,
            )
        return self._to_backend(np.array(np.moveaxis(channels, -1, 0), order="C"), options.get("device"))

    def normalized(self, pixels: np.ndarray) -> Tensor:
        """(C, H, W) on the scale 0..255 -> `pixel_values` (C, H, W), as a call makes them without resizing."""
        options = {name: getattr(self, name) for name in ("do_rescale", "rescale_factor", "do_normalize")}
        options |= {name: as_key(getattr(self, name)) for name in ("image_mean", "image_std")}
        image = self._to_backend(pixels, None)
        return torch.as_tensor(self._preprocess([image], do_resize=False, **options)[0])

    def decode_mask(self, mask: Source, **overrides: Any) -> np.ndarray:
        """Decodes a mask with `label_map` and, if it has no colors, with those of `palette`.

        Args:
            mask: A path, bytes, binary file, PIL image, array or tensor of ids (H, W) or RGB colors
                (H, W, 3).
            **overrides: `label_map`, `palette`, `ignore_index` or `pixel_limit`, in place of the processor's.

        Returns:
            Class ids (H, W) int64, upright; `ignore_index` where the pixel has no label.

        Raises:
            ImageReadError: If the mask cannot be read.
            ValueError: If the mask has a value without a class.
        """
        label_map, palette, ignore_index, pixel_limit = (
            overrides.get(name, getattr(self, name))
            for name in ("label_map", "palette", "ignore_index", "pixel_limit")
        )
        if label_map is None and overrides.get("do_reduce_labels", self.do_reduce_labels):
            label_map = REDUCED_LABELS
        table = LabelMap(label_map, ignore_index, palette=palette)
        values = read_mask(mask, table=table, pixel_limit=pixel_limit)
        return table.decode(values, describe(mask))

    def _preprocess_image_like_inputs(
        self,
        images: Source | Sequence[Source],
        segmentation_maps: Source | Sequence[Source] | None,
        return_tensors: str | None = None,
        **options: Any,
    ) -> BatchFeature:
        sources, is_batch = _as_list(images)
        options["do_resize"] = (
            options["size"] is not None if options["do_resize"] is None else options["do_resize"]
        )
        processed = [self.process_image(source, **options) for source in sources]
        sizes = [tuple(image.shape[-2:]) for image in processed]
        labels = None
        if segmentation_maps is not None:
            labels = self._labels(_masks(segmentation_maps, is_batch), sources, sizes, options)
        processed = self._preprocess(processed, **options)
        data = {"pixel_values": processed}
        sizes = [tuple(image.shape[-2:]) for image in processed]
        if options["do_pad"] and len(set(sizes)) > 1:
            height, width = (max(sides) for sides in zip(*sizes, strict=True))
            canvas = SizeDict(height=height, width=width)
            data["pixel_values"], data["pixel_mask"] = self.pad(processed, pad_size=canvas, return_mask=True)
            labels = labels and [
                _pad_labels(label, height, width, options["ignore_index"]) for label in labels
            ]
        if labels is not None:
            data["labels"] = labels
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _labels(
        self,
        masks: list[Source],
        sources: list[Source],
        sizes: list[tuple[int, int]],
        options: dict[str, Any],
    ) -> list[Tensor] | list[np.ndarray]:
        """Masks -> labels (H, W) int64, resized like the images, whose `sizes` are those before resizing."""
        if len(masks) != len(sources):
            raise ValueError(f"got {len(sources)} images and {len(masks)} masks. Give one mask per image.")
        labels = []
        for mask, source, size in zip(masks, sources, sizes, strict=True):
            label = self.decode_mask(mask, **options)
            if label.shape != size:
                turned = " It fits the image before its EXIF rotation." if label.shape == size[::-1] else ""
                raise ValueError(
                    f"{describe(mask)} is {label.shape[1]}x{label.shape[0]}, but its image "
                    f"{describe(source)} is {size[1]}x{size[0]} (upright).{turned} "
                    "Give a mask of the upright image."
                )
            if options["do_resize"]:
                label = resized_nearest(label, resized_size(*size, options["size"]))
            labels.append(self._to_backend(label, options["device"]))
        return labels

    def _resized_to(self, image: np.ndarray | Tensor, **options: Any) -> SizeDict:
        height, width = resized_size(*image.shape[-2:], options["size"])
        if height * width > options["pixel_limit"]:
            raise ValueError(
                f"size={options['size']} resizes a {image.shape[-1]}x{image.shape[-2]} image to "
                f"{width}x{height}, above the limit of {options['pixel_limit']} pixels. "
                f"Use {{'max_pixels': ...}}, or add 'longest_edge'."
            )
        return SizeDict(height=height, width=width)


class SegmentationImageProcessor(SegmentationProcessing, TorchvisionBackend):
    """Prepares images and masks for 2-D segmenters with torchvision, and turns logits into masks.

    Every option is an attribute, is saved in `preprocessor_config.json`, and can be replaced in a call. An
    image is read as RGB (`do_convert_rgb`), resized by `size` if there is one, scaled to 0..1, normalized by
    `image_mean` and `image_std`, and padded to the largest of its batch.

    Args:
        **kwargs: Options of transformers' image processors, which also take `device`; their defaults are no
            resizing, bilinear `resample`, the mean and std of ImageNet, and padding. `size` is one of
            {"height", "width"}, {"shortest_edge"}, {"shortest_edge", "longest_edge"} and {"max_pixels"}, in
            pixels. Also:

            - `label_map`: Value in the mask file (id, or color as "#rrggbb") -> class id or "ignore".
              Default: ids are classes.
            - `do_reduce_labels`: Whether to decode masks as SegformerImageProcessor does: 0 and 255 are ignored,
              1 is class 0, 2 is class 1 and so on. Default: False.
            - `ignore_index`: Label of pixels without a class, and of padding. Default: 255.
            - `palette`: One color per class, to decode masks of colors, also palette images, and to color
              predictions. Default: the colors of `label_map`, if it has one for each class.
            - `value_range`: (low, high), black and white in images that are not 8-bit. Default: 0 and 65535
              for uint16; other types need it.
            - `pixel_limit`: Most pixels of an image, as read and as resized. Default: 178,956,970, Pillow's
              own limit.

    Raises:
        ValueError: If an option is unknown or invalid.
    """

    def _to_backend(self, array: np.ndarray, device: str | torch.device | None) -> Tensor:
        return torch.from_numpy(array).to(device)

    def _preprocess(
        self, images: list[Tensor], disable_grouping: bool | None = None, **options: Any
    ) -> list[Tensor]:
        groups, order = group_images_by_shape(images, disable_grouping=disable_grouping)
        names = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
        for shape, batch in groups.items():
            if options["do_resize"]:
                size = self._resized_to(batch, **options)
                if size.height == size.width == 1:
                    batch = batch.float()  # torch cannot resize bytes to a single pixel
                batch = self.resize(batch, size, options["resample"])
            groups[shape] = self.rescale_and_normalize(batch, *(options[name] for name in names))
        return reorder_images(groups, order)


class SegmentationImageProcessorPil(SegmentationProcessing, PilBackend):
    """The same image processor with Pillow and numpy in place of torchvision; it takes no `device`."""

    def _to_backend(self, array: np.ndarray, device: str | torch.device | None) -> np.ndarray:
        if device not in (None, "cpu", torch.device("cpu")):
            raise ValueError(
                f"the Pillow backend cannot use device {device}. Load it with backend='torchvision'."
            )
        return array

    def resize(self, image: np.ndarray, size: SizeDict, resample: int | None = None, **_: Any) -> np.ndarray:
        """(C, H, W) -> (C, *size), one channel at a time because Pillow images have at most four."""
        shape = size.width, size.height
        return np.stack([np.asarray(Image.fromarray(band).resize(shape, resample)) for band in image])

    def _preprocess(self, images: list[np.ndarray], **options: Any) -> list[np.ndarray]:
        prepared = []
        for image in images:
            if options["do_resize"]:
                image = self.resize(image, self._resized_to(image, **options), options["resample"])
            if options["do_rescale"]:
                image = self.rescale(image, options["rescale_factor"])
            if options["do_normalize"]:
                image = self.normalize(image, options["image_mean"], options["image_std"])
            prepared.append(image)
        return prepared


def as_key(value: float | Sequence[float]) -> float | tuple[float, ...]:
    """Numbers that can be the key of a cache."""
    return tuple(value) if isinstance(value, Sequence) else value


def _as_list(images: Source | Sequence[Source]) -> tuple[list[Source], bool]:
    """The images as a list, and whether they came as a batch."""
    is_batch = isinstance(images, list | tuple) or (
        isinstance(images, np.ndarray | Tensor) and images.ndim == 4
    )
    sources = list(images) if is_batch else [images]
    if not sources:
        raise ValueError("got an empty batch. Give at least one image.")
    return sources, is_batch


def _masks(segmentation_maps: Source | Sequence[Source], is_batch: bool) -> list[Source]:
    """The masks as a list; a single mask may belong to a list of one image, as in transformers."""
    is_stack = is_batch and isinstance(segmentation_maps, np.ndarray | Tensor) and segmentation_maps.ndim > 2
    return (
        list(segmentation_maps)
        if is_stack or isinstance(segmentation_maps, list | tuple)
        else [segmentation_maps]
    )


def _pad_labels(
    label: Tensor | np.ndarray, height: int, width: int, ignore_index: int
) -> Tensor | np.ndarray:
    rows, columns = height - label.shape[0], width - label.shape[1]
    if isinstance(label, Tensor):
        return torch.nn.functional.pad(label, (0, columns, 0, rows), value=ignore_index)
    return np.pad(label, ((0, rows), (0, columns)), constant_values=ignore_index)


IMAGE_PROCESSORS = {
    "torchvision": SegmentationImageProcessor,
    "pil": SegmentationImageProcessorPil,
}  # by backend
