"""How a segmenter is applied to one image: at once or window by window, at several scales, mirrored as well.

The protocol is mmsegmentation's: logits of overlapping windows are averaged; of each scaled image, and of its mirrored
windows, the logits are resized to the size that is wanted, and their class probabilities averaged there. Windows lie on
the cells of the logits, so that blending happens at the decoder's stride, and a model that looks at single pixels gives
what it gives for the whole image. Results come in bands of rows: with windows, no map of all classes is ever held; of whole
images, the logits are, those of all scales and mirrors at once.

Legend: C bands, H, W pixels of the result, K classes, h, w cells of the logits.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .image_reading import Source
from .logits_to_masks import argmax_of_bands, upsampled_rows
from .tiling import WEIGHTS, Place, RowReader, blended_rows, window_starts

BAND_VALUES = 1 << 22  # class scores of a band, 16 MiB; a few such tensors exist at once


@dataclass(frozen=True)
class Inference:
    """How a segmenter is applied to an image: whole or in windows, at one scale or several, mirrored as well.

    `Inference()` is the whole image at its own scale. Its methods take any segmenter in evaluation mode whose outputs have
    `logits` (B, K, h, w), on any device, and its image processor, which also resizes to other scales.

    Args:
        window: Side of the windows in pixels, or (height, width); None is the whole image.
        overlap: Share of a window that its neighbor covers as well, from 0 to below 1.
        blend: Weights of the pixels of overlapping windows, "gaussian" or "constant".
        scales: Factors of the image's size; class probabilities are averaged over them.
        flip: Whether to average with the prediction for the mirrored image.
        batch_size: Windows of one forward pass.

    Raises:
        ValueError: A setting is out of range.
    """

    window: int | tuple[int, int] | None = None
    overlap: float = 0.5
    blend: str = "gaussian"
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    batch_size: int = 4

    def __post_init__(self) -> None:
        sides = () if self.window is None else self.window_sides
        if len(sides) not in (0, 2) or min(sides, default=1) < 1 or self.batch_size < 1:
            raise ValueError(
                f"window={self.window} and batch_size={self.batch_size} must be 1 or more. "
                "Give the window's side, or (height, width), in pixels."
            )
        if not 0 <= self.overlap < 1:
            raise ValueError(
                f"overlap={self.overlap} is not between 0 and 1. Give the share of a window that neighbours have in common, such as 0.5."
            )
        if self.blend not in WEIGHTS:
            raise ValueError(f"there is no blend '{self.blend}'. Known: {', '.join(WEIGHTS)}.")
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(
                f"scales={self.scales} need at least one factor, all above 0, such as (0.75, 1.0, 1.25)."
            )

    @property
    def window_sides(self) -> tuple[int, ...]:
        return (self.window, self.window) if isinstance(self.window, int) else tuple(self.window)

    def __str__(self) -> str:
        parts = ["whole images"]
        if self.window is not None:
            height, width = self.window_sides
            parts = [
                f"windows of {height}x{width} pixels, {self.overlap:.3g} of them shared, {self.blend} weights"
            ]
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
            image: Path, PIL image, array or tensor.

        Returns:
            The mask (H, W), int32 class ids at the image's own size, on the model's device.
        """
        unchanged = {"do_resize": False, "do_rescale": False, "do_normalize": False}
        size = processor(image, **unchanged, return_tensors="pt")["pixel_values"].shape[-2:]
        return self.mask(model, self.inputs(processor, image), size)

    def inputs(self, processor: Any, image: Source) -> list[Tensor]:
        """The `pixel_values` (1, C, ., .) of an image at each of the scales, for `mask` and `probabilities`."""
        pixels = processor(image, return_tensors="pt")["pixel_values"]
        return [
            pixels if scale == 1 else scaled(processor, image, pixels.shape[-2:], scale)
            for scale in self.scales
        ]

    @torch.no_grad()
    def mask(self, model: nn.Module, inputs: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """The mask of what `inputs` gave: (H, W) int32 class ids of the given `size`, on the model's device."""
        bands = self.bands(model, inputs, size)
        scores = (logits[0] if len(logits) == 1 else mean_probabilities(logits) for logits in bands)
        return argmax_of_bands(scores, size, model.device)

    @torch.no_grad()
    def probabilities(
        self, model: nn.Module, inputs: Sequence[Tensor], size: Sequence[int]
    ) -> Iterator[Tensor]:
        """Class probabilities of what `inputs` gave, at the given `size`, as bands (K, rows, W) from top to bottom."""
        for logits in self.bands(model, inputs, size):
            yield mean_probabilities(logits)

    def bands(
        self, model: nn.Module, inputs: Sequence[Tensor], size: Sequence[int]
    ) -> Iterator[list[Tensor]]:
        """Logits of every view, scale by scale and mirrored, resized to `size`: band by band a list of (K, rows, W)."""
        height, width = size
        forwards = (logits_of, mirrored_logits_of) if self.flip else (logits_of,)
        views = [self.view(model, pixels, forward) for pixels in inputs for forward in forwards]
        rows = max(1, BAND_VALUES // (views[0][1].channels * width))
        for start in range(0, height, rows):
            stop = min(start + rows, height)
            yield [upsampled_rows(reader, cells, (height, width), start, stop) for cells, reader in views]

    def view(
        self, model: nn.Module, pixels: Tensor, forward: Callable[[nn.Module, Tensor], Tensor]
    ) -> tuple[int, RowReader]:
        """(1, C, ., .) -> how many rows of cells its logits have, and a reader of these (K, h, w)."""
        sides = pixels.shape[-2:]
        if self.window is None or all(
            n <= window for n, window in zip(sides, self.window_sides, strict=True)
        ):
            logits = forward(model, pixels)[0]
            return logits.shape[-2], RowReader([logits])
        stride = logits_stride(model, pixels[..., : self.window_sides[0], : self.window_sides[1]])
        image = WindowedImage(pixels[0], stride, self.window_sides, self.overlap)
        weights = WEIGHTS[self.blend](image.window)
        predict = partial(image.logits, partial(forward, model), batch_size=self.batch_size)
        return image.cells[0], RowReader(blended_rows(image.cells, image.starts, weights, predict))


class WindowedImage:
    """An image as windows that begin on cells of the logits. None reaches over the image, so there is no padding.

    Attributes, one entry for each axis: `cells` of the image, `window` in cells (its side rounded up to whole ones, and
    no longer than the image), `starts` of the windows.
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
        """Places of windows -> for each of them (K, *window); only windows of equal size share a batch."""
        for _, equal in groupby(map(self.cut, places), key=lambda window: window.shape):
            while batch := list(islice(equal, batch_size)):
                logits = forward(torch.stack(batch))
                if logits.shape[-2:] != self.window:  # of a model whose cells cover no whole number of pixels
                    logits = F.interpolate(logits, size=self.window, mode="bilinear", align_corners=False)
                yield from logits

    def cut(self, place: Place) -> Tensor:
        """The window's pixels, (C, ., .); the last cell of the image may be a part of one."""
        rows, columns = (
            slice(first * self.stride, (first + cells) * self.stride)
            for first, cells in zip(place, self.window, strict=True)
        )
        return self.pixels[:, rows, columns]


def scaled(processor: Any, image: Source, size: Sequence[int], scale: float) -> Tensor:
    """An image -> `pixel_values` (1, C, ., .) of `scale` times that size."""
    height, width = (max(1, round(side * scale)) for side in size)
    resized = {"do_resize": True, "size": {"height": height, "width": width}}
    return processor(image, **resized, return_tensors="pt")["pixel_values"]


def logits_of(model: nn.Module, pixels: Tensor) -> Tensor:
    """(B, C, ., .) -> (B, K, h, w) float32."""
    return model(pixel_values=pixels.to(model.device, model.dtype)).logits.float()


def mirrored_logits_of(model: nn.Module, pixels: Tensor) -> Tensor:
    """(B, C, ., .) -> (B, K, h, w): the logits of the mirrored pixels, mirrored back."""
    return logits_of(model, pixels.flip(-1)).flip(-1)


def logits_stride(model: nn.Module, window: Tensor) -> int:
    """Pixels along a cell of the logits; where the configuration does not tell, the logits of `window` do.

    It is 1, the pixels themselves, where no whole number explains them.
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
