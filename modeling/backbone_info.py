"""Facts about encoders of transformers and timm, measured instead of listed.

An encoder is run on the meta device, which needs neither memory nor time: its maps tell strides, widths and axis order, the sizes
that it refuses tell which ones it needs, and the parameters that get no gradient are those that no feature map depends on.

Legend: B batch, C channels, H, W image height and width, h, w those of a feature map.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, TimmBackboneConfig
from transformers.initialization import meta_device_safe_creation_ops, no_init_weights

from .backbone_building import adapted_config, build_encoder, build_timm

Built = TypeVar("Built")
# What an encoder raises on an image whose size it does not take, or on the meta device.
REFUSALS = (ArithmeticError, AssertionError, IndexError, RuntimeError, ValueError)
USUAL_SIDES = (448, 224, 256, 384, 512)  # 448 is a multiple of the patches 14, 16, 32 and of stride 64
UNMEASURED = {"_name_or_path", "architectures", "dtype", "id2label", "label2id", "transformers_version"}
MEASURED: dict[str, "EncoderFacts"] = {}


@dataclass(frozen=True)
class EncoderFacts:
    """What the adapter has to know of an encoder.

    out_indices: the stages whose maps are used, or None where the configuration does not choose.
    channels, strides: of each used map.
    channels_last: whether maps are (B, h, w, C).
    multiple: sides of the image must be multiples of it; 1 where the encoder takes all sizes itself.
    minimum: smallest side with which the encoder trains on a single image.
    fixed_size: the only (height, width) that the encoder takes, or None.
    unused: names of the parameters that no used map depends on.
    """

    out_indices: tuple[int, ...] | None
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    channels_last: bool = False
    multiple: int = 1
    minimum: int = 1
    fixed_size: tuple[int, int] | None = None
    unused: tuple[str, ...] = ()

    @property
    def is_flat(self) -> bool:
        """Whether all maps have one size, as a plain vision transformer's."""
        return len(set(self.strides)) == 1

    @property
    def pyramid_strides(self) -> tuple[int, ...]:
        """Strides of the pyramid that flat maps, all of one stride, can be made into; of others, what they are.

        They double from level to level: 4, 8, 16, 32 for patches of 16; 7, 14, 28, 56 for 14, which 4 does not divide. One
        map is used for four levels.
        """
        if not self.is_flat:
            return self.strides
        finest = next(self.strides[0] // factor for factor in (4, 2, 1) if self.strides[0] % factor == 0)
        levels = len(self.strides) if len(self.strides) > 1 else 4
        return tuple(finest * 2**level for level in range(levels))


def measure(config: PreTrainedConfig) -> EncoderFacts:
    """The facts of the encoder that a configuration describes; known ones are not measured again."""
    settings = {name: value for name, value in config.to_dict().items() if name not in UNMEASURED}
    key = f"{type(config).__module__}.{type(config).__qualname__} {json.dumps(settings, sort_keys=True, default=str)}"
    if key not in MEASURED:
        config = deepcopy(config)
        if "flash" in str(config._attn_implementation):  # its kernels need a device that computes
            config._attn_implementation = "sdpa"
        # A caller may build under `torch.no_grad()` or `torch.inference_mode()`; here gradients tell what is used.
        with (
            torch.inference_mode(mode=False),
            torch.enable_grad(),
            torch.random.fork_rng(devices=[]),
            no_init_weights(),
        ):
            MEASURED[key] = measured_anew(config)
    return MEASURED[key]


def measured_anew(config: PreTrainedConfig) -> EncoderFacts:
    indices = chosen_indices(config)
    size, maps, encoder = first_run(config, [indices])
    channels_last = are_channels_last(encoder, maps)
    strides = strides_of(maps, size, channels_last)
    sum(feature_map.sum() for feature_map in maps).backward()
    trained = [(name, value) for name, value in encoder.named_parameters() if value.requires_grad]
    multiple = needed_multiple(encoder, strides, channels_last)
    return EncoderFacts(
        out_indices=None if indices is None else tuple(indices),
        channels=tuple(feature_map.shape[-1 if channels_last else 1] for feature_map in maps),
        strides=strides,
        channels_last=channels_last,
        multiple=multiple or 1,
        minimum=needed_minimum(encoder, strides, multiple) if multiple else 1,
        fixed_size=None if multiple else size,
        unused=tuple(name for name, value in trained if value.grad is None),
    )


def chosen_indices(config: PreTrainedConfig) -> list[int] | None:
    """The stages that a configuration names; where it names the last one alone, which is what all do by default, ours.

    Ours are the last stage of each stride, the four coarsest of them; of a plain vision transformer four layers evenly.
    """
    config = getattr(config, "vision_config", config)
    if not hasattr(config, "out_indices"):
        return None
    indices, strides = known_stages(config)
    asked = [index % (indices[-1] + 1) for index in config.out_indices or [-1]]
    if asked != indices[-1:]:
        return asked
    if not strides:
        size, maps, encoder = first_run(
            config, [indices, indices[1:]]
        )  # some have a stem that they don't give
        strides = strides_of(maps, size, are_channels_last(encoder, maps))
        indices = indices[-len(strides) :]
    if len(set(strides)) > 1:
        return [index for _, index in sorted(dict(zip(strides, indices, strict=True)).items())][-4:]
    if (getattr(config, "stage_names", None) or [""])[0] == "stem":
        indices = [index for index in indices if index > 0]
    return sorted({indices[max(len(indices) * quarter // 4, 1) - 1] for quarter in (1, 2, 3, 4)})


def known_stages(config: PreTrainedConfig) -> tuple[list[int], list[int]]:
    """The numbers of all stages, and where they are known without running the encoder, their strides."""
    if config.model_type != TimmBackboneConfig.model_type:
        return list(range(len(config.stage_names))), []
    try:
        encoder = built_on("meta", lambda: build_timm(adapted_config(config, None)))
    except REFUSALS:
        encoder = built_on("cpu", lambda: build_timm(adapted_config(config, None)))
    stages = encoder._backbone.feature_info.info
    return list(range(len(stages))), [stage["reduction"] for stage in stages]


def built_on(device: str, build: Callable[[], Built]) -> Built:
    """What `build` gives on a device. transformers lets it read schedules of rates on the meta device as well."""
    with torch.device(device), meta_device_safe_creation_ops():
        return build()


def first_run(
    config: PreTrainedConfig, choices: Sequence[Sequence[int] | None]
) -> tuple[tuple[int, int], tuple[Tensor, ...], nn.Module]:
    """The first image size at which the encoder runs with one of these choices of stages, the maps, and the encoder.

    An encoder that reads values on its way cannot run on the meta device, and is then run on the processor.
    """
    refusals = {}
    for device in ("meta", "cpu"):
        for indices in choices:
            try:
                encoder = built_on(device, lambda: build_encoder(config, indices).eval())  # noqa: B023 - called here
            except REFUSALS as error:  # of stages that it cannot give, or the meta device
                refusals["any size"] = error
                continue
            for size in likely_sizes(encoder):
                try:
                    return size, run(encoder, size), encoder
                except REFUSALS as error:
                    refusals[size] = error
    reasons = "; ".join(f"{size}: {error}" for size, error in refusals.items())
    raise ValueError(
        f"the encoder '{config.model_type}' does not run ({reasons}). "
        "Set its image size (image_size, or for timm model_kwargs={'img_size': ...}), or its out_indices."
    )


def likely_sizes(encoder: nn.Module) -> Iterator[tuple[int, int]]:
    """Image sizes at which an encoder may run: the usual ones, which are multiples of most strides, and its own."""
    yield (USUAL_SIDES[0],) * 2
    own = getattr(encoder.config, "image_size", None)
    timm_model = getattr(encoder, "_backbone", None)
    if timm_model is not None and getattr(timm_model, "pretrained_cfg", None):
        own = timm_model.pretrained_cfg.get("input_size", [None])[1:]
    if own:
        yield tuple(own) if isinstance(own, list | tuple) else (own, own)
    for side in USUAL_SIDES[1:]:
        yield (side, side)


def run(encoder: nn.Module, size: tuple[int, int]) -> tuple[Tensor, ...]:
    """The maps of one empty image (1, C, H, W)."""
    device = next(encoder.parameters()).device
    image = torch.zeros(1, getattr(encoder.config, "num_channels", 3), *size, device=device)
    return tuple(encoder(image).feature_maps)


def are_channels_last(encoder: nn.Module, maps: Sequence[Tensor]) -> bool:
    """Whether the widths that the encoder states are on the last axis of its maps, and not on the second."""
    first, last = ([feature_map.shape[axis] for feature_map in maps] for axis in (1, -1))
    return first != list(encoder.channels) == last


def map_size(feature_map: Tensor, channels_last: bool) -> tuple[int, int]:
    """(B, C, h, w) or (B, h, w, C) -> (h, w)."""
    return tuple(feature_map.shape[1:3] if channels_last else feature_map.shape[2:])


def strides_of(maps: Sequence[Tensor], size: tuple[int, int], channels_last: bool) -> tuple[int, ...]:
    """Image size over map size, rounded up for maps that are."""
    strides = []
    for feature_map in maps:
        found = {
            side // cells if side % cells == 0 else None
            for side, cells in zip(size, map_size(feature_map, channels_last), strict=True)
        }
        if len(found) > 1 or None in found:
            raise ValueError(
                f"an image of {size[0]}x{size[1]} gives a feature map of {map_size(feature_map, channels_last)}; decoders "
                "need the same whole stride along both axes. Use another encoder, or other out_indices."
            )
        strides += found
    return tuple(strides)


def fits(encoder: nn.Module, size: tuple[int, int], strides: Sequence[int], channels_last: bool) -> bool:
    """Whether the encoder takes an image size, and gives every pixel a place on its maps."""
    try:
        maps = run(encoder, size)
    except REFUSALS:
        return False
    expected = [tuple((side + stride - 1) // stride for side in size) for stride in strides]
    return [map_size(feature_map, channels_last) for feature_map in maps] == expected


def needed_multiple(encoder: nn.Module, strides: Sequence[int], channels_last: bool) -> int | None:
    """The smallest multiple whose sizes the encoder takes; None where there is none."""
    largest = max(strides)
    odd_sizes = [(2 * largest + 1, 5 * largest - 1), (3 * largest + largest // 2 + 1, 2 * largest + 3)]
    if all(fits(encoder, size, strides, channels_last) for size in odd_sizes):
        return 1
    for step in range(largest, 16 * largest + 1, largest):
        if fits(encoder, (step, 3 * step), strides, channels_last):
            return step
    return None


def needed_minimum(encoder: nn.Module, strides: Sequence[int], multiple: int) -> int:
    """The smallest side with which the encoder trains on one image: batch norm needs two values, pooling its window."""
    largest = max(strides)
    encoder.train()
    for factor in range(1, 17):
        side = (factor * largest + multiple - 1) // multiple * multiple
        try:
            run(encoder, (side, side))
        except REFUSALS:
            continue
        return side
    return 16 * largest


__all__ = ["EncoderFacts", "measure"]
