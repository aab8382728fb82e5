"""Segments image files: masks, overlays and maps of the class probabilities."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel

from .image_reading import image_size, read_channels, read_image
from .inference import Inference, channels_of, decoded_for
from .orientation import swaps_sides, turn_back
from .overlays import mask_overlay, save_png
from .palettes import class_colors, colorize
from .prediction_files import FilePredictor, Job
from .prediction_maps import IMAGE_MAPS, ImageMap, ProbabilityFile, mask_beside_maps

Explain = Callable[[Image.Image, Tensor, Tensor], Image.Image]


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
        self.model, self.processor, self.inference = model, processor, inference
        self.maps, self.overlay, self.explanations = maps, overlay, explanations or {}
        self.palette = class_colors(getattr(processor, "palette", None), model.config.num_labels)
        self.names = [model.config.id2label[index] for index in range(model.config.num_labels)]

    def run(self, job: Job) -> None:
        """Segments one image file and writes its mask and the other requested results.

        Args:
            job: The image file and the paths of its results.

        Raises:
            ImageReadError: The image cannot be read.
            ValueError: The disk has no room for the probabilities, or an explanation is not possible.
        """
        image, orientation = decoded_for(self.processor, job.source)
        mask = self.predict(job, image, orientation).cpu()
        save_png(palette_image(turn_back(mask, orientation), self.palette), job.target())
        if self.overlay:
            overlay = mask_overlay(self.rgb(image), mask.numpy(), self.palette, names=self.names)
            save_png(overlay, job.target("overlays"))
        if self.explanations:
            pixel_values = self.processor(image, return_tensors="pt")["pixel_values"]
            pixel_values = pixel_values.to(self.model.device, self.model.dtype)
            for kind, draw in self.explanations.items():
                save_png(draw(self.rgb(image), pixel_values, mask), job.target(kind))

    def predict(self, job: Job, image: Image.Image | np.ndarray, orientation: int) -> Tensor:
        """Returns the mask (H, W) of an upright image; also writes the maps requested in `maps`."""
        size = image_size(image)
        what = self.model, self.inference.inputs(self.processor, image), size
        if not self.maps:
            return self.inference.mask(*what)
        stored_size = size[::-1] if swaps_sides(orientation) else size
        maps = [self.new_map(name, job, stored_size, orientation) for name in self.maps]
        return mask_beside_maps(self.inference.probabilities(*what), size, maps)

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
