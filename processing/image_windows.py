"""Windows of an image and the logits that a model gives for them, one view (scale, mirrored or not) at a time.

Windows are aligned to the cells of the logits. Models of one scale see windows cut to the image, except with
`blend="center"`. Models of two scales see whole windows, each with the context around it; where no window is
asked for, windows of the model's crop size that do not overlap, as its forward pass on a whole image.

Legend: B batch, C channels, H, W pixels of the image, K classes, h, w cells of the logits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from math import ceil
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .context_windows import Box, context_box, cut_window, reduced, shared_context_box
from .tiling import Grid, Place, center_grid, sliding_grid

CONTEXT_BYTES = 256 << 20  # features of contexts that are kept for other windows


class Pixels(Protocol):
    """Values of an image as a model takes them, read by windows."""

    size: tuple[int, int]  # (H, W)

    def read(self, box: Box, ratio: int = 1) -> Tensor:
        """(C, h / ratio, w / ratio) of a window; 0 outside the image, means of ratio x ratio blocks."""
        ...


class ImagePixels:
    """The `pixel_values` (C, H, W) of an image in memory."""

    def __init__(self, values: Tensor) -> None:
        self.values, self.size = values, tuple(values.shape[1:])

    def read(self, box: Box, ratio: int = 1) -> Tensor:
        """(C, h / ratio, w / ratio) of a window."""
        window = cut_window(self.values, box)
        return window if ratio == 1 else reduced(window, ratio)


@dataclass(frozen=True)
class View:
    """An image at one scale, mirrored or not, as a model sees it in windows.

    Attributes:
        model: The segmenter.
        pixels: Values of the image.
        grid: The windows, in cells of the logits.
        stride: Pixels of a cell.
        batch_size: Windows per forward pass.
        is_mirrored: Whether the model sees the windows mirrored.
        contexts: Their contexts; None for models of one scale.
    """

    model: nn.Module
    pixels: Pixels
    grid: Grid
    stride: int
    batch_size: int
    is_mirrored: bool = False
    contexts: "Contexts | None" = None

    def logits(self, places: Sequence[Place]) -> Iterator[Tensor]:
        """Yields the logits (K, *part) of windows at these places; a batch has windows of one size."""
        for _, boxes in groupby(map(self.box, places), key=lambda box: box[2:]):
            while batch := list(islice(boxes, self.batch_size)):
                logits = self.forward(batch)
                if logits.shape[-2:] != self.grid.window:  # the stride is not a whole number
                    logits = F.interpolate(
                        logits, size=self.grid.window, mode="bilinear", align_corners=False
                    )
                (top, left), (rows, columns) = self.grid.margin, self.grid.part
                yield from logits[..., top : top + rows, left : left + columns]

    def box(self, place: Place) -> Box:
        """The window in pixels; the last cell of the image may be incomplete, unless windows are padded."""
        first = [(start - n) * self.stride for start, n in zip(place, self.grid.margin, strict=True)]
        sides = [n * self.stride for n in self.grid.window]
        if not self.grid.pads:
            sides = [
                min(n, end - start) for n, end, start in zip(sides, self.pixels.size, first, strict=True)
            ]
        return Box(*first, *sides)

    def forward(self, boxes: Sequence[Box]) -> Tensor:
        """Windows of one size -> logits (B, K, h, w)."""
        crops = self.seen(torch.stack([self.pixels.read(box) for box in boxes]))
        contexts = {} if self.contexts is None else self.contexts(self, boxes)
        return self.seen(logits_of(self.model, crops, **contexts))

    def seen(self, values: Tensor) -> Tensor:
        """(..., w), mirrored if the view is."""
        return values.flip(-1) if self.is_mirrored else values


class Contexts:
    """What a model of two scales takes besides the windows: the context of each."""

    def __init__(self, ratio: int) -> None:
        self.ratio = ratio

    def __call__(self, view: View, boxes: Sequence[Box]) -> dict[str, Any]:
        """Windows of a view -> arguments of the model's forward pass."""
        values = [view.pixels.read(context_box(box, self.ratio), self.ratio) for box in boxes]
        return {"context_values": placed(view.model, view.seen(torch.stack(values)))}


class SharedContexts(Contexts):
    """Contexts on a fixed grid. Features of each are computed once, alone, for all windows that it covers.

    Windows come row by row. Kept are the features of the contexts of one row, while they fit into
    `CONTEXT_BYTES`, and those of the last context.
    """

    def __init__(self, ratio: int) -> None:
        super().__init__(ratio)
        self.features: dict[Box, tuple[Tensor, ...]] = {}
        self.last: tuple[Box, tuple[Tensor, ...]] | None = None

    def __call__(self, view: View, boxes: Sequence[Box]) -> dict[str, Any]:
        """Windows of a view -> arguments of the model's forward pass."""
        features = [self.features_of(view, shared_context_box(box, self.ratio)) for box in boxes]
        return {"context_features": tuple(map(torch.cat, zip(*features, strict=True)))}

    def features_of(self, view: View, context: Box) -> tuple[Tensor, ...]:
        """Features (1, C, h, w) of a context."""
        if context in self.features:
            return self.features[context]
        if self.last is None or self.last[0] != context:
            values = view.seen(view.pixels.read(context, self.ratio)[None])
            features = view.model.context_features(placed(view.model, values))
            self.last = context, features
            self.keep(context, features)
        return self.last[1]

    def keep(self, context: Box, features: tuple[Tensor, ...]) -> None:
        """Keeps features for the next windows, if there is room."""
        self.features = {box: kept for box, kept in self.features.items() if box.top == context.top}
        size = sum(values.nbytes for values in features)
        if size * (len(self.features) + 1) <= CONTEXT_BYTES:
            self.features[context] = features


def view_of(
    inference: Any, model: nn.Module, pixels: Pixels, window: Tensor, is_mirrored: bool = False
) -> View:
    """The windows of `inference` over an image.

    Args:
        inference: The `Inference`.
        model: The segmenter.
        pixels: Values of the image.
        window: (1, C, ., .), a window, to measure the stride of logits that the configuration does not state.
        is_mirrored: Whether the model sees the windows mirrored.
    """
    check_image_windows(inference, model)
    ratio = getattr(model.config, "context_ratio", None)
    sides, overlap = window_sides(inference, model, pixels.size)
    stride = logits_stride(model, window)
    cells, sides_in_cells = (tuple(ceil(side / stride) for side in both) for both in (pixels.size, sides))
    if inference.blend == "center" and not (ratio is None and is_covered(pixels.size, sides)):
        grid = center_grid(cells, sides_in_cells, overlap)
    else:
        grid = sliding_grid(cells, sides_in_cells, overlap, inference.blend, pads=ratio is not None)
    contexts = ratio and (SharedContexts if inference.share_context else Contexts)(ratio)
    return View(model, pixels, grid, stride, inference.batch_size, is_mirrored, contexts)


def window_sides(inference: Any, model: nn.Module, size: tuple[int, int]) -> tuple[tuple[int, ...], float]:
    """(height, width) of the windows over an image, and their overlap."""
    if inference.window is not None:
        return inference.window_sides, inference.overlap
    if getattr(model.config, "context_ratio", None) is None:
        return size, 0.0
    return (model.config.crop_size, model.config.crop_size), 0.0


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """(H, W) at a scale; a side of one pixel is never less."""
    height, width = (1 if side == 1 else round(side * scale) for side in size)
    if min(height, width) < 1:
        raise ValueError(
            f"scale {scale:g} leaves less than a pixel of an image of {size[0]}x{size[1]} (height x width). "
            f"Use scales of {1 / min(side for side in size if side > 1):.2g} or more."
        )
    return height, width


def is_covered(size: Sequence[int], window: Sequence[int]) -> bool:
    """Whether an image is at most as large as a window."""
    return all(side <= most for side, most in zip(size, window, strict=True))


def logits_of(model: nn.Module, pixels: Tensor, **context: Any) -> Tensor:
    """(B, C, ., .) -> (B, K, h, w) float32."""
    outputs = model(pixel_values=placed(model, pixels), **context)
    logits = outputs[0] if isinstance(outputs, tuple) else outputs.logits  # a tuple if return_dict is False
    return logits.float()


def placed(model: nn.Module, values: Tensor) -> Tensor:
    """Values on the device of a model, and of its type."""
    return values.to(model.device, model.dtype)


def logits_stride(model: nn.Module, window: Tensor) -> int:
    """Returns the stride of the logits in pixels, from model or configuration or by a forward pass on `window`.

    Returns 1 if the stride is not a whole number.
    """
    known = getattr(model, "logits_stride", None) or getattr(model.config, "logits_stride", None)
    if known is not None:
        return known
    sides, cells = window.shape[-2:], logits_of(model, window).shape[-2:]
    stride = ceil(sides[0] / cells[0])
    return stride if all(ceil(side / stride) == n for side, n in zip(sides, cells, strict=True)) else 1


def check_image_windows(inference: Any, model: nn.Module) -> None:
    """Raises ValueError if windows are not those of images, or are to share contexts, but the model cannot do that."""
    if isinstance(inference.window, tuple | list) and len(inference.window) > 2:
        raise ValueError(
            f"the window {'x'.join(map(str, inference.window))} has three sides, but images have two. Give a number of "
            "pixels, or HEIGHTxWIDTH."
        )
    if inference.share_context and not getattr(model, "shares_context", False):
        raise ValueError(
            f"share_context is on, but {type(model).__name__} has no context features that windows can share; CASWiT "
            "has. Leave it off."
        )
