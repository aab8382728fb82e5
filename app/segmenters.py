"""The models of the page: opened as `contextseg-predict` opens them, and applied with its results.

Legend: H, W pixels of an image, h, w pixels that the page shows, K classes, R rows of a band.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel

from ..processing.image_reading import image_size
from ..processing.inference import Inference, logit_bands
from ..processing.logits_to_masks import argmax_of_bands, mean_probabilities
from ..processing.mask_models import gives_scores
from ..processing.orientation import turn_back
from ..processing.overlays import mask_overlay, save_png
from ..processing.prediction import Predictor, palette_image
from ..processing.prediction_maps import IMAGE_MAPS
from ..processing.processor_inputs import decoded_for
from ..processing.volumes.volume_inference import takes_volumes
from ..training.models import config_of_model, open_model, task_of_config
from ..training.stored_reading import crop_of_run, set_reading
from .options import AppArguments

WHOLE_PIXELS = 1 << 21  # larger images are segmented in windows unless the options say how
WINDOW = (1024, 1024)  # of models that do not know their training crop
SHOWN_SIDE = 1280  # the longer side of what the page shows
Tell = Callable[[float], Any]


@dataclass
class Segmented:
    """An image as one model sees it.

    Args:
        photo: The upright image, RGB.
        mask: Class ids (H, W), upright, on the CPU.
        orientation: EXIF orientation of the file, 1 to 8.
        inference: How the model was applied.
        maps: "confidence" and "entropy", uint8 (h, w), 255 is 1.
        pixel_values: The image as the model gets it at its own scale, (1, C, ., .).
    """

    photo: Image.Image
    mask: Tensor
    orientation: int
    inference: Inference
    maps: dict[str, np.ndarray]
    pixel_values: Tensor = field(repr=False)


class Segmenter:
    """One model of the page.

    Args:
        name: What the model is called on the page.
        model: A segmenter of images in evaluation mode.
        processor: Its image processor.
        inference: How it is applied.
        window: (height, width) of the windows of large images, if `inference` has none.
    """

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        processor: BaseImageProcessor,
        inference: Inference,
        window: tuple[int, int] = WINDOW,
    ) -> None:
        self.name, self.model, self.processor, self.window = name, model, processor, window
        self.predictor = Predictor(model, processor, inference)
        self.inference, self.palette, self.names = inference, self.predictor.palette, self.predictor.names

    @torch.no_grad()
    def segment(self, source: Path, tell: Tell = lambda _: None) -> Segmented:
        """Segments an image file.

        Args:
            source: The file.
            tell: Called with the share of the rows that are done, from 0 to 1; what it raises ends the work.

        Raises:
            ImageReadError: If the file cannot be read.
        """
        image, orientation = decoded_for(self.processor, source)
        size = image_size(image)
        inference = self.inference_for(size)
        inputs = inference.inputs(self.processor, image)
        maps = {name: ShownMap(function, size) for name, function in IMAGE_MAPS.items()}
        done = 0

        def scores() -> Iterator[Tensor]:
            nonlocal done
            for logits in logit_bands(inference, self.model, inputs, size):
                probabilities = mean_probabilities(logits, gives_scores(self.model))
                for one in maps.values():
                    one.add(probabilities)
                done += probabilities.shape[1]
                tell(done / size[0])
                yield logits[0] if len(logits) == 1 else probabilities  # the mask of contextseg-predict

        with self.model.register_forward_pre_hook(lambda *_: tell(done / size[0])):  # at each window
            mask = argmax_of_bands(scores(), size, self.model.device).cpu()
        has_own_scale = 1.0 in inference.scales
        pixel_values = (
            inputs[inference.scales.index(1.0)]
            if has_own_scale
            else self.processor(image, return_tensors="pt")["pixel_values"]
        )
        shown = {name: one.shown for name, one in maps.items()}
        return Segmented(self.predictor.rgb(image), mask, orientation, inference, shown, pixel_values)

    def inference_for(self, size: tuple[int, int]) -> Inference:
        """How an image of (H, W) is segmented: large ones in windows."""
        if self.inference.window is not None or size[0] * size[1] <= WHOLE_PIXELS:
            return self.inference
        return replace(self.inference, window=self.window)

    def write(self, segmented: Segmented, folder: Path, stem: str) -> list[Path]:
        """Writes the mask and the overlay of `contextseg-predict`; returns their paths."""
        mask = turn_back(segmented.mask, segmented.orientation)
        overlay = mask_overlay(segmented.photo, segmented.mask.numpy(), self.palette, names=self.names)
        pictures = {"mask": palette_image(mask, self.palette), "overlay": overlay}
        paths = [folder / f"{stem}-{kind}.png" for kind in pictures]
        for path, picture in zip(paths, pictures.values(), strict=True):
            save_png(picture, path)
        return paths


class ShownMap:
    """A map of values from 0 to 1 at the pixels that the page shows.

    Args:
        function: Computes the rows of the map (R, W) from class probabilities (K, R, W).
        size: (H, W) of the image.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], size: tuple[int, int]) -> None:
        self.function, self.row = function, 0
        self.rows, self.columns = shown_pixels(size)
        self.shown = np.zeros((len(self.rows), len(self.columns)), dtype=np.uint8)

    def add(self, probabilities: Tensor) -> None:
        """Adds the next rows (K, R, W)."""
        values = (self.function(probabilities).clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
        chosen = (self.rows >= self.row) & (self.rows < self.row + len(values))
        self.shown[chosen] = values[self.rows[chosen] - self.row][:, self.columns]
        self.row += len(values)


def shown_pixels(size: tuple[int, int], longest: int = SHOWN_SIDE) -> tuple[np.ndarray, np.ndarray]:
    """The rows and columns of an image (H, W) that the page shows: all of them, or evenly chosen ones."""
    share = min(1.0, longest / max(size))
    counts = [max(1, round(side * share)) for side in size]
    rows, columns = (
        ((np.arange(count) + 0.5) * side / count).astype(np.int64)
        for count, side in zip(counts, size, strict=True)
    )
    return rows, columns


def open_segmenters(arguments: AppArguments, device: torch.device) -> list[Segmenter]:
    """Opens the models of the command. Raises ValueError if one is not a segmenter of images."""
    segmenters = []
    for name, title in zip(arguments.models, titles(arguments.models), strict=True):
        config = config_of_model(name)
        task = "segmentation of volumes" if takes_volumes(config) else task_of_config(config)
        if task != "segmentation":
            raise ValueError(
                f"{name} is a model for {task.replace('_', ' ')}, and the page shows segmenters of images. Use contextseg-predict."
            )
        model, processor, _ = open_model(name)
        set_reading(arguments, model, processor)
        window = crop_of_run(name) or WINDOW
        segmenters.append(Segmenter(title, model.to(device), processor, arguments.inference(), window))
    return segmenters


def titles(names: Sequence[str]) -> list[str]:
    """What each model is called: its name, numbered if others have the same."""
    return [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names, 1)]
