"""The image processor of segmenters of volumes: NIfTI files and arrays in, `pixel_values` and `labels` out.

Legend: B batch, C channels, K classes, D, H, W slices, rows and columns in canonical orientation.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.modeling_outputs import SemanticSegmenterOutput

from .label_maps import LabelMap
from .saving import SavedWithCode
from .volumes.volume_preparation import (
    PreparedVolume,
    VolumeFrame,
    frame_of,
    normalize_channel,
    prepared_mask,
    prepared_values,
    resampled_body,
)
from .volumes.volume_processor_options import VolumeOptions
from .volumes.volume_reading import Volume, VolumeReadError, VolumeSource, read_label_volume, read_volume
from .volumes.volume_resampling import resample_image


class VolumeImageProcessor(VolumeOptions, SavedWithCode, BaseImageProcessor):
    """Prepares volumes and label volumes for a segmenter, and brings masks back to the grid of their files.

    A volume is turned to its canonical orientation, cropped (on request), resampled and normalized. Every option
    is an attribute and is saved in `preprocessor_config.json`.

    Args:
        **kwargs: The options:

            - `target_spacing`: Millimeters between voxels along D, H, W. Default: that of each file.
            - `slice_axis`: Axis of the body that becomes D: "z" (default), "y" or "x".
            - `normalization`: "zscore" (mean 0 and standard deviation 1 of each volume and channel, the default),
              "ct" (clipped to percentiles of the data set, then its mean and standard deviation), "none"; or a
              list of one per channel.
            - `intensity`: For "ct": {"mean", "std", "percentile_00_5", "percentile_99_5"}, or a list of one per
              channel.
            - `crop_to_nonzero`: Whether to crop the box of voxels that are not 0, and to normalize by them alone.
              Default: False.
            - `anisotropy_threshold`: Largest spacing over smallest, above which slices are resampled by
              themselves. Default: 3.
            - `label_map`: Id in the label file -> class id or "ignore". Default: ids are classes.
            - `ignore_index`: Label of voxels without a class, and of padding. Default: 255.
            - `palette`: One color per class, for pictures.
            - `regions`: Name -> class ids that it unites, for scores. Default: none.

    Raises:
        ValueError: If an option is unknown or invalid.
    """

    def preprocess(
        self,
        volumes: VolumeSource | Sequence[VolumeSource],
        segmentation_maps: VolumeSource | Sequence[VolumeSource] | None = None,
        spacing: Sequence[float] | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Prepares one volume or a list of them; smaller ones are padded at their ends to the largest.

        Args:
            volumes: A path, an image of nibabel, an array or tensor (D, H, W) or (C, D, H, W), or a list of them.
                The channels of one volume in several files are a list in the list.
            segmentation_maps: One label volume for each.
            spacing: Millimeters along D, H, W of arrays. Default: 1 mm.
            return_tensors: "pt" or "np"; batches are lists without.

        Returns:
            `pixel_values` (B, C, D, H, W) float32, and with label volumes `labels` (B, D, H, W) int64.

        Raises:
            VolumeReadError: If a file cannot be read, or labels lie on another grid.
            ValueError: If an argument is invalid, or a label has no class.
        """
        sources = list(volumes) if isinstance(volumes, list | tuple) else [volumes]
        maps = segmentation_maps if isinstance(segmentation_maps, list | tuple) else [segmentation_maps]
        maps = [None] * len(sources) if segmentation_maps is None else list(maps)
        if not sources or len(maps) != len(sources):
            raise ValueError(f"got {len(sources)} volumes and {len(maps)} label volumes. Give one for each.")
        prepared = []
        for source, labels in zip(sources, maps, strict=True):
            volume = read_volume(source, slice_axis=self.slice_axis, spacing=spacing)
            mask = None if labels is None else self.decode_mask(read_label_volume(labels, volume))
            prepared.append(self.prepare(volume, mask))
        size = [max(sides) for sides in zip(*(part.frame.prepared_size for part in prepared), strict=True)]
        data = {"pixel_values": [_padded(part.values, size, 0) for part in prepared]}
        if segmentation_maps is not None:
            labels = [_padded(part.mask, size, self.ignore_index) for part in prepared]
            data["labels"] = [label.astype(np.int64) for label in labels]
        return BatchFeature(data=data, tensor_type=return_tensors)

    def decode_mask(self, ids: np.ndarray) -> np.ndarray:
        """Maps stored ids (D, H, W) to class ids. Raises ValueError for ids without a class."""
        table = LabelMap(self.label_map, self.ignore_index)
        return table.decode(ids.reshape(-1, ids.shape[-1])).reshape(ids.shape)

    def prepare(self, volume: Volume, mask: np.ndarray | None = None) -> PreparedVolume:
        """Crops, resamples and normalizes a volume that was read with this processor's `slice_axis`.

        Args:
            volume: The volume.
            mask: (D, H, W) class ids of its voxels.

        Raises:
            ValueError: If the mask has another size, or an option is not for this number of channels.
        """
        if mask is not None and mask.shape != volume.size:
            raise ValueError(f"the mask has the size {mask.shape}, but {volume.name} has {volume.size}.")
        channels, threshold = len(volume.values), self.anisotropy_threshold
        rules = _each_channel(self.normalization, channels, "normalization")
        intensities = _each_channel(self.intensity, channels, "intensity")
        frame = frame_of(volume.values, volume.spacing, self.target_spacing, self.crop_to_nonzero, threshold)
        cropped = volume.values[(slice(None), *frame.box)]
        body = resampled_body(cropped, frame, threshold) if self.crop_to_nonzero else None
        values = prepared_values(volume.values, frame, threshold)
        for channel, rule, intensity in zip(values, rules, intensities, strict=True):
            normalize_channel(channel, rule, intensity, body)
        return PreparedVolume(values, None if mask is None else prepared_mask(mask, frame, threshold), frame)

    def post_process_semantic_segmentation(
        self, outputs: SemanticSegmenterOutput, volumes: Sequence[VolumeSource] | None = None
    ) -> list[np.ndarray]:
        """Turns logits (B, K, D, H, W) of whole prepared volumes into masks of class ids.

        Args:
            outputs: Outputs of the model for what `preprocess` returned.
            volumes: The same sources, for masks on their own voxels and axes. Default: masks of the logits' size.

        Raises:
            ValueError: If there is not one source for each volume of the batch.
        """
        logits = outputs.logits
        if volumes is None:
            return list(logits.argmax(1).cpu().numpy())
        if len(volumes) != len(logits):
            raise ValueError(f"got {len(volumes)} volumes for {len(logits)} outputs. Give one for each.")
        return [self._restored(*pair) for pair in zip(logits, volumes, strict=True)]

    def _restored(self, logits: Tensor, source: VolumeSource) -> np.ndarray:
        """Logits (K, D, H, W) -> the mask on the file's own axes; probabilities are resampled class by class."""
        volume = read_volume(source, slice_axis=self.slice_axis)
        settings = self.target_spacing, self.crop_to_nonzero, self.anisotropy_threshold
        frame = frame_of(volume.values, volume.spacing, *settings)
        inside = tuple(slice(0, length) for length in frame.prepared_size)
        probabilities = torch.softmax(logits[(slice(None), *inside)].float(), 0).cpu().numpy()
        mask = np.zeros(frame.size, dtype=np.int64)
        mask[frame.box] = _restored_classes(probabilities, frame, self.anisotropy_threshold)
        return mask if volume.geometry is None else np.ascontiguousarray(volume.geometry.to_file(mask))


def _each_channel(option: Any, channels: int, name: str) -> list:
    """An option for all channels, or a list of one per channel, as a list."""
    values = list(option) if isinstance(option, list | tuple) else [option] * channels
    if len(values) != channels:
        raise VolumeReadError(f"{name} is for {len(values)} channels, but the volume has {channels}.")
    return values


def _restored_classes(probabilities: np.ndarray, frame: VolumeFrame, threshold: float) -> np.ndarray:
    """(K, D, H, W) -> class ids of the box's size, one class at a time."""
    best = np.full(frame.cropped_size, -np.inf, dtype=np.float32)
    classes = np.zeros(frame.cropped_size, dtype=np.int64)
    for index in range(len(probabilities)):
        share = resample_image(
            probabilities[index : index + 1],
            frame.cropped_size,
            frame.prepared_spacing,
            frame.spacing,
            1,
            threshold,
        )[0]
        classes[share > best] = index
        np.maximum(best, share, out=best)
    return classes


def _padded(values: np.ndarray, size: Sequence[int], fill: float) -> np.ndarray:
    """(..., D, H, W) -> (..., *size), filled at the ends."""
    missing = [(0, new - old) for new, old in zip(size, values.shape[-3:], strict=True)]
    return np.pad(values, [(0, 0)] * (values.ndim - 3) + missing, constant_values=fill)


VOLUME_PROCESSORS = dict.fromkeys(("torchvision", "pil"), VolumeImageProcessor)  # by backend
