"""Grad-CAM for semantic segmentation: which parts of an image speak for a class in a region.

Selvaraju et al., "Grad-CAM", ICCV 2017; for the sum of a class's logits over a set of pixels: Vinogradova et
al., "Towards Interpretable Semantic Segmentation via Gradient-weighted Class Activation Mapping", AAAI 2020.
The weight of each channel of a feature map is the mean of the gradient of that sum over the positions; the map
is the weighted sum of the channels where it is positive.

Legend: B batch, C channels, K labels, S... axes of the image or volume, g... those of a feature map.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .upsampling import upsample
from .windows import cropped

MEAN_POOL = {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


def grad_cam(
    model: nn.Module, pixel_values: Tensor, label: int, region: Tensor | None = None, level: int = -1
) -> Tensor:
    """(B, C, S...) -> (B, S...): how much each part of the image or volume speaks for a class in a region.

    Works with our segmenters and those of transformers. Weights, gradients and hooks of the model are left
    unchanged; a backbone runs without keeping its activations.

    Args:
        model: A segmenter in evaluation mode.
        pixel_values: Preprocessed images (B, C, H, W) or volumes (B, C, D, H, W).
        label: Class id.
        region: Pixels (S'...) or (B, S'...) of any size that covers the image, True or 1 for those whose
            logits are explained, such as a mask or a single pixel. Default: the pixels predicted as the
            class, or all pixels if there are none.
        level: Index of the encoder's feature map, fine to coarse. Default: the coarsest.

    Returns:
        Maps (B, S...), float32 from 0 to 1, the maximum of each map; all 0 where nothing speaks for the class.

    Raises:
        ValueError: If the model is in training mode or does not return feature maps, the class or the level
            does not exist, `pixel_values` are not what the model takes, or `region` has another number of them.
    """
    return as_shares(class_activation(model, pixel_values, label, region, level))


def as_shares(maps: Tensor) -> Tensor:
    """(B, S...) -> (B, S...): each divided by its maximum, or all 0."""
    axes = tuple(range(1, maps.ndim))
    return maps / maps.amax(dim=axes, keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)


def class_activation(
    model: nn.Module, pixel_values: Tensor, label: int, region: Tensor | None, level: int
) -> Tensor:
    """(B, C, S...) -> (B, S...), float32: `grad_cam` before the division by the maximum."""
    axes = getattr(model.config, "num_axes", 2)
    if pixel_values.ndim != 2 + axes:
        expected = {2: "images (B, C, H, W)", 3: "volumes (B, C, D, H, W)"}[axes]
        raise ValueError(
            f"pixel_values has shape {tuple(pixel_values.shape)}, and the model takes {expected}."
        )
    if model.training:
        raise ValueError("the model is in training mode, which changes its outputs. Call model.eval() first.")
    with torch.inference_mode(mode=False), torch.enable_grad(), frozen(model):
        logits, passes = run(model, pixel_values.detach().clone())
        levels = reached(passes, score_of(logits, label, region))
    if not -len(levels) <= level < len(levels):
        raise ValueError(f"feature map {level} does not exist. Choose 0 to {len(levels) - 1}.")
    feature_map, gradient = (spatial(values, model, pixel_values) for values in levels[level])
    weights = gradient.float().mean(dim=tuple(range(2, gradient.ndim)), keepdim=True)
    cam = (weights * feature_map.float()).sum(dim=1, keepdim=True).relu()
    strides = getattr(getattr(model, "backbone", None), "strides", None)
    return at_size(cam, pixel_values.shape[2:], strides[level] if strides is not None else None)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Within it, no parameter requires a gradient, so that only what depends on the feature maps is kept."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def run(model: nn.Module, pixel_values: Tensor) -> tuple[Tensor, list[Sequence[Tensor]]]:
    """(B, C, S...) -> logits (B, K, s...) and the feature maps that they were computed from, fine to coarse.

    Feature maps are those of each pass of the backbone: models of two scales cut an image into tiles. Models without a
    `backbone`, such as SegFormer, are asked for their hidden states.
    """
    backbone = getattr(model, "backbone", None)
    if backbone is None:
        outputs = model(pixel_values=pixel_values.requires_grad_(), output_hidden_states=True)
        return outputs.logits, [outputs.hidden_states or ()]
    passes: list[Sequence[Tensor]] = []

    def start_graph(_module: nn.Module, _inputs: Any, outputs: Any) -> Any:
        passes.append(tuple(feature_map.detach().requires_grad_() for feature_map in outputs.feature_maps))
        outputs["feature_maps"] = passes[-1]
        return outputs

    hook = backbone.register_forward_hook(start_graph)
    try:
        logits = model(pixel_values=pixel_values).logits
    finally:
        hook.remove()
    return logits, passes


def score_of(logits: Tensor, label: int, region: Tensor | None) -> Tensor:
    """Logits (B, K, s...) -> scalar: the sum of a class's logits over the region of each image."""
    batch, num_labels = logits.shape[:2]
    if isinstance(label, str) or not 0 <= label < num_labels:
        raise ValueError(
            f"there is no class {label!r}. Choose an id from 0 to {num_labels - 1}, for a name model.config.label2id[name]."
        )
    if region is None:
        share = (logits.argmax(dim=1) == label).float()
        share = torch.where(share.any(dim=tuple(range(1, share.ndim)), keepdim=True), share, 1.0)
    else:
        sides = logits.shape[2:]
        region = torch.as_tensor(region, device=logits.device).float()
        region = region.expand(batch, *region.shape) if region.ndim == len(sides) else region
        if region.ndim != 1 + len(sides) or len(region) != batch or not region.any():
            shape = {2: "H, W", 3: "D, H, W"}[len(sides)]
            raise ValueError(
                f"a region of shape {tuple(region.shape)} with {int(region.count_nonzero())} pixels does not suit a batch "
                f"of {batch}. Pass ({shape}) or (B, {shape}) with at least one pixel."
            )
        share = MEAN_POOL[len(sides)](region[:, None], sides)[:, 0]
    return (logits[:, label].float() * share).sum()


def reached(passes: Sequence[Sequence[Tensor]], score: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Each feature map that the score depends on, of all passes together, and its gradient."""
    asked = [level for level in zip(*passes, strict=True) if level[0].requires_grad]
    every_map = [feature_map for level in asked for feature_map in level]
    gradients = iter(torch.autograd.grad(score, every_map, allow_unused=True) if every_map else ())
    pairs = [(level, list(islice(gradients, len(level)))) for level in asked]
    found = [(torch.cat(maps).detach(), torch.cat(each)) for maps, each in pairs if each[0] is not None]
    if not found:
        raise ValueError(
            "the logits depend on no feature map that the model returns. Grad-CAM cannot explain it."
        )
    return found


def spatial(values: Tensor, model: nn.Module, pixel_values: Tensor) -> Tensor:
    """(B, C, g...), those of tiles (T, C, g...), or tokens (B, N, C) of a plain vision transformer -> (B, C, g...)."""
    size = tuple(pixel_values.shape[2:])
    if values.ndim == pixel_values.ndim:
        return model.joined(values, size) if hasattr(model, "joined") else values
    patch = model.config.patch_size
    patches = (patch, patch) if isinstance(patch, int) else tuple(patch)
    grid = [side // step for side, step in zip(size, patches, strict=True)]
    return values[:, values.shape[1] - prod(grid) :].unflatten(1, grid).movedim(-1, 1)  # without class tokens


def at_size(cam: Tensor, size: Sequence[int], stride: int | tuple[int, ...] | None) -> Tensor:
    """(B, 1, g...) -> (B, S...); cells of a known stride may reach beyond the image."""
    covered = tuple(size)
    if stride is not None:
        steps = stride if isinstance(stride, tuple) else (stride,) * len(size)
        cells = zip(steps, cam.shape[2:], size, strict=True)
        covered = tuple(max(step * count, side) for step, count, side in cells)
    return cropped(upsample(cam, covered), size)[:, 0]
