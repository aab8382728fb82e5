"""The image processor of every 2-D segmenter: images and masks in, `pixel_values` and `labels` out.

One class per backend of transformers, `SegmentationImageProcessor` (torchvision) and `SegmentationImageProcessorPil`.
They differ only in the arithmetic of resizing and normalising; everything else is in `SegmentationProcessing`, and the
way back from logits to masks in `SemanticPostProcessing`.

Legend: B batch, C bands, H, W pixels.
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
from transformers.image_utils import SizeDict, load_image
from transformers.processing_utils import Unpack

from .image_processor_options import SegmentationImageProcessorKwargs, SegmentationOptions
from .image_reading import Source, describe, read_bands, read_image, read_mask, read_orientation
from .label_maps import LabelMap
from .logits_to_masks import SemanticPostProcessing
from .orientation import swaps_sides
from .resize_rules import resized_size
from .saving import SavedWithCode


class SegmentationProcessing(SegmentationOptions, SemanticPostProcessing, SavedWithCode):
    """What both backends share. Subclasses give `_to_backend`, `resize` and `_preprocess`."""

    def preprocess(
        self,
        images: Source | Sequence[Source],
        segmentation_maps: Source | Sequence[Source] | None = None,
        **kwargs: Unpack[SegmentationImageProcessorKwargs],
    ) -> BatchFeature:
        """One image or a batch, with masks of the same sizes -> `pixel_values`, `labels`, and `pixel_mask` if padded.

        Images may be paths, URLs, bytes, files, PIL images, arrays or tensors; see `image_reading`. Images are turned
        upright by their EXIF orientation, masks by their own. In a batch of mixed sizes images are padded at the right and at
        the bottom with 0, the mean colour, and labels with `ignore_index`; `pixel_mask` (B, H, W) is 1 on the images.
        """
        return super().preprocess(images, segmentation_maps, **kwargs)

    def process_image(self, image: Source, **options: Any) -> Tensor | np.ndarray:
        """Any image -> its upright bands (C, H, W), uint8 or float32 in 0..255, in memory of its own."""
        if isinstance(image, str) and image.startswith(("http://", "https://")):
            image = load_image(image)
        reading = {name: options.get(name) for name in ("value_range", "input_data_format")}
        reading["pixel_limit"] = options.get("pixel_limit", self.pixel_limit)
        if options.get("do_convert_rgb", self.do_convert_rgb):
            bands = np.asarray(read_image(image, **reading))
        else:
            mean = options.get("image_mean", self.image_mean)
            bands = read_bands(image, len(mean) if isinstance(mean, Sequence) else None, **reading)
        if isinstance(image, Image.Image) and swaps_sides(read_orientation(image)):
            warnings.warn(
                "an image lies on its side and was turned upright by its EXIF orientation, which swaps height and width. "
                "For a mask of its stored pixels give post_process_semantic_segmentation the orientations, "
                "[processor.read_orientation(image)].",
                stacklevel=2,
            )
        return self._to_backend(np.array(np.moveaxis(bands, -1, 0), order="C"), options.get("device"))

    def decode_mask(self, mask: Source, **overrides: Any) -> np.ndarray:
        """Any mask -> class ids (H, W) int64 through `label_map`, or through `palette` if the mask holds colours."""
        label_map, palette, ignore_index, pixel_limit = (
            overrides.get(name, getattr(self, name))
            for name in ("label_map", "palette", "ignore_index", "pixel_limit")
        )
        table = LabelMap(label_map, ignore_index)
        values = read_mask(mask, decode_palette=table.needs_colours, pixel_limit=pixel_limit)
        if values.ndim == 3 and label_map is None and palette is not None:
            table = LabelMap.from_palette(palette, ignore_index)
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
        pictures = [self.process_image(source, **options) for source in sources]
        sizes = [tuple(picture.shape[-2:]) for picture in pictures]
        labels = None
        if segmentation_maps is not None:
            masks = list(segmentation_maps) if is_batch else [segmentation_maps]
            labels = self._labels(masks, sources, sizes, options)
        pictures = self._preprocess(pictures, **options)
        data = {"pixel_values": pictures}
        sizes = [tuple(picture.shape[-2:]) for picture in pictures]
        if options["do_pad"] and len(set(sizes)) > 1:
            height, width = (max(sides) for sides in zip(*sizes, strict=True))
            canvas = SizeDict(height=height, width=width)
            data["pixel_values"], data["pixel_mask"] = self.pad(pictures, pad_size=canvas, return_mask=True)
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
        """Masks -> labels (H, W) int64, resized as the images are; `sizes` are those of the images as read."""
        if len(masks) != len(sources):
            raise ValueError(
                f"{len(sources)} images came with {len(masks)} masks. Give one mask for each image."
            )
        labels = []
        for mask, source, size in zip(masks, sources, sizes, strict=True):
            label = self.decode_mask(mask, **options)
            if label.shape != size:
                turned = " It fits the image before its EXIF rotation." if label.shape == size[::-1] else ""
                raise ValueError(
                    f"{describe(mask)} is {label.shape[1]}x{label.shape[0]}, but its image {describe(source)} is "
                    f"{size[1]}x{size[0]} (upright).{turned} Make the mask for the image as it is seen."
                )
            if options["do_resize"]:
                label = _resize_nearest(label, resized_size(*size, options["size"]))
            labels.append(self._to_backend(label, options["device"]))
        return labels

    def _resized_to(self, image: np.ndarray | Tensor, **options: Any) -> SizeDict:
        height, width = resized_size(*image.shape[-2:], options["size"])
        if height * width > options["pixel_limit"]:
            raise ValueError(
                f"size={options['size']} makes a {image.shape[-1]}x{image.shape[-2]} image {width}x{height}, above the limit of "
                f"{options['pixel_limit']} pixels. Use {{'max_pixels': ...}}, or add 'longest_edge'."
            )
        return SizeDict(height=height, width=width)


class SegmentationImageProcessor(SegmentationProcessing, TorchvisionBackend):
    """Prepares images and masks for 2-D segmenters with torchvision, on the CPU or on `device`."""

    def _to_backend(self, array: np.ndarray, device: str | torch.device | None) -> Tensor:
        return torch.from_numpy(array).to(device)

    def _preprocess(
        self, images: list[Tensor], disable_grouping: bool | None = None, **options: Any
    ) -> list[Tensor]:
        groups, order = group_images_by_shape(images, disable_grouping=disable_grouping)
        names = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
        for shape, batch in groups.items():
            if options["do_resize"]:
                batch = self.resize(batch, self._resized_to(batch, **options), options["resample"])
            groups[shape] = self.rescale_and_normalize(batch, *(options[name] for name in names))
        return reorder_images(groups, order)


class SegmentationImageProcessorPil(SegmentationProcessing, PilBackend):
    """Prepares images and masks for 2-D segmenters with Pillow and numpy."""

    def _to_backend(self, array: np.ndarray, device: str | torch.device | None) -> np.ndarray:
        if device not in (None, "cpu", torch.device("cpu")):
            raise ValueError(
                f"the Pillow backend has no device {device}. Load the processor with backend='torchvision'."
            )
        return array

    def resize(self, image: np.ndarray, size: SizeDict, resample: int | None = None, **_: Any) -> np.ndarray:
        """(C, H, W) -> (C, *size), band by band: Pillow has no images of more than four."""
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


def _as_list(images: Source | Sequence[Source]) -> tuple[list[Source], bool]:
    """The images one by one, and whether they came as a batch."""
    is_batch = isinstance(images, list | tuple) or (
        isinstance(images, np.ndarray | Tensor) and images.ndim == 4
    )
    sources = list(images) if is_batch else [images]
    if not sources:
        raise ValueError("there are no images. Give at least one.")
    return sources, is_batch


def _resize_nearest(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) -> size, each pixel from the one under its centre."""
    rows, columns = ((np.arange(new) + 0.5) * old / new for new, old in zip(size, label.shape, strict=True))
    return label[rows.astype(np.int64)[:, None], columns.astype(np.int64)]


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
