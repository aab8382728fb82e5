"""Segments image files: masks, overlays and maps of the class probabilities."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel

from .image_reading import image_size, read_channels, read_image
from .image_windows import check_image_windows
from .inference import Inference
from .orientation import swaps_sides, turn_back
from .overlays import mask_overlay, save_png
from .palettes import class_colors, colorize
from .prediction_files import FilePredictor, Job
from .prediction_maps import IMAGE_MAPS, ImageMap, ProbabilityFile, mask_beside_maps
from .processor_inputs import channels_of, decoded_for

Explain = Callable[[Image.Image, Tensor, Tensor], Image.Image]


@dataclass
class Loaded:
    """An image that is ready for the model.

    Args:
        inputs: `pixel_values` (1, C, ., .) at each scale.
        size: (H, W) of the upright image.
        orientation: EXIF orientation of the file, 1 to 8.
        image: The upright image, if it is drawn.
    """

    inputs: list[Tensor]
    size: tuple[int, int]
    orientation: int
    image: Image.Image | np.ndarray | None


@dataclass
class Predicted:
    """A segmented image that is not yet written: the upright mask (H, W), and what goes with it, as in `Loaded`."""

    mask: Tensor
    orientation: int
    image: Image.Image | np.ndarray | None
    maps: Sequence[ImageMap | ProbabilityFile]
    explained: Mapping[str, Image.Image]


class Predictor(FilePredictor):
    """Segments image files with one model.

    Args:
        model: A segmenter in evaluation mode.
        processor: Its image processor.
        inference: How the model is applied: windows, scales and mirroring.
        maps: Maps to write besides the mask, names from `prediction_maps.MAPS`. Default: none.
        overlay: Whether to write the image overlaid with class colors. Default: False.
        explanations: Pictures to write of what the prediction rests on: subfolder -> function of the upright
            image, its `pixel_values` (1, C, ., .) and its mask (H, W). Default: none.
    """

    done = "segmented"

    def __init__(
        self,
        model: PreTrainedModel,
        processor: BaseImageProcessor,
        inference: Inference,
        *,
        maps: Sequence[str] = (),
        overlay: bool = False,
        explanations: Mapping[str, Explain] | None = None,
    ) -> None:
        check_image_windows(inference, model)
        self.model, self.processor, self.inference = model, processor, inference
        self.maps, self.overlay, self.explanations = maps, overlay, explanations or {}
        self.palette = class_colors(getattr(processor, "palette", None), model.config.num_labels)
        self.names = [model.config.id2label[index] for index in range(model.config.num_labels)]

    def load(self, job: Job) -> Loaded:
        """Decodes an image file once. Raises ImageReadError if it cannot be read."""
        image, orientation = decoded_for(self.processor, job.source)
        inputs = self.inference.inputs(self.processor, image)
        is_drawn = self.overlay or self.explanations
        return Loaded(inputs, image_size(image), orientation, image if is_drawn else None)

    def predict(self, job: Job, loaded: Loaded) -> Predicted:
        """Segments an image, and draws the explanations.

        Raises ValueError if the disk has no room for the probabilities, or an explanation is not possible.
        """
        what = self.model, loaded.inputs, loaded.size
        maps: list[ImageMap | ProbabilityFile] = []
        if self.maps:
            stored_size = loaded.size[::-1] if swaps_sides(loaded.orientation) else loaded.size
            maps = [self.new_map(name, job, stored_size, loaded.orientation) for name in self.maps]
            mask = mask_beside_maps(self.inference.probabilities(*what), loaded.size, maps).cpu()
        else:
            mask = self.inference.mask(*what).cpu()
        return Predicted(mask, loaded.orientation, loaded.image, maps, self.explained(loaded, mask))

    def explained(self, loaded: Loaded, mask: Tensor) -> dict[str, Image.Image]:
        """Returns the explanations of an image by subfolder."""
        if not self.explanations:
            return {}
        pixel_values = self.processor(loaded.image, return_tensors="pt")["pixel_values"]
        pixel_values = pixel_values.to(self.model.device, self.model.dtype)
        return {
            kind: draw(self.rgb(loaded.image), pixel_values, mask) for kind, draw in self.explanations.items()
        }

    def write(self, job: Job, predicted: Predicted) -> None:
        """Writes the mask and the other requested results."""
        for one in predicted.maps:
            one.save()
        mask = predicted.mask
        save_png(palette_image(turn_back(mask, predicted.orientation), self.palette), job.target())
        if self.overlay:
            overlay = mask_overlay(self.rgb(predicted.image), mask.numpy(), self.palette, names=self.names)
            save_png(overlay, job.target("overlays"))
        for kind, picture in predicted.explained.items():
            save_png(picture, job.target(kind))

    def targets(self, job: Job) -> list[Path]:
        """The mask and the other requested results."""
        kinds = ["", *["overlays"] * self.overlay, *self.explanations, *self.maps]
        return [job.array() if kind == "probabilities" else job.target(kind) for kind in kinds]

    def new_map(
        self, name: str, job: Job, stored_size: tuple[int, int], orientation: int
    ) -> ImageMap | ProbabilityFile:
        """Opens the map `name` of a job.

        Args:
            name: One of `prediction_maps.MAPS`.
            job: The image file and the paths of its results.
            stored_size: (H, W) of the image as stored in the file, before its EXIF rotation.
            orientation: EXIF orientation of the image file, 1 to 8.
        """
        target = job.target(name)
        if name in IMAGE_MAPS:
            return ImageMap(target, IMAGE_MAPS[name], stored_size, orientation)
        return ProbabilityFile(job.array(), self.model.config.num_labels, stored_size, orientation)

    def rgb(self, image: Image.Image | np.ndarray) -> Image.Image:
        """The image as RGB, for pictures: of images with other channels, the first three, or the first."""
        reading = {"value_range": getattr(self.processor, "value_range", None)}
        channels = channels_of(self.processor)
        if channels is None:
            return read_image(image, **reading)
        pixels = read_channels(image, channels, **reading).round().astype(np.uint8)
        return Image.fromarray(pixels[..., [0, 1, 2] if channels > 2 else [0, 0, 0]])


def palette_image(mask: Tensor, palette: list[list[int]]) -> Image.Image:
    """(H, W) class ids -> a palette image, or a 16-bit gray image for more than 256 classes."""
    if len(palette) > 256:
        return Image.fromarray(mask.numpy().astype(np.uint16))
    return colorize(mask, palette)
