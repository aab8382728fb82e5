"""Segments images of any size with transformers alone; part of what is published beside a model (`handler.py`, `app.py`).

Images of more than two megapixels are segmented in windows, so that memory stays bounded.

Legend: C channels, H, W pixels of the upright image, K classes, h, w cells of the logits.
"""

import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

WHOLE_PIXELS = 1 << 21  # images of at most this many pixels are segmented as a whole
WINDOW, MARGIN = 1024, 128  # pixels of a window that count, and that it sees on each side besides
# What Pillow raises for a damaged image.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
UNCHANGED = {"do_resize": False, "do_rescale": False, "do_normalize": False}


@dataclass(frozen=True)
class Segmented:
    """The classes of an image.

    Attributes:
        mask: Class ids (H, W), uint8, or uint16 for more than 256 classes.
        scores: Id of each class that is present -> the mean of its probability over its pixels.
    """

    mask: np.ndarray
    scores: dict[int, float]


class ImageSegmenter:
    """A published segmenter.

    Args:
        source: Folder of the model, or its name on the Hub.
    """

    def __init__(self, source: str | Path) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        loading = {"pretrained_model_name_or_path": str(source), "trust_remote_code": True}
        self.processor = AutoImageProcessor.from_pretrained(**loading)
        self.model = AutoModelForSemanticSegmentation.from_pretrained(**loading).eval().to(device)
        self.labels = [self.model.config.id2label[index] for index in range(self.model.config.num_labels)]
        code = sys.modules[type(self.model).__module__]
        self.attention_maps = getattr(code, "global_attention_maps", None)  # of models with global tokens

    @torch.inference_mode()
    def __call__(self, image: Image.Image | bytes) -> Segmented:
        """Segments a PIL image or the content of an image file. Raises ValueError if it cannot be read."""
        prepared, size = self.read(image)
        pixels = self.inputs(prepared)
        windows = [whole(size)] if self.is_seen_whole(pixels) else windows_over(*pixels.shape[-2:])
        mask = np.empty(windows[-1].end, np.uint8 if len(self.labels) <= 256 else np.uint16)
        totals, counts = np.zeros(len(self.labels)), np.zeros(len(self.labels), dtype=np.int64)
        for window in windows:
            outputs = self.model(pixel_values=pixels[..., *window.seen])
            ids = self.processor.post_process_semantic_segmentation(outputs, target_sizes=[window.size])[0]
            mask[window.place] = ids[window.counted].cpu().numpy()
            for label, total, count in class_sums(outputs.logits[0], ids, window.counted):
                totals[label] += total
                counts[label] += count
        if mask.shape != size:
            mask = np.asarray(Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST))
        present = np.unique(mask).tolist()
        return Segmented(mask, {label: float(totals[label] / counts[label]) for label in present})

    def read(self, image: Image.Image | bytes) -> tuple[Any, tuple[int, int]]:
        """The upright image as its processor takes it, and its (H, W). Raises ValueError if it cannot be read."""
        if isinstance(image, Image.Image):
            image = ImageOps.exif_transpose(image)
        if hasattr(self.processor, "decode_mask"):  # contextseg's: it reads all kinds of files itself
            pixels = self.processor(image, **UNCHANGED, return_tensors="np")["pixel_values"][0]
            return (pixels if pixels.dtype == np.uint8 else image), pixels.shape[-2:]
        upright = as_rgb(image)
        return upright, upright.size[::-1]

    def inputs(self, image: Any) -> Tensor:
        """-> (1, C, ., .), as the model takes it."""
        values = self.processor(image, return_tensors="pt")["pixel_values"]
        return values.to(self.model.device, self.model.dtype)

    def is_seen_whole(self, pixels: Tensor) -> bool:
        """Whether (1, C, ., .) takes one forward pass; models of two scales cut windows from the image themselves."""
        height, width = pixels.shape[-2:]
        return height * width <= WHOLE_PIXELS or hasattr(self.model.config, "context_ratio")


class Window(NamedTuple):
    """A part of an image, each as rows and columns.

    Attributes:
        seen: What the model sees of its input.
        size: (height, width) of its mask.
        counted: What counts of the mask.
        place: Where that lies in the mask of the image.
    """

    seen: tuple[slice, slice]
    size: tuple[int, int]
    counted: tuple[slice, slice]
    place: tuple[slice, slice]

    @property
    def end(self) -> tuple[int, int]:
        """The row and the column after the last."""
        return self.place[0].stop, self.place[1].stop


def whole(size: tuple[int, int]) -> Window:
    """One window that sees everything, with a mask of (H, W) = `size`."""
    everything = slice(0, size[0]), slice(0, size[1])
    return Window((slice(None), slice(None)), size, everything, everything)


def windows_over(height: int, width: int) -> list[Window]:
    """Windows whose parts that count cover an image; the last one ends where the image ends."""
    windows = []
    for rows, columns in product(spans(height), spans(width)):
        seen, counted, place = zip(rows, columns, strict=True)
        size = seen[0].stop - seen[0].start, seen[1].stop - seen[1].start
        windows.append(Window(seen, size, counted, place))
    return windows


def spans(length: int) -> list[tuple[slice, slice, slice]]:
    """What each window sees along one axis, which part of that counts, and where that part lies."""
    side, found = min(length, WINDOW + 2 * MARGIN), []
    for start in range(0, length, WINDOW):
        stop = min(start + WINDOW, length)
        first = min(max(0, start - MARGIN), length - side)
        found.append((slice(first, first + side), slice(start - first, stop - first), slice(start, stop)))
    return found


def class_sums(logits: Tensor, ids: Tensor, counted: tuple[slice, slice]) -> Iterator[tuple[int, float, int]]:
    """Yields each class of a window with the sum of its probabilities over its pixels that count, and their number.

    Args:
        logits: (K, h, w).
        ids: Class ids (H, W) of the window.
        counted: The rows and columns that count.
    """
    probabilities, part = logits.float().softmax(0), ids[counted]
    for label in part.unique().tolist():
        resized = F.interpolate(probabilities[None, label : label + 1], size=ids.shape, mode="bilinear")
        values = resized[0, 0][counted][part == label]
        yield label, values.sum(dtype=torch.float64).item(), len(values)


def as_rgb(image: Image.Image | bytes) -> Image.Image:
    """An upright RGB image; 16-bit values are divided by 257. Raises ValueError if it cannot be read."""
    try:
        opened = Image.open(io.BytesIO(image)) if isinstance(image, bytes) else image
        opened.load()
    except UNREADABLE as error:
        raise ValueError(f"the image cannot be read: {error}. Send a PNG or JPEG file.") from error
    upright = ImageOps.exif_transpose(opened)
    if upright.mode.startswith("I"):  # Pillow would clip these
        upright = Image.fromarray((np.asarray(upright).clip(0, 65535) / 257).round().astype(np.uint8))
    return (upright.convert("RGBA") if upright.mode in ("P", "PA") else upright).convert("RGB")
