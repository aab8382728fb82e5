"""Options of the image processor of volumes, their defaults, and checks for invalid and unknown ones."""

import os
from copy import deepcopy
from typing import Any, TypedDict

from ..image_processor_options import FILE_ENTRIES, LOADING_OPTIONS, check_settings, reject_unknown
from ..label_maps import check_ignore_index, count_classes, normalize_label_map
from ..palettes import check_palette
from ..processor_numbers import is_number, is_positive
from .volume_geometry import SLICE_AXES
from .volume_preparation import INTENSITIES, NORMALIZATIONS
from .volume_resampling import ANISOTROPY_THRESHOLD


class VolumeImageProcessorKwargs(TypedDict, total=False):
    """Options of the processor; their meaning is in its docstring."""

    target_spacing: list | tuple | None
    slice_axis: str
    normalization: str | list | tuple
    intensity: dict | list | tuple | None
    crop_to_nonzero: bool
    anisotropy_threshold: float
    label_map: dict | None
    ignore_index: int
    palette: list | tuple | None
    regions: dict | None


class VolumeOptions:
    """The options as class attributes, their defaults; each processor has its own values, which are saved as JSON."""

    valid_kwargs = VolumeImageProcessorKwargs
    model_input_names = ["pixel_values"]

    target_spacing = None
    slice_axis = "z"
    normalization = "zscore"
    intensity = None
    crop_to_nonzero = False
    anisotropy_threshold = ANISOTROPY_THRESHOLD
    label_map = None
    ignore_index = 255
    palette = None
    regions: dict = {}

    def __init__(self, **kwargs: Any) -> None:
        reject_unknown(kwargs, [*self.valid_kwargs.__annotations__, *FILE_ENTRIES])
        super().__init__()
        for name in self.valid_kwargs.__annotations__:
            given = kwargs.get(name)
            setattr(self, name, deepcopy(getattr(type(self), name) if given is None else given))
        check_volume_options(self)

    @classmethod
    def get_image_processor_dict(cls, name: str | os.PathLike, **kwargs: Any) -> tuple[dict, dict]:
        """Reads the processor's file: its contents, and the options of the processor. Raises ValueError in a pipeline."""
        if kwargs.get("_from_pipeline") is not None:
            raise ValueError(
                "transformers' pipelines take no volumes. Call Inference of contextseg, or the processor and the model."
            )
        settings, options = super().get_image_processor_dict(name, **kwargs)
        check_settings(settings, name)
        return settings, options

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Builds the processor from the contents of its file and options to change. Raises ValueError if unknown."""
        if not kwargs.get("return_unused_kwargs"):
            reject_unknown(kwargs, [*cls.valid_kwargs.__annotations__, *FILE_ENTRIES, *LOADING_OPTIONS])
        return super().from_dict(image_processor_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The options that are saved."""
        options = {name: _as_json(getattr(self, name)) for name in self.valid_kwargs.__annotations__}
        return options | {"image_processor_type": type(self).__name__}


def check_volume_options(options: VolumeOptions) -> None:
    """Brings the options of a processor to the form in which they are used. Raises ValueError for invalid ones."""
    if options.target_spacing is not None:
        options.target_spacing = tuple(map(float, options.target_spacing))
        if len(options.target_spacing) != 3 or not all(map(is_positive, options.target_spacing)):
            raise ValueError(f"target_spacing={options.target_spacing} must be three numbers above 0, in mm.")
    if options.slice_axis not in SLICE_AXES:
        raise ValueError(f"slice_axis={options.slice_axis!r} must be one of {', '.join(SLICE_AXES)}.")
    if not is_number(options.anisotropy_threshold) or options.anisotropy_threshold < 1:
        raise ValueError(
            f"anisotropy_threshold={options.anisotropy_threshold!r} must be a number of at least 1."
        )
    if not isinstance(options.crop_to_nonzero, bool):
        raise ValueError(f"crop_to_nonzero={options.crop_to_nonzero!r} must be True or False.")
    _check_normalization(options)
    if options.label_map is not None:
        options.label_map = normalize_label_map(options.label_map)
    if options.palette is not None:
        options.palette = check_palette(options.palette)
    options.ignore_index = check_ignore_index(options.ignore_index, count_classes(options.label_map))
    options.regions = {str(name): tuple(map(int, classes)) for name, classes in options.regions.items()}


def _check_normalization(options: VolumeOptions) -> None:
    rules = options.normalization
    rules = [rules] if isinstance(rules, str) else list(rules)
    if not rules or not set(rules) <= set(NORMALIZATIONS):
        raise ValueError(
            f"normalization={options.normalization!r} must be one of {', '.join(NORMALIZATIONS)}."
        )
    if "ct" not in rules:
        return
    found = options.intensity
    for intensity in found if isinstance(found, list | tuple) else [found]:
        numbers = [(intensity or {}).get(name) for name in INTENSITIES]
        if not all(map(is_number, numbers)) or numbers[1] <= 0 or numbers[2] >= numbers[3]:
            raise ValueError(
                f"normalization 'ct' needs intensity with {', '.join(INTENSITIES)} of the data set, std above 0 and "
                f"rising percentiles, but got {intensity!r:.200}."
            )


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _as_json(entry) for name, entry in value.items()}
    return [_as_json(entry) for entry in value] if isinstance(value, list | tuple) else value
