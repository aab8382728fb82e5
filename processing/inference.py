"""Inference on one image: whole or in windows, at one or more scales, with or without mirroring.

The protocol is mmsegmentation's. Logits of overlapping windows are averaged. The logits of each scale and of
its mirrored windows are resized to the requested size, where their class probabilities are averaged. Windows
are aligned to the cells of the logits, so blending happens at the decoder's stride, and a model that looks at
single pixels gives the same result as on the whole image. Results come in bands of rows: with windows, no map
of all classes is ever in memory; with whole images, the logits of all scales and mirrored views are.

Legend: C channels, H, W pixels of the result, K classes, h, w cells of the logits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from .image_opening import Source
from .image_windows import (
    ImagePixels,
    check_image_windows,
    is_covered,
    logits_of,
    view_of,
    window_sides,
)
from .logits_to_masks import argmax_of_bands, mean_probabilities, upsampled_rows
from .mask_models import as_segmenter, gives_scores
from .processor_inputs import decoded, pixel_values, scaled, size_of
from .rasters.inference import MEMORY, raster_rows, raster_scores
from .rasters.spans import spans_of
from .tiling import WEIGHTS, RowReader, blended_rows
from .volumes.volume_inference import segment_volume, takes_volumes

BAND_VALUES = 1 << 22  # class scores in a band of rows, 16 MiB; a few such tensors exist at once


@dataclass(frozen=True)
class Inference:
    """Applies a segmenter to an image or a volume: whole or in windows, with or without mirroring.

    `Inference()` processes the whole image at its own scale. The methods take any segmenter in evaluation mode whose
    outputs have `logits` (B, K, h, w) or that `MaskSegmenter` takes, and its image processor, which also resizes to other scales.
    Volumes, segmented by a call, follow nnU-Net's protocol; "center", `scales` and `share_context` are for images.

    Args:
        window: Side of the windows in pixels, or (height, width); (slices, rows, columns) for volumes. Default: None,
            the whole image; windows of `crop_size` for volumes, and without overlap for models of two scales.
        overlap: Fraction of a window that its neighbor covers too, from 0 to below 1. Default: 0.5.
        blend: "gaussian" (default) or "constant" weights of the pixels in overlapping windows, or "center": only the
            central part of each window counts, and the grid is moved by half a step (the relay token authors' rule).
        scales: Factors of the image's size; class probabilities are averaged over them. Default: (1.0,).
        flip: Whether to average with the prediction for the mirrored image, of a volume all 7. Default: False.
        batch_size: Windows per forward pass; of volumes at most as many as have 2**20 voxels. Default: 4.
        share_context: Whether contexts lie on a fixed grid, and neighboring windows share their features, which are
            computed once; only for models of two scales that allow it (CASWiT). Default: False.

    Raises:
        ValueError: If a setting is out of range.
    """

    window: int | tuple[int, ...] | None = None
    overlap: float = 0.5
    blend: str = "gaussian"
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    batch_size: int = 4
    share_context: bool = False

    def __post_init__(self) -> None:
        check_windows(self.window, self.batch_size, self.overlap, self.blend)
        check_scales(self.scales)

    @property
    def window_sides(self) -> tuple[int, ...]:
        """(height, width) of the windows in pixels; `window` must not be None. Raises ValueError if it has three sides."""
        return sides_of_images(self.window)

    @property
    def has_several_views(self) -> bool:
        """Whether class probabilities are averaged over several scales, or with those of the mirrored image."""
        return len(self.scales) > 1 or self.flip

    def __str__(self) -> str:
        return in_words(self)

    @torch.no_grad()
    def __call__(self, model: nn.Module, processor: Any, image: Source) -> Tensor:
        """Segments an image or a volume.

        Args:
            model: The segmenter.
            processor: Its image processor.
            image: Path, URL, bytes, binary file, PIL image, array or tensor; a volume as `read_volume` takes it.

        Returns:
            The mask on the model's device, int32: (H, W), upright, or (D, H, W) in the canonical orientation.

        Raises ImageReadError if the image cannot be read, ValueError if a setting is not for images, or volumes.
        """
        if takes_volumes(model.config):
            return segment_volume(model, processor, image, self)
        model, image = as_segmenter(model, processor), decoded(processor, image)
        return self.mask(model, self.inputs(processor, image), size_of(processor, image))

    def inputs(self, processor: Any, image: Source, **options: Any) -> list[Tensor]:
        """Prepares an image, not a volume, for `mask` and `probabilities`.

        Args:
            processor: The model's image processor.
            image: Path, URL, bytes, binary file, PIL image, array or tensor.
            **options: Options of the processor for this image.

        Returns:
            `pixel_values` (1, C, ., .) at each scale.

        Raises:
            ImageReadError: If the image cannot be read.
        """
        image = decoded(processor, image)
        pixels = pixel_values(processor, image, **options)
        return [
            pixels if scale == 1 else scaled(processor, image, pixels.shape[-2:], scale, **options)
            for scale in self.scales
        ]

    @torch.no_grad()
    def mask(self, model: nn.Module, inputs: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Segments the result of `inputs`.

        Args:
            model: The segmenter.
            inputs: `pixel_values` (1, C, ., .) at each scale.
            size: (H, W) of the mask.

        Returns:
            The mask (H, W), int32 class ids on the model's device.
        """
        bands, are_scores = logit_bands(self, model, inputs, size), gives_scores(model)
        scores = (mean_probabilities(views, are_scores) if views[1:] else views[0] for views in bands)
        return argmax_of_bands(scores, size, model.device)

    @torch.no_grad()
    def probabilities(
        self, model: nn.Module, inputs: Sequence[Tensor], size: Sequence[int]
    ) -> Iterator[Tensor]:
        """Yields class probabilities, averaged over all views, in bands of rows from top to bottom.

        Args:
            model: The segmenter.
            inputs: `pixel_values` (1, C, ., .) at each scale.
            size: (H, W) of the probabilities.

        Yields:
            Probabilities (K, rows, W) of the next rows, float32 on the model's device.
        """
        for logits in logit_bands(self, model, inputs, size):
            yield mean_probabilities(logits, gives_scores(model))

    def raster_rows(self, model: nn.Module, raster: Any) -> list[int]:
        """Returns the first row of the result of each row of windows over a raster, see `raster_scores`."""
        return raster_rows(self, model, raster)

    def raster_scores(
        self,
        model: nn.Module,
        processor: Any,
        raster: Any,
        rows: tuple[int, int] | None = None,
        memory: int = MEMORY,
        probabilities: bool = True,
    ) -> Iterator[tuple[int, Tensor]]:
        """Yields class probabilities of a raster of any size in bands of rows from top to bottom.

        Args:
            model: The segmenter.
            processor: Its image processor.
            raster: The raster, as `open_raster` returns it.
            rows: First row of the result and the row after the last. Default: all.
            memory: Bytes that may be held at once, besides the model. Default: 2 GiB.
            probabilities: False yields logits where there is one view: faster, and with the same argmax. Default: True.

        Yields:
            The first row of a band, and its probabilities (K, rows, W), float32 on the model's device.
        """
        return raster_scores(self, model, processor, raster, rows, memory, probabilities)


def in_words(inference: Inference) -> str:
    """Says how images are predicted."""
    parts = ["whole images"]
    if inference.window is not None:
        window = inference.window
        sides = (window, window) if isinstance(window, Integral) else window
        size, unit = "x".join(map(str, sides)), "voxels" if len(sides) == 3 else "pixels"
        overlap, blend = f"overlap {inference.overlap:.3g}", f"{inference.blend} weights"
        parts = [f"windows of {size} {unit}, {overlap}, {blend}"]
    if inference.scales != (1.0,):
        parts.append(f"scales {', '.join(f'{scale:g}' for scale in inference.scales)}")
    parts += ["averaged with the mirrored image"] * inference.flip
    parts += ["contexts on a fixed grid"] * inference.share_context
    return ", ".join(parts)


def check_windows(window: Any, batch_size: Any, overlap: Any, blend: str) -> None:
    """Raises ValueError unless these are settings of `Inference`."""
    sides = [window, window] if isinstance(window, Integral) else window
    if window is not None and not (
        isinstance(sides, list | tuple) and len(sides) in (2, 3) and all(map(is_count, sides))
    ):
        raise ValueError(
            f"window={window!r} is not a size. Give the side in whole pixels of 1 or more, such as 512, or (height, width); "
            "(slices, rows, columns) for volumes."
        )
    if not is_count(batch_size):
        raise ValueError(
            f"batch_size={batch_size!r} is not a number of windows. Give a whole number of 1 or more."
        )
    if not (isinstance(overlap, Real) and 0 <= overlap < 1):
        raise ValueError(
            f"overlap={overlap!r} is not between 0 and 1. "
            "Give the fraction of a window that neighbors share, such as 0.5."
        )
    if blend not in WEIGHTS:
        raise ValueError(f"unknown blend '{blend}'. Known: {', '.join(WEIGHTS)}.")


def sides_of_images(window: int | tuple[int, ...]) -> tuple[int, int]:
    """(height, width) of windows. Raises ValueError for those of volumes."""
    sides = (window, window) if isinstance(window, Integral) else tuple(window)
    if len(sides) != 2:
        raise ValueError(
            f"window={sides} has three sides, as windows of volumes have. Give one side, or (height, width), for images."
        )
    return sides


def check_scales(scales: Any) -> None:
    """Raises ValueError unless these are one or more factors."""
    is_list = isinstance(scales, list | tuple) and len(scales) > 0
    if not (is_list and all(isinstance(scale, Real) and 0 < scale < inf for scale in scales)):
        raise ValueError(
            f"scales={scales!r} need at least one factor, all above 0, such as (0.75, 1.0, 1.25)."
        )


def is_count(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= 1


def logit_bands(
    inference: Inference, model: nn.Module, inputs: Sequence[Tensor], size: Sequence[int]
) -> Iterator[list[Tensor]]:
    """Yields for each band the logits (K, rows, W) of all views (scales, mirrored or not) at `size`."""
    if takes_volumes(model.config):
        raise ValueError(
            "the model takes volumes, and this is for images. Call Inference(...)(model, processor, volume)."
        )
    height, width = size
    model = as_segmenter(model)
    check_image_windows(inference, model)
    views = [
        logit_rows(inference, model, pixels, is_mirrored)
        for pixels in inputs
        for is_mirrored in sorted({False, inference.flip})
    ]
    rows = max(1, BAND_VALUES // (views[0][1].channels * width))
    for start, stop in spans_of(height, rows):
        yield [upsampled_rows(reader, cells, (height, width), start, stop) for cells, reader in views]


def logit_rows(
    inference: Inference, model: nn.Module, pixels: Tensor, is_mirrored: bool
) -> tuple[int, RowReader]:
    """(1, C, ., .) -> the number of rows h of its logits, and a reader of these logits (K, h, w)."""
    size, has_context = pixels.shape[-2:], getattr(model.config, "context_ratio", None) is not None
    if not has_context and (inference.window is None or is_covered(size, inference.window_sides)):
        logits = logits_of(model, pixels.flip(-1)).flip(-1) if is_mirrored else logits_of(model, pixels)
        return logits.shape[-2], RowReader([logits[0]])
    height, width = window_sides(inference, model, size)[0]
    view = view_of(inference, model, ImagePixels(pixels[0]), pixels[..., :height, :width], is_mirrored)
    return view.grid.cells[0], RowReader(blended_rows(view.grid, view.logits))
