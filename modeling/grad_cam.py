"""Grad-CAM for semantic segmentation: which parts of an image speak for a class in a region.

Selvaraju et al., "Grad-CAM", ICCV 2017; for the sum of a class's logits over a set of pixels: Vinogradova et
al., "Towards Interpretable Semantic Segmentation via Gradient-weighted Class Activation Mapping", AAAI 2020.
The weight of each channel of a feature map is the mean of the gradient of that sum over the positions; the map
is the weighted sum of the channels where it is positive.

Legend: B batch, C channels, K labels, H, W image height and width, h, w those of a feature map.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def grad_cam(
    model: nn.Module, pixel_values: Tensor, label: int, region: Tensor | None = None, level: int = -1
) -> Tensor:
    """(B, C, H, W) -> (B, H, W): how much each part of the image speaks for a class in a region.

    Works with our segmenters and those of transformers. Weights, gradients and hooks of the model are left
    unchanged; a backbone runs without keeping its activations.

    Args:
        model: A segmenter in evaluation mode.
        pixel_values: Preprocessed images (B, C, H, W).
        label: Class id.
        region: Pixels (H', W') or (B, H', W') of any size that covers the image, True or 1 for those whose
            logits are explained, such as a mask or a single pixel. Default: the pixels predicted as the
            class, or all pixels if there are none.
        level: Index of the encoder's feature map, fine to coarse. Default: the coarsest.

    Returns:
        Maps (B, H, W), float32 from 0 to 1, the maximum of each map; all 0 where nothing speaks for the class.

    Raises:
        ValueError: If the model is in training mode or does not return feature maps, the class or the level
            does not exist, `pixel_values` are no images, or `region` has another number of them.
    """
    return as_shares(class_activation(model, pixel_values, label, region, level))


def as_shares(maps: Tensor) -> Tensor:
    """(B, H, W) -> (B, H, W): each divided by its maximum, or all 0."""
    return maps / maps.amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)


def class_activation(
    model: nn.Module, pixel_values: Tensor, label: int, region: Tensor | None, level: int
) -> Tensor:
    """(B, C, H, W) -> (B, H, W), float32: `grad_cam` before the division by the maximum."""
    if pixel_values.ndim != 4:
        raise ValueError(
            f"pixel_values has shape {tuple(pixel_values.shape)}, and Grad-CAM is for images (B, C, H, W)."
        )
    if model.training:
        raise ValueError("the model is in training mode, which changes its outputs. Call model.eval() first.")
    with torch.inference_mode(mode=False), torch.enable_grad(), frozen(model):
        logits, passes = run(model, pixel_values.detach().clone())
        levels = reached(passes, score_of(logits, label, region))
    if not -len(levels) <= level < len(levels):
        raise ValueError(f"feature map {level} does not exist. Choose 0 to {len(levels) - 1}.")
    feature_map, gradient = (spatial(values, model, pixel_values) for values in levels[level])
    weights = gradient.float().mean(dim=(2, 3), keepdim=True)
    cam = (weights * feature_map.float()).sum(dim=1, keepdim=True).relu()
    strides = getattr(getattr(model, "backbone", None), "strides", None)
    return at_size(cam, pixel_values.shape[-2:], strides[level] if strides is not None else None)


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
    """(B, C, H, W) -> logits (B, K, ., .) and the feature maps that they were computed from, fine to coarse.

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
    """Logits (B, K, h, w) -> scalar: the sum of a class's logits over the region of each image."""
    batch, num_labels = logits.shape[:2]
    if isinstance(label, str) or not 0 <= label < num_labels:
        raise ValueError(
            f"there is no class {label!r}. Choose an id from 0 to {num_labels - 1}, for a name model.config.label2id[name]."
        )
    if region is None:
        share = (logits.argmax(dim=1) == label).float()
        share = torch.where(share.any(dim=(1, 2), keepdim=True), share, 1.0)
    else:
        region = torch.as_tensor(region, device=logits.device).float()
        region = region.expand(batch, *region.shape) if region.ndim == 2 else region
        if region.ndim != 3 or len(region) != batch or not region.any():
            raise ValueError(
                f"a region of shape {tuple(region.shape)} with {int(region.count_nonzero())} pixels does not suit a batch "
                f"of {batch}. Pass (H, W) or (B, H, W) with at least one pixel."
            )
        share = F.adaptive_avg_pool2d(region[:, None], logits.shape[-2:])[:, 0]
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
    """(B, C, h, w), those of tiles (T, C, h, w), or tokens (B, N, C) of a plain vision transformer -> (B, C, h, w)."""
    size = tuple(pixel_values.shape[-2:])
    if values.ndim == 4:
        return model.joined(values, size) if hasattr(model, "joined") else values
    patch = model.config.patch_size
    patches = (patch, patch) if isinstance(patch, int) else tuple(patch)
    grid = [side // step for side, step in zip(size, patches, strict=True)]
    return values[:, values.shape[1] - prod(grid) :].unflatten(1, grid).movedim(-1, 1)  # without class tokens


def at_size(cam: Tensor, size: Sequence[int], stride: int | None) -> Tensor:
    """(B, 1, h, w) -> (B, H, W); cells of a known stride may reach beyond the image."""
    covered = tuple(size) if stride is None else tuple(stride * cells for cells in cam.shape[-2:])
    enlarged = F.interpolate(cam, size=covered, mode="bilinear", align_corners=False)
    return enlarged[:, 0, : size[0], : size[1]]
