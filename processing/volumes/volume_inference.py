"""Segmentation of a volume in overlapping windows; the protocol is nnU-Net's.

Whole windows lie evenly spaced, over both ends of a smaller volume. The class probabilities of a window, averaged
over its mirrored views, are weighted by a blurred impulse. The volume is swept along the axis on which a window is
shortest compared with the volume: memory holds the probabilities below one layer of windows, and bands leave as
soon as no further window covers them. They are resized to the grid of the file band by band.

Legend: C channels, D, H, W slices, rows and columns, K classes, G... the three axes with the swept one first,
N... the same axes of a window.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, islice
from math import prod
from numbers import Integral
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..image_windows import logits_of
from ..logits_to_masks import upsampled_rows
from ..rasters.spans import spans_of
from ..tiling import EVEN_WEIGHTS, Grid, Place, RowReader, blended_rows, even_grid, overlap_slices
from .volume_reading import Volume, read_volume

BAND_VALUES = 1 << 22  # class scores in a band: 16 MiB; a few such tensors exist at once
WINDOW_VOXELS = 1 << 20  # most voxels in a forward pass of several windows


class Band(NamedTuple):
    """Class probabilities of a part of a volume.

    Attributes:
        axis: The swept axis: 0, 1 or 2 for slices, rows or columns.
        start: Where the part begins on it.
        probabilities: (K, D, H, W), of which the swept axis has a part and the others all.
    """

    axis: int
    start: int
    probabilities: Tensor


@dataclass(frozen=True)
class VolumeView:
    """A volume as a model sees it in windows.

    Attributes:
        model: The segmenter.
        values: (C, D, H, W) of the volume, as the model takes them.
        axis: The swept axis.
        grid: The windows; the swept axis is the first.
        batch_size: Windows per forward pass.
        mirrors: Axes of each mirrored view, () for the one that is not mirrored.
    """

    model: nn.Module
    values: Tensor
    axis: int
    grid: Grid
    batch_size: int
    mirrors: Sequence[tuple[int, ...]]

    def probabilities(self, places: Sequence[Place]) -> Iterator[Tensor]:
        """Yields the class probabilities (K, N...) of windows at these places."""
        left = iter(places)
        while batch := list(islice(left, self.batch_size)):
            windows = torch.stack([self.window(place) for place in batch])
            yield from self.forward(windows).movedim(self.axis + 2, 2)

    def window(self, place: Place) -> Tensor:
        """(C, ...) of a window; 0 outside the volume."""
        values = self.values.movedim(self.axis + 1, 1)
        sides = [overlap_slices(*axis) for axis in zip(place, self.grid.window, self.grid.cells, strict=True)]
        window = values.new_zeros(len(values), *self.grid.window)
        window[(..., *(inside for _, inside in sides))] = values[(..., *(under for under, _ in sides))]
        return window.movedim(1, self.axis + 1)

    def forward(self, windows: Tensor) -> Tensor:
        """(B, C, ...) -> the class probabilities (B, K, ...), averaged over the mirrored views."""
        total = None
        for axes in self.mirrors:
            probabilities = self.forward_once(windows.flip(axes)).flip(axes)
            total = probabilities if total is None else total.add_(probabilities)
            del probabilities  # or a third map would exist during the next forward pass
        return total if len(self.mirrors) == 1 else total.div_(len(self.mirrors))

    def forward_once(self, windows: Tensor) -> Tensor:
        """(B, C, ...) -> the class probabilities (B, K, ...)."""
        logits = logits_of(self.model, windows)
        if logits.shape[2:] != windows.shape[2:]:
            logits = F.interpolate(logits, size=windows.shape[2:], mode="trilinear", align_corners=False)
        return logits.softmax(1)


def takes_volumes(config: Any) -> bool:
    """Whether the model of a configuration takes volumes, not images."""
    return getattr(config, "num_axes", 2) == 3


def volume_view(inference: Any, model: nn.Module, values: Tensor) -> VolumeView:
    """The windows of `inference` over the values (C, D, H, W) of a volume. Raises ValueError as `check_volumes`."""
    check_volumes(inference)
    size = tuple(values.shape[1:])
    window = volume_window(inference, model, size)
    axis = min(range(3), key=lambda k: window[k] / size[k])
    order = (axis, *(k for k in range(3) if k != axis))
    cells, sides = (tuple(lengths[k] for k in order) for lengths in (size, window))
    grid = even_grid(cells, sides, inference.overlap, inference.blend)
    batch_size = max(1, min(inference.batch_size, WINDOW_VOXELS // prod(window)))
    axes = [k + 2 for k in range(3) if window[k] > 1] if inference.flip else []
    mirrors = list(chain.from_iterable(combinations(axes, n) for n in range(len(axes) + 1)))
    return VolumeView(model, values, axis, grid, batch_size, mirrors)


def volume_window(inference: Any, model: nn.Module, size: Sequence[int]) -> tuple[int, ...]:
    """(slices, rows, columns) of the windows: those asked for, else the model's crop size, else the whole volume."""
    window = inference.window
    if window is None:
        window = getattr(model.config, "crop_size", None) or size
    window = (window,) * 3 if isinstance(window, Integral) else tuple(window)
    if len(window) != 3:
        raise ValueError(
            f"window={window} has {len(window)} sides, and volumes have three axes. Give one side, or "
            "(slices, rows, columns)."
        )
    return window


def check_volumes(inference: Any) -> None:
    """Raises ValueError if `inference` has settings that volumes do not have."""
    if inference.blend not in EVEN_WEIGHTS:
        raise ValueError(
            f"blend='{inference.blend}' is for images. Choose one of {', '.join(EVEN_WEIGHTS)} for volumes."
        )
    if tuple(inference.scales) != (1.0,):
        raise ValueError(
            f"scales={inference.scales} are for images; volumes are segmented at scale 1. Leave it out."
        )
    if inference.share_context:
        raise ValueError("share_context is for models of two scales, which take images. Leave it off.")


@torch.no_grad()
def volume_probabilities(
    model: nn.Module,
    values: Tensor,
    inference: Any,
    size: Sequence[int] | None = None,
    nearest: int | None = None,
) -> Iterator[Band]:
    """Yields the class probabilities of a volume in bands along one axis, from its beginning to its end.

    Args:
        model: The segmenter, in evaluation mode.
        values: (C, D, H, W), as the model takes them.
        inference: The `Inference`.
        size: Slices, rows and columns of the result. Default: those of `values`.
        nearest: The axis along which resizing takes the nearest voxel; along the others it is linear. Default:
            None, linear along all.

    Raises:
        ValueError: If `inference` has settings that volumes do not have.
    """
    view = volume_view(inference, model, values)
    axis, cells = view.axis, view.grid.cells
    pieces = blended_rows(view.grid, view.probabilities)
    if size is not None and tuple(size) != tuple(values.shape[1:]):
        order = (axis, *(k for k in range(3) if k != axis))
        nearest = None if nearest is None else order.index(nearest)
        pieces = resized(pieces, cells[0], [size[k] for k in order], nearest)
    start = 0
    for piece in pieces:
        yield Band(axis, start, piece.movedim(1, axis + 1))
        start += piece.shape[1]


def resized(
    pieces: Iterator[Tensor], cells: int, size: Sequence[int], nearest: int | None
) -> Iterator[Tensor]:
    """Pieces (K, R, G...) of a map with `cells` rows -> pieces of the map resized to `size`."""
    reader = RowReader(pieces)
    rows = max(1, BAND_VALUES // (reader.channels * prod(size[1:])))
    for start, stop in spans_of(size[0], rows):
        yield upsampled_rows(reader, cells, size, start, stop, nearest)


@torch.no_grad()
def segment_volume(model: nn.Module, processor: Any, source: Any, inference: Any) -> Tensor:
    """Segments a volume.

    Args:
        model: A segmenter of volumes, in evaluation mode.
        processor: Its `VolumeImageProcessor`.
        source: The `Volume`, or what `read_volume` takes.
        inference: The `Inference`.

    Returns:
        The mask (D, H, W), int32 class ids in the canonical orientation, on the model's device.

    Raises:
        VolumeReadError: If the volume cannot be read.
        ValueError: If `inference` has settings that volumes do not have.
    """
    check_processor(processor)
    prepared = processor.prepare(volume_of(model, processor, source))
    kind = torch.uint8 if model.config.num_labels <= 256 else torch.int32
    mask = torch.zeros(tuple(prepared.frame.size), dtype=kind, device=model.device)
    inside = mask[prepared.frame.box]
    for band in prepared_probabilities(model, prepared, inference):
        part_of(inside, band).copy_(band.probabilities.max(0).indices)
    return mask.int()


def volume_of(model: nn.Module, processor: Any, source: Any) -> Volume:
    """Reads a volume as a model takes it.

    Raises VolumeReadError if it cannot be read, ValueError if it was read with another slice axis.
    """
    volume = read_volume(source, model.config.num_channels, processor.slice_axis)
    if volume.geometry is not None and volume.geometry.slice_axis != processor.slice_axis:
        raise ValueError(
            f"{volume.name} was read with slice_axis='{volume.geometry.slice_axis}', but its processor has "
            f"'{processor.slice_axis}'. Pass slice_axis=processor.slice_axis to read_volume."
        )
    return volume


def prepared_probabilities(model: nn.Module, prepared: Any, inference: Any) -> Iterator[Band]:
    """Yields the class probabilities of a prepared volume on the grid of its file, in the box that was not cropped."""
    size = [side.stop - side.start for side in prepared.frame.box]
    values = torch.as_tensor(prepared.values)
    return volume_probabilities(model, values, inference, size, prepared.frame.nearest)


def part_of(values: Any, band: Band) -> Any:
    """The part of an array or tensor (D, H, W) that a band of it covers, as a view."""
    stop = band.start + band.probabilities.shape[band.axis + 1]
    return values[(*[slice(None)] * band.axis, slice(band.start, stop))]


def is_for_volumes(processor: Any) -> bool:
    """Whether an image processor prepares volumes, not images."""
    return hasattr(processor, "prepare")


def check_processor(processor: Any) -> None:
    """Raises ValueError if an image processor is not for volumes."""
    if not is_for_volumes(processor):
        raise ValueError(
            f"the model takes volumes, and {type(processor).__name__} is for images. Pass its VolumeImageProcessor."
        )
