"""Inference on one image: whole or in windows, at one or more scales, with or without mirroring.

The protocol is mmsegmentation's. Logits of overlapping windows are averaged. The logits of each scale and of
its mirrored windows are resized to the requested size, where their class probabilities are averaged. Windows
are aligned to the cells of the logits, so blending happens at the decoder's stride, and a model that looks at
single pixels gives the same result as on the whole image. Results come in bands of rows: with windows, no map
of all classes is ever in memory; with whole images, the logits of all scales and mirrored views are.

Legend: C channels, H, W pixels of the result, K classes, h, w cells of the logits.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from math import ceil, inf
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from .image_opening import PIXEL_LIMIT, Source
from .image_reading import decode_once, read_image
from .logits_to_masks import argmax_of_bands, upsampled_rows
from .raster_inference import raster_rows, raster_scores
from .tiling import WEIGHTS, Place, RowReader, blended_rows, window_starts

BAND_VALUES = 1 << 22  # class scores in a band of rows, 16 MiB; a few such tensors exist at once


@dataclass(frozen=True)
class Inference:
    """Applies a segmenter to an image: whole or in windows, at one or more scales, with or without mirroring.

    `Inference()` processes the whole image at its own scale. The methods take any segmenter in evaluation
    mode whose outputs have `logits` (B, K, h, w), on any device, and its image processor, which also resizes
    to other scales.

    Args:
        window: Side of the windows in pixels, or (height, width). Default: None, the whole image.
        overlap: Fraction of a window that its neighbor covers too, from 0 to below 1. Default: 0.5.
        blend: Weights of the pixels in overlapping windows, "gaussian" (default) or "constant".
        scales: Factors of the image's size; class probabilities are averaged over them. Default: (1.0,).
        flip: Whether to average with the prediction for the mirrored image. Default: False.
        batch_size: Windows per forward pass. Default: 4.

    Raises:
        ValueError: If a setting is out of range.
    """

    window: int | tuple[int, int] | None = None
    overlap: float = 0.5
    blend: str = "gaussian"
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    batch_size: int = 4

    def __post_init__(self) -> None:
        check_windows(self.window, self.batch_size, self.overlap, self.blend)
        check_scales(self.scales)

    @property
    def window_sides(self) -> tuple[int, ...]:
        """(height, width) of the windows in pixels; `window` must not be None."""
        return (self.window, self.window) if isinstance(self.window, Integral) else tuple(self.window)

    def __str__(self) -> str:
        parts = ["whole images"]
        if self.window is not None:
            height, width = self.window_sides
            parts = [f"windows of {height}x{width} pixels, overlap {self.overlap:.3g}, {self.blend} weights"]
        if self.scales != (1.0,):
            parts.append(f"scales {', '.join(f'{scale:g}' for scale in self.scales)}")
        if self.flip:
            parts.append("averaged with the mirrored image")
        return ", ".join(parts)

    @torch.no_grad()
    def __call__(self, model: nn.Module, processor: Any, image: Source) -> Tensor:
        """Segments an image.

        Args:
            model: The segmenter.
            processor: Its image processor.
            image: Path, URL, bytes, binary file, PIL image, array or tensor.

        Returns:
            The mask (H, W), int32 class ids at the size of the upright image, on the model's device.

        Raises:
            ImageReadError: If the image cannot be read.
        """
        image = decoded(processor, image)
        unchanged = {"do_resize": False, "do_rescale": False, "do_normalize": False}
        size = processor(image, **unchanged, return_tensors="pt")["pixel_values"].shape[-2:]
        return self.mask(model, self.inputs(processor, image), size)

    def inputs(self, processor: Any, image: Source, **options: Any) -> list[Tensor]:
        """Prepares an image for `mask` and `probabilities`.

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
        pixels = processor(image, **options, return_tensors="pt")["pixel_values"]
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
        bands = self.logit_bands(model, inputs, size)
        scores = (logits[0] if len(logits) == 1 else mean_probabilities(logits) for logits in bands)
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
        for logits in self.logit_bands(model, inputs, size):
            yield mean_probabilities(logits)

    def raster_rows(self, model: nn.Module, raster: Any) -> list[int]:
        """Returns the first row of the result of each row of windows over a raster, see `raster_scores`."""
        return raster_rows(self, model, raster)

    def raster_scores(
        self,
        model: nn.Module,
        processor: Any,
        raster: Any,
        rows: tuple[int, int] | None = None,
        memory: int = 2 << 30,
    ) -> Iterator[tuple[int, Tensor]]:
        """Yields class probabilities of a raster of any size in bands of rows from top to bottom.

        Args:
            model: The segmenter.
            processor: Its image processor.
            raster: The raster, as `open_raster` returns it.
            rows: First row of the result and the row after the last. Default: all.
            memory: Bytes that may be held at once, besides the model. Default: 2 GiB.

        Yields:
            The first row of a band, and its probabilities (K, rows, W), float32 on the model's device.
        """
        return raster_scores(self, model, processor, raster, rows, memory)

    def logit_bands(
        self, model: nn.Module, inputs: Sequence[Tensor], size: Sequence[int]
    ) -> Iterator[list[Tensor]]:
        """Yields for each band the logits (K, rows, W) of all views (scales, mirrored or not) at `size`."""
        height, width = size
        forwards = (logits_of, mirrored_logits_of) if self.flip else (logits_of,)
        views = [logit_rows(self, model, pixels, forward) for pixels in inputs for forward in forwards]
        rows = max(1, BAND_VALUES // (views[0][1].channels * width))
        for start in range(0, height, rows):
            stop = min(start + rows, height)
            yield [upsampled_rows(reader, cells, (height, width), start, stop) for cells, reader in views]


def check_windows(window: Any, batch_size: Any, overlap: Any, blend: str) -> None:
    """Raises ValueError unless these are settings of `Inference`."""
    sides = [window, window] if isinstance(window, Integral) else window
    if window is not None and not (
        isinstance(sides, list | tuple) and len(sides) == 2 and all(map(is_count, sides))
    ):
        raise ValueError(
            f"window={window!r} is not a size. Give the side in whole pixels of 1 or more, such as 512, or (height, width)."
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


def check_scales(scales: Any) -> None:
    """Raises ValueError unless these are one or more factors."""
    is_list = isinstance(scales, list | tuple) and len(scales) > 0
    if not (is_list and all(isinstance(scale, Real) and 0 < scale < inf for scale in scales)):
        raise ValueError(
            f"scales={scales!r} need at least one factor, all above 0, such as (0.75, 1.0, 1.25)."
        )


def is_count(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= 1


class WindowedImage:
    """An image cut into windows, which are aligned to the cells of the logits and need no padding.

    Attributes:
        cells: Cells of the image along each axis.
        window: Cells of a window along each axis: its side rounded up to whole cells, at most that of the
            image.
        starts: First cells of the windows along each axis.
    """

    def __init__(self, pixels: Tensor, stride: int, window: Sequence[int], overlap: float) -> None:
        self.pixels, self.stride = pixels, stride
        self.cells = tuple(ceil(side / stride) for side in pixels.shape[-2:])
        self.window = tuple(min(ceil(w / stride), n) for w, n in zip(window, self.cells, strict=True))
        self.starts = [
            window_starts(n, w, step=max(1, round(w * (1 - overlap))))
            for n, w in zip(self.cells, self.window, strict=True)
        ]

    def logits(
        self, forward: Callable[[Tensor], Tensor], places: list[Place], *, batch_size: int
    ) -> Iterator[Tensor]:
        """Yields the logits (K, *window) of windows at these places; a batch has windows of one size."""
        for _, equal in groupby(map(self.cut, places), key=lambda window: window.shape):
            while batch := list(islice(equal, batch_size)):
                logits = forward(torch.stack(batch))
                if logits.shape[-2:] != self.window:  # the stride is not a whole number
                    logits = F.interpolate(logits, size=self.window, mode="bilinear", align_corners=False)
                yield from logits

    def cut(self, place: Place) -> Tensor:
        """The window's pixels (C, ., .); the last cell of the image may be incomplete."""
        rows, columns = (
            slice(first * self.stride, (first + cells) * self.stride)
            for first, cells in zip(place, self.window, strict=True)
        )
        return self.pixels[:, rows, columns]


def decoded(processor: Any, image: Source) -> Source:
    """Decodes an image file once, upright, for all scales; what is in memory already is returned as it is."""
    if isinstance(image, Image.Image | np.ndarray | Tensor):
        return image
    return decoded_for(processor, image)[0]


def decoded_for(processor: Any, source: Source) -> tuple[Image.Image | np.ndarray, int]:
    """Decodes an image once, as its processor takes it: ours any, those of transformers RGB.

    Returns:
        The upright image, and the EXIF orientation of the file, see `decode_once`.
    """
    channels = channels_of(processor)
    image, orientation = decode_once(source, getattr(processor, "pixel_limit", PIXEL_LIMIT), channels)
    if channels is None and not hasattr(processor, "decode_mask"):  # not ours
        image = read_image(image, value_range=getattr(processor, "value_range", None))
    return image, orientation


def channels_of(processor: Any) -> int | None:
    """The number of channels that a processor reads; None if it makes every image RGB."""
    mean = getattr(processor, "image_mean", None)
    if not isinstance(mean, Sequence):
        return None
    converts = getattr(processor, "do_convert_rgb", None)
    return None if (len(mean) == 3 if converts is None else converts) else len(mean)


def scaled(processor: Any, image: Source, size: Sequence[int], scale: float, **options: Any) -> Tensor:
    """An image -> `pixel_values` (1, C, ., .) at `scale` times `size`; a side of one pixel is never less."""
    height, width = (1 if side == 1 else round(side * scale) for side in size)
    if min(height, width) < 1:
        raise ValueError(
            f"scale {scale:g} leaves less than a pixel of an image of {size[0]}x{size[1]} (height x width). "
            f"Use scales of {1 / min(side for side in size if side > 1):.2g} or more."
        )
    resized = {"do_resize": True, "size": {"height": height, "width": width}}
    return processor(image, **options, **resized, return_tensors="pt")["pixel_values"]


def logit_rows(
    inference: Inference, model: nn.Module, pixels: Tensor, forward: Callable[[nn.Module, Tensor], Tensor]
) -> tuple[int, RowReader]:
    """(1, C, ., .) -> the number of rows h of its logits, and a reader of these logits (K, h, w)."""
    sides = pixels.shape[-2:]
    if inference.window is None or all(
        n <= window for n, window in zip(sides, inference.window_sides, strict=True)
    ):
        logits = forward(model, pixels)[0]
        return logits.shape[-2], RowReader([logits])
    stride = logits_stride(model, pixels[..., : inference.window_sides[0], : inference.window_sides[1]])
    image = WindowedImage(pixels[0], stride, inference.window_sides, inference.overlap)
    weights = WEIGHTS[inference.blend](image.window)
    predict = partial(image.logits, partial(forward, model), batch_size=inference.batch_size)
    return image.cells[0], RowReader(blended_rows(image.cells, image.starts, weights, predict))


def logits_of(model: nn.Module, pixels: Tensor) -> Tensor:
    """(B, C, ., .) -> (B, K, h, w) float32."""
    outputs = model(pixel_values=pixels.to(model.device, model.dtype))
    logits = outputs[0] if isinstance(outputs, tuple) else outputs.logits  # a tuple if return_dict is False
    return logits.float()


def mirrored_logits_of(model: nn.Module, pixels: Tensor) -> Tensor:
    """(B, C, ., .) -> (B, K, h, w): the logits of the mirrored pixels, mirrored back."""
    return logits_of(model, pixels.flip(-1)).flip(-1)


def logits_stride(model: nn.Module, window: Tensor) -> int:
    """Returns the stride of the logits in pixels, from the configuration or by a forward pass on `window`.

    Returns 1 if the stride is not a whole number.
    """
    known = getattr(model.config, "logits_stride", None)
    if known is not None:
        return known
    sides, cells = window.shape[-2:], logits_of(model, window).shape[-2:]
    stride = ceil(sides[0] / cells[0])
    return stride if all(ceil(side / stride) == n for side, n in zip(sides, cells, strict=True)) else 1


def mean_probabilities(views: Sequence[Tensor]) -> Tensor:
    """Logits (K, rows, W) of each view -> the mean of their class probabilities."""
    total = views[0].softmax(0)
    for logits in views[1:]:
        total += logits.softmax(0)
    return total / len(views)
