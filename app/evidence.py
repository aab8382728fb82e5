"""Where a model looks: global attention of a pixel, and Grad-CAM for the class of a pixel, by stage.

Legend: C channels, h, w pixels that the model gets.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..modeling.explanations import find_block, find_stages, global_attention_maps
from ..modeling.grad_cam import as_shares, class_activation, frozen, reached, run, score_of
from ..modeling.input_channels import channels_of
from ..processing.heat_pictures import heat_picture
from ..processing.mask_models import gives_scores
from ..processing.plain_text import one_line
from .segmenters import Segmented, Segmenter

PROBE_SIDE = 64  # of the image with which stages are counted
SMALLEST, LARGEST = 480, 960  # the longer side of a picture
NAME_LENGTH = 40


@dataclass(frozen=True)
class Crop:
    """What of an image the model looks at around a pixel.

    Args:
        pixels: The part of `pixel_values`, (1, C, h, w).
        at: (x, y) of the pixel in this part.
        photo: The same part of the image.
        photo_at: (x, y) of the pixel in `photo`.
    """

    pixels: Tensor
    at: tuple[int, int]
    photo: Image.Image
    photo_at: tuple[int, int]


def views_of(segmenter: Segmenter) -> dict[str, list[int]]:
    """The stages, counted from 0, fine to coarse, that each kind of view can show of a model."""
    found = {
        ATTENTION: attention_stages(segmenter.model),
        GRAD_CAM: list(range(num_levels(segmenter))),
    }
    return {kind: stages for kind, stages in found.items() if stages}


def attention_stages(model: nn.Module) -> list[int]:
    """The stages with global attention; none for a model without global tokens."""
    try:
        stages = range(len(find_stages(model)))
    except ValueError:
        return []
    return [stage for stage in stages if has_attention(model, stage)]


def has_attention(model: nn.Module, stage: int) -> bool:
    """Whether a block of the stage has global attention."""
    try:
        find_block(model, stage, block=None)
    except ValueError:
        return False
    return True


def num_levels(segmenter: Segmenter) -> int:
    """The number of feature maps that Grad-CAM can explain; 0 for a model that does not return any."""
    model = segmenter.model
    if gives_scores(model):  # they come from masks of queries, which no feature map explains
        return 0
    black = np.zeros((PROBE_SIDE, PROBE_SIDE, channels_of(model.config)), dtype=np.uint8)
    probe = segmenter.processor(black, return_tensors="pt")["pixel_values"].to(model.device, model.dtype)
    try:
        with torch.inference_mode(mode=False), torch.enable_grad(), frozen(model):
            logits, passes = run(model, probe)
            return len(reached(passes, score_of(logits, 0, None)))
    except (ValueError, RuntimeError, AttributeError):  # of a model that is built in another way
        return 0


def evidence_picture(
    segmenter: Segmenter, segmented: Segmented, view: tuple[str, int], at: tuple[int, int]
) -> Image.Image:
    """Draws where a model looks from a pixel.

    An image that was segmented in windows is shown in a window around the pixel.

    Args:
        segmenter: The model.
        segmented: The image.
        view: A kind and a stage of `views_of` this model.
        at: (x, y) of the pixel.

    Raises:
        ValueError: If the pixel is outside the image.
    """
    photo = segmented.photo
    if not (0 <= at[0] < photo.width and 0 <= at[1] < photo.height):
        raise ValueError(
            f"the pixel {at[0]}, {at[1]} is outside the image of {photo.width} x {photo.height}."
        )
    kind, stage = view
    crop = crop_around(segmenter, segmented, at)
    label = int(segmented.mask[at[1], at[0]])
    heat, caption, low = DRAWN[kind](segmenter, crop, stage, label)
    picture, position = enlarged(crop)
    values = Image.fromarray(heat.float().cpu().numpy()).resize(picture.size, Image.Resampling.BILINEAR)
    return heat_picture(picture, np.asarray(values), caption, position=position, low=low)


def crop_around(segmenter: Segmenter, segmented: Segmented, at: tuple[int, int]) -> Crop:
    """The window around a pixel in which it is explained: the whole image, if that was segmented as a whole."""
    pixels, photo = segmented.pixel_values, segmented.photo
    size, whole = pixels.shape[-2:], (photo.height, photo.width)
    place = [position * new // old for position, new, old in zip(at[::-1], size, whole, strict=True)]
    window = size if segmented.inference.window is None else segmented.inference.window_sides
    sides = [min(side, length) for side, length in zip(window, size, strict=True)]
    top, left = (
        max(0, min(position - side // 2, length - side))
        for position, side, length in zip(place, sides, size, strict=True)
    )
    edges = [left, top, left + sides[1], top + sides[0]]
    on_photo = [
        round(edge * old / new)
        for edge, old, new in zip(edges, whole[::-1] * 2, [*size[::-1]] * 2, strict=True)
    ]
    return Crop(
        pixels[..., top : edges[3], left : edges[2]].to(segmenter.model.device, segmenter.model.dtype),
        (place[1] - left, place[0] - top),
        photo.crop(on_photo),
        (at[0] - on_photo[0], at[1] - on_photo[1]),
    )


def enlarged(crop: Crop) -> tuple[Image.Image, tuple[int, int]]:
    """The photograph at a size that is good to look at, and the pixel in it."""
    longest = max(crop.photo.size)
    factor = min(LARGEST / longest, max(1, -(-SMALLEST // longest)))
    size = tuple(max(1, round(side * factor)) for side in crop.photo.size)
    method = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.BOX
    position = tuple(int((at + 0.5) * factor) for at in crop.photo_at)
    return crop.photo.resize(size, method), position


def attention_heat(segmenter: Segmenter, crop: Crop, stage: int, _label: int) -> tuple[Tensor, str, None]:
    """(h, w) attention of the pixel in multiples of the mean, what it is, and no fixed value of the first color."""
    heat = global_attention_maps(segmenter.model, crop.pixels, crop.at, stage=stage)[0]
    return heat / heat.mean(), "attention of the cross, 1 is the mean", None


def grad_cam_heat(segmenter: Segmenter, crop: Crop, level: int, label: int) -> tuple[Tensor, str, float]:
    """(h, w) Grad-CAM for the class of the pixel, what it is, and the value of the first color."""
    region = torch.zeros(crop.pixels.shape[-2:], dtype=torch.bool)
    region[crop.at[1], crop.at[0]] = True
    heat = as_shares(class_activation(segmenter.model, crop.pixels, label, region, level))[0]
    return heat, f"{one_line(segmenter.names[label], NAME_LENGTH)} at the cross, Grad-CAM", 0.0


ATTENTION, GRAD_CAM = "Global attention", "Grad-CAM"
Heat = Callable[[Segmenter, Crop, int, int], tuple[Tensor, str, float | None]]
DRAWN: dict[str, Heat] = {ATTENTION: attention_heat, GRAD_CAM: grad_cam_heat}
