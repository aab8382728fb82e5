"""Measures the properties of transformers and timm encoders instead of listing them.

The encoder is run on the meta device, which costs almost no memory or time. Strides, channels and axis order
come from the shapes of its feature maps, the required image sizes from the sizes it rejects, and unused
parameters are those that receive no gradient.

Legend: B batch, C channels, H, W image height and width, h, w those of a feature map.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, TimmBackboneConfig
from transformers.initialization import meta_device_safe_creation_ops, no_init_weights

from .backbone_building import (
    BackboneOfTimm,
    adapted_config,
    as_maps,
    build_encoder,
    build_timm,
    encoder_name,
)

Built = TypeVar("Built")
# What encoders raise for an image size that they do not accept, or on the meta device.
REFUSALS = (ArithmeticError, AssertionError, IndexError, RuntimeError, ValueError)
USUAL_SIDES = (448, 224, 256, 384, 512)  # 448 is a multiple of the patches 14, 16, 32 and of stride 64
UNMEASURED = {"_name_or_path", "architectures", "dtype", "id2label", "label2id", "transformers_version"}
MEASURED: dict[str, "FeatureInfo"] = {}


@dataclass(frozen=True)
class FeatureInfo:
    """What the adapter needs to know about an encoder.

    Attributes:
        out_indices: Stages whose feature maps are used, or None if the configuration has no such option.
        channels: Channels of each feature map.
        strides: Stride of each feature map in pixels.
        channels_last: Whether feature maps are (B, h, w, C).
        multiple: Image sides must be multiples of this; 1 if the encoder accepts any size.
        minimum: Smallest image side with which the encoder can train on a single image.
        fixed_size: The only (height, width) that the encoder accepts, or None.
        unused: Names of the parameters that get no gradient: no used feature map depends on them, or the
            encoder keeps them fixed.
        recomputed: Names of the buffers that take another shape when the encoder runs.
    """

    out_indices: tuple[int, ...] | None
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    channels_last: bool = False
    multiple: int = 1
    minimum: int = 1
    fixed_size: tuple[int, int] | None = None
    unused: tuple[str, ...] = ()
    recomputed: tuple[str, ...] = ()

    @property
    def is_flat(self) -> bool:
        """Whether all feature maps have the same stride, as in a plain vision transformer."""
        return len(set(self.strides)) == 1

    @property
    def pyramid_strides(self) -> tuple[int, ...]:
        """Strides of the pyramid that flat feature maps are turned into; otherwise the encoder's own strides.

        Strides double from level to level: 4, 8, 16, 32 for patch size 16, and 7, 14, 28, 56 for patch size
        14, which is not divisible by 4. A single feature map yields four levels.
        """
        if not self.is_flat:
            return self.strides
        finest = next(self.strides[0] // factor for factor in (4, 2, 1) if self.strides[0] % factor == 0)
        levels = len(self.strides) if len(self.strides) > 1 else 4
        return tuple(finest * 2**level for level in range(levels))


def measure(config: PreTrainedConfig) -> FeatureInfo:
    """Measures the encoder that a configuration describes; results are cached.

    Args:
        config: Configuration of a backbone in transformers or timm.

    Raises:
        ValueError: If the encoder does not run at any of the usual sizes, or its feature maps have no integer
            stride.
    """
    settings = {name: value for name, value in config.to_dict().items() if name not in UNMEASURED}
    key = f"{type(config).__module__}.{type(config).__qualname__} {json.dumps(settings, sort_keys=True, default=str)}"
    if key not in MEASURED:
        config = deepcopy(config)
        if "flash" in str(config._attn_implementation):  # flash kernels do not run on the meta device
            config._attn_implementation = "sdpa"
        # Unused parameters are found by their gradients: undo a caller's `no_grad()` or `inference_mode()`.
        with (
            torch.inference_mode(mode=False),
            torch.enable_grad(),
            torch.random.fork_rng(devices=[]),
            no_init_weights(),
        ):
            MEASURED[key] = measure_uncached(config)
    return MEASURED[key]


def measure_uncached(config: PreTrainedConfig) -> FeatureInfo:
    """Measures the feature maps of an encoder without weights, by a forward and a backward pass."""
    indices = chosen_indices(config)
    size, maps, encoder, shapes = first_run(config, [indices])
    channels_last = are_channels_last(encoder, maps)
    strides = strides_of(maps, size, channels_last)
    sum(feature_map.sum() for feature_map in maps).backward()
    multiple = needed_multiple(encoder, strides, channels_last)
    minimum = needed_minimum(encoder, strides, multiple) if multiple else 1
    return FeatureInfo(
        out_indices=None if indices is None else tuple(indices),
        channels=tuple(feature_map.shape[-1 if channels_last else 1] for feature_map in maps),
        strides=strides,
        channels_last=channels_last,
        multiple=multiple or 1,
        minimum=minimum,
        fixed_size=None if multiple else size,
        unused=tuple(name for name, value in encoder.named_parameters() if value.grad is None),
        recomputed=tuple(
            name for name, shape in buffer_shapes(encoder).items() if shape != shapes.get(name, shape)
        ),
    )


def chosen_indices(config: PreTrainedConfig) -> list[int] | None:
    """The stages that a configuration selects, or our choice if it selects only the last, the usual default.

    Our choice is the last stage of each stride, at most the four coarsest; for plain vision transformers,
    four evenly spaced layers.
    """
    config = getattr(config, "vision_config", config)
    if not hasattr(config, "out_indices"):
        return None
    count, strides = known_stages(config)
    asked = [index % count for index in config.out_indices or [-1]]
    if asked != [count - 1]:
        return asked
    if not strides:
        indices = list(range(count))
        # Some encoders list a stem whose feature map they cannot return.
        size, maps, encoder, _ = first_run(config, [indices, indices[1:]])
        found = strides_of(maps, size, are_channels_last(encoder, maps))
        strides = dict(zip(indices[-len(found) :], found, strict=True))
    last_of_each = {stride: index for index, stride in strides.items()}
    if len(last_of_each) > 1:
        return [last_of_each[stride] for stride in sorted(last_of_each)][-4:]
    has_stem = (getattr(config, "stage_names", None) or [""])[0] == "stem"
    indices = [index for index in strides if index > 0 or not has_stem]
    return sorted({indices[max(len(indices) * quarter // 4, 1) - 1] for quarter in (1, 2, 3, 4)})


def known_stages(config: PreTrainedConfig) -> tuple[int, dict[int, int]]:
    """The number of stages, and for timm models the strides of those to choose from, else an empty dict."""
    if config.model_type != TimmBackboneConfig.model_type:
        return len(config.stage_names), {}
    try:
        encoder = built_on("meta", lambda: build_timm(adapted_config(config, None)))
    except REFUSALS:
        encoder = built_on("cpu", lambda: build_timm(adapted_config(config, None)))
    return len(encoder.stage_names), encoder.usable_strides()


def built_on(device: str, build: Callable[[], Built]) -> Built:
    """Calls `build` on a device; encoders that read values while being built work on "meta" too."""
    with torch.device(device), meta_device_safe_creation_ops():
        return build()


class FirstRun(NamedTuple):
    """An image size with which an encoder runs, the feature maps, the encoder, and its buffers' shapes before."""

    size: tuple[int, int]
    maps: tuple[Tensor, ...]
    encoder: nn.Module
    shapes: dict[str, torch.Size]


def first_run(config: PreTrainedConfig, choices: Sequence[Sequence[int] | None]) -> FirstRun:
    """Finds an image size and stages with which the encoder runs.

    Encoders whose forward pass reads tensor values cannot run on the meta device and run on the CPU instead.
    """
    refusals, unbuilt = {}, None
    for device in ("meta", "cpu"):
        for indices in choices:
            try:
                encoder = built_on(device, lambda: build_encoder(config, indices).eval())  # noqa: B023 - called here
            except REFUSALS as error:  # stages that it cannot return, or the meta device
                unbuilt = error
                continue
            shapes = buffer_shapes(encoder)
            for size in likely_sizes(encoder):
                try:
                    return FirstRun(size, run(encoder, size), encoder, shapes)
                except REFUSALS as error:
                    refusals[size] = error
    if not refusals:  # the size of images is not to blame
        raise ValueError(str(unbuilt)) from unbuilt
    reasons = "; ".join(f"{size}: {error}" for size, error in refusals.items())
    raise ValueError(
        f"the encoder '{encoder_name(config)}' does not run at any of the usual image sizes ({reasons}). "
        "Set its image size (image_size, or for timm model_kwargs={'img_size': ...}) or its out_indices."
    )


def buffer_shapes(encoder: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in encoder.named_buffers()}


def likely_sizes(encoder: nn.Module) -> Iterator[tuple[int, int]]:
    """Candidate image sizes: common ones, which are multiples of most strides, and the encoder's own.

    Its own comes first for timm models whose strides do not divide the common one: CrossViT resizes images to its own.
    """
    sizes = [(side, side) for side in USUAL_SIDES]
    own, own_first = getattr(encoder.config, "image_size", None), False
    if isinstance(encoder, BackboneOfTimm):
        own = (getattr(encoder._backbone, "pretrained_cfg", None) or {}).get("input_size", [None])[1:]
        own = (getattr(encoder.config, "model_kwargs", None) or {}).get("img_size", own)
        own_first = any(USUAL_SIDES[0] % stride for stride in encoder.usable_strides().values())
    if own:
        sizes.insert(0 if own_first else 1, tuple(own) if isinstance(own, list | tuple) else (own, own))
    yield from sizes


def run(encoder: nn.Module, size: tuple[int, int], images: int = 1) -> tuple[Tensor, ...]:
    """The feature maps of all-zero images (B, C, H, W), by default of one."""
    device = next(encoder.parameters()).device
    image = torch.zeros(images, getattr(encoder.config, "num_channels", 3), *size, device=device)
    return as_maps(encoder(image).feature_maps, size)


def are_channels_last(encoder: nn.Module, maps: Sequence[Tensor]) -> bool:
    """Whether the encoder's declared channels match the last axis of its feature maps and not the second."""
    first, last = ([feature_map.shape[axis] for feature_map in maps] for axis in (1, -1))
    return first != list(encoder.channels) == last


def map_size(feature_map: Tensor, channels_last: bool) -> tuple[int, int]:
    """(B, C, h, w) or (B, h, w, C) -> (h, w)."""
    return tuple(feature_map.shape[1:3] if channels_last else feature_map.shape[2:])


def strides_of(maps: Sequence[Tensor], size: tuple[int, int], channels_last: bool) -> tuple[int, ...]:
    """Stride of each feature map. Raises ValueError unless it is an integer, the same along both axes."""
    strides = []
    for feature_map in maps:
        given = f"an image of {size[0]}x{size[1]} gives features of shape {tuple(feature_map.shape)}"
        if feature_map.dim() != 4:
            raise ValueError(
                f"{given}; decoders need feature maps (B, C, h, w). If the configuration has reshape_hidden_states, set it to "
                "True; else use another encoder."
            )
        cells = map_size(feature_map, channels_last)
        found = {
            side // count if side % count == 0 else None for side, count in zip(size, cells, strict=True)
        }
        if len(found) > 1 or None in found:
            raise ValueError(
                f"{given}; decoders need the same integer stride along both axes. Use another encoder or other out_indices."
            )
        strides += found
    return tuple(strides)


def fits(encoder: nn.Module, size: tuple[int, int], strides: Sequence[int], channels_last: bool) -> bool:
    """Whether the encoder accepts an image size and its feature maps cover every pixel."""
    try:
        maps = run(encoder, size)
    except REFUSALS:
        return False
    expected = [tuple((side + stride - 1) // stride for side in size) for stride in strides]
    return [map_size(feature_map, channels_last) for feature_map in maps] == expected


def needed_multiple(encoder: nn.Module, strides: Sequence[int], channels_last: bool) -> int | None:
    """The smallest number whose multiples the encoder accepts as image sides, or None."""
    largest = max(strides)
    odd_sizes = [(2 * largest + 1, 5 * largest - 1), (3 * largest + largest // 2 + 1, 2 * largest + 3)]
    if all(fits(encoder, size, strides, channels_last) for size in odd_sizes):
        return 1
    for step in range(largest, 16 * largest + 1, largest):
        if fits(encoder, (step, 3 * step), strides, channels_last):
            return step
    return None


def needed_minimum(encoder: nn.Module, strides: Sequence[int], multiple: int) -> int:
    """The smallest side for training on one image: batch norm and pooling need enough values.

    Encoders with batch norm on globally pooled features, such as ResNeSt, can only train on two images or more.
    """
    largest = max(strides)
    encoder.train()
    for images in (1, 2):
        for factor in range(1, 17):
            side = (factor * largest + multiple - 1) // multiple * multiple
            try:
                run(encoder, (side, side), images)
            except REFUSALS:
                continue
            return side
    return 16 * largest


__all__ = ["FeatureInfo", "measure"]
