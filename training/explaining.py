"""The pictures that `contextseg-predict` draws of what a prediction rests on: attention and Grad-CAM.

Each is a function of the upright photograph, its `pixel_values` (1, C, ., .) and its predicted mask (H, W).
What a model cannot give is said when the function is made, before anything is segmented.
"""

import difflib
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from ..modeling.explanations import find_block, global_attention_maps
from ..modeling.grad_cam import as_shares, class_activation
from ..processing.heat_pictures import heat_picture
from ..processing.inference import Inference
from ..processing.mask_models import gives_scores
from ..processing.tiling import window_starts
from .option_texts import parse_position

Explain = Callable[[Image.Image, Tensor, Tensor], Image.Image]
SHOWN_NAMES = 8


def chosen_explanations(
    model: PreTrainedModel, inference: Inference, explain: str | None, evidence: str | None
) -> dict[str, Explain]:
    """Returns subfolder -> function for the options --explain and --grad-cam that are given.

    Raises ValueError if the model cannot give one of them.
    """
    if gives_scores(model) and not (explain is evidence is None):
        raise ValueError(
            f"--explain and --grad-cam need logits that feature maps explain, but a '{model.config.model_type}' classifies masks. "
            "Leave them out."
        )
    chosen = {}
    window = None if inference.window is None else inference.window_sides
    if explain is not None:
        chosen["attention"] = attention_explanation(model, explain)
    if evidence is not None:
        chosen["grad-cam"] = grad_cam_explanation(model, evidence, window)
    return chosen


def attention_explanation(model: PreTrainedModel, text: str) -> Explain:
    """Returns a function that draws which pixels the pixel at `text`, X,Y, attends to.

    Raises ValueError if the text is not a position, or the model has no global attention.
    """
    position = parse_position(text)
    try:
        find_block(model, stage=None, block=None)
    except ValueError as error:
        raise ValueError(
            f"--explain needs the global attention of GLAM: {error} For this model, use --grad-cam {text}."
        ) from error

    def draw(image: Image.Image, pixel_values: Tensor, _mask: Tensor) -> Image.Image:
        check_inside(position, image, "--explain")
        size = pixel_values.shape[:1:-1]  # (width, height) after the processor's resizing
        scaled = tuple(at * new // old for at, new, old in zip(position, size, image.size, strict=True))
        heat = resized(global_attention_maps(model, pixel_values, scaled)[0], image)
        return heat_picture(
            image, heat / heat.mean(), "attention of the cross, 1 is the mean", position=position
        )

    return draw


def grad_cam_explanation(model: PreTrainedModel, text: str, window: Sequence[int] | None = None) -> Explain:
    """Returns a function that draws what speaks for a class where it is predicted, or at a pixel X,Y.

    Where the class is not predicted at all, it draws what speaks for it anywhere.

    Raises ValueError if the text is neither a class name nor a position.
    """
    names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    position = None if text in names else position_or_class(text, names)

    def draw(image: Image.Image, pixel_values: Tensor, mask: Tensor) -> Image.Image:
        if position is None:
            label, region = names.index(text), mask == names.index(text)
            where = "" if region.any() else " (not predicted)"
            region = region if region.any() else torch.ones_like(region)
        else:
            check_inside(position, image, "--grad-cam")
            region = torch.zeros_like(mask, dtype=torch.bool)
            region[position[1], position[0]] = True
            label, where = int(mask[region]), " at the cross"
            if label >= len(names):
                raise ValueError(f"--grad-cam {text} is a pixel without data. Choose another one.")
        heat = resized(windowed_grad_cam(model, pixel_values, label, region, window), image)
        return heat_picture(image, heat, f"{names[label]}{where}, Grad-CAM", position=position, low=0.0)

    return draw


def windowed_grad_cam(
    model: PreTrainedModel, pixel_values: Tensor, label: int, region: Tensor, window: Sequence[int] | None
) -> Tensor:
    """(1, C, h, w), region (H, W) -> (h, w): Grad-CAM within each window that has pixels of the region.

    Windows touch, and those at the end overlap, where the larger value counts. None is the whole image.
    """
    size = pixel_values.shape[-2:]
    sides = [min(given, length) for given, length in zip(window or size, size, strict=True)]
    share = F.adaptive_avg_pool2d(region[None].float(), size)[0]
    total = torch.zeros(1, *size)
    for top, left in product(*(window_starts(n, w, step=w) for n, w in zip(size, sides, strict=True))):
        place = (slice(top, top + sides[0]), slice(left, left + sides[1]))
        if share[place].any():
            found = class_activation(model, pixel_values[..., *place], label, share[place], level=-1)
            total[:, *place] = torch.maximum(total[:, *place], found.cpu())
    return as_shares(total)[0]


def position_or_class(text: str, names: list[str]) -> tuple[int, int]:
    """Parses a position; the error for anything else names the classes."""
    try:
        return parse_position(text, "--grad-cam")
    except ValueError as error:
        close = difflib.get_close_matches(text, names, n=1)
        known = ", ".join(names[:SHOWN_NAMES]) + (", ..." if len(names) > SHOWN_NAMES else "")
        hint = f"Did you mean '{close[0]}'?" if close else f"The classes are {known}."
        raise ValueError(
            f"--grad-cam {text} is neither a class of the model nor a position X,Y in pixels. {hint}"
        ) from error


def check_inside(position: tuple[int, int], image: Image.Image, option: str) -> None:
    x, y = position
    if x >= image.width or y >= image.height:
        raise ValueError(
            f"{option} {x},{y} is outside the image of {image.width}x{image.height}. "
            f"Give X below {image.width} and Y below {image.height}."
        )


def resized(heat: Tensor, image: Image.Image) -> np.ndarray:
    """(h, w) -> (H, W), the size of the image."""
    return np.asarray(Image.fromarray(heat.cpu().numpy()).resize(image.size, Image.Resampling.BILINEAR))
