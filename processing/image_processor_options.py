"""Options of a segmentation image processor, their defaults, and checks for invalid and unknown ones."""

import os
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling
from transformers.processing_utils import ImagesKwargs, Unpack

from .image_reading import PIXEL_LIMIT
from .label_maps import check_ignore_index, colors_of_classes, count_classes, normalize_label_map
from .palettes import check_palette
from .processor_numbers import check_processor_numbers
from .resize_rules import check_resize_rule

NOT_SUPPORTED = ("do_center_crop", "crop_size", "pad_size")
DEFAULT_SIZE = {"height": 512, "width": 512}  # of SegFormer's image processor
# What a mask is decoded with for do_reduce_labels=True: as SegformerImageProcessor does.
REDUCED_LABELS = {"0": "ignore", **{str(value): value - 1 for value in range(1, 255)}, "255": "ignore"}
# What `from_pretrained` takes besides options of the processor.
LOADING_OPTIONS = {
    "backend", "code_revision", "config", "mirror", "resume_download", "return_unused_kwargs", "trust_remote_code",
    "use_auth_token", "use_fast", "user_agent",
}  # fmt: skip
FILE_ENTRIES = {"image_processor_type", "processor_class", "feature_extractor_type", "auto_map"}


class SegmentationImageProcessorKwargs(ImagesKwargs, total=False):
    """Options of transformers' image processors, and:

    label_map (`dict`, *optional*):
        Value in the mask file (id, or color as "#rrggbb") to class id or "ignore". None: ids are classes.
    ignore_index (`int`): Label of pixels without a class, and of padding.
    palette (`list`, *optional*): One color per class, to decode masks of colors, also palette images, and to
        color predictions. None: the colors of `label_map`, if it has one for each class.
    value_range (`list`, *optional*): (low, high), black and white in images that are not 8-bit; 16-bit ones
        need none.
    pixel_limit (`int`): Most pixels of an image, as read and as resized.
    do_reduce_labels (`bool`): Whether 0 and 255 in the mask file are ignored and the other ids are one too high;
        a short form of that `label_map`.
    """

    label_map: dict | None
    ignore_index: int
    palette: list | tuple | None
    value_range: list | tuple | None
    pixel_limit: int
    do_reduce_labels: bool


class UnusedSize(dict):
    """The `size` of a processor to which none was given: that of `do_resize=True`."""


class SegmentationOptions:
    """The options as class attributes, which transformers copies to each processor and saves as JSON."""

    valid_kwargs = SegmentationImageProcessorKwargs
    model_input_names = ["pixel_values", "pixel_mask"]

    do_convert_rgb = True
    do_resize = None  # None: if a `size` is given
    resample = PILImageResampling.BILINEAR
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    do_pad = True  # pads a batch of mixed sizes to its largest height and width
    label_map = None
    ignore_index = 255
    palette = None
    value_range = None
    pixel_limit = PIXEL_LIMIT
    do_reduce_labels = False

    def __init__(self, **kwargs: Unpack[SegmentationImageProcessorKwargs]) -> None:
        reject_unknown(kwargs, [*self.valid_kwargs.__annotations__, *FILE_ENTRIES])
        super().__init__(**kwargs)

    @property
    def size(self) -> dict[str, int]:
        """The size to resize to, see resize_rules.py; 512 x 512 if none was given, which then has no effect."""
        return vars(self).get("size") or UnusedSize(DEFAULT_SIZE)

    @size.setter
    def size(self, size: dict[str, int] | None) -> None:
        vars(self)["size"] = None if isinstance(size, UnusedSize) else size

    @classmethod
    def known_options(cls) -> list[str]:
        """Names of all options of the processor, of its file, and of loading."""
        return [*cls.valid_kwargs.__annotations__, *FILE_ENTRIES, *sorted(LOADING_OPTIONS)]

    @classmethod
    def get_image_processor_dict(cls, name: str | os.PathLike, **kwargs: Any) -> tuple[dict, dict]:
        """Reads the processor's file.

        Args:
            name: Folder, or name on the Hub.
            **kwargs: Options of loading, of the processor, and in a pipeline also of the model.

        Returns:
            Contents of the file, and the options of the processor.

        Raises:
            ValueError: If the file does not hold a JSON object.
        """
        in_pipeline = kwargs.get("_from_pipeline") is not None
        settings, options = super().get_image_processor_dict(name, **kwargs)
        check_settings(settings, name)
        if in_pipeline:
            options = {name: value for name, value in options.items() if name in cls.known_options()}
        return settings, options

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Builds the processor from the contents of its file.

        Args:
            image_processor_dict: Contents of `preprocessor_config.json`.
            **kwargs: Options to change.

        Raises:
            ValueError: If an option is unknown, or do_reduce_labels=True contradicts the file.
        """
        if not kwargs.get("return_unused_kwargs"):
            reject_unknown(kwargs, cls.known_options())
        if kwargs.get("do_reduce_labels") and not image_processor_dict.get("do_reduce_labels"):
            raise ValueError(
                "do_reduce_labels=True contradicts the saved image processor, whose masks have the ids of the model's "
                "classes. Save SegmentationImageProcessor(do_reduce_labels=True) with the model, or pass a label_map."
            )
        return super().from_dict(image_processor_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The options that are saved."""
        return {name: value for name, value in super().to_dict().items() if name != "size" or value}

    def _standardize_kwargs(self, **kwargs: Any) -> dict[str, Any]:
        check_processor_numbers(kwargs)
        checks = {"size": check_resize_rule, "label_map": normalize_label_map, "palette": check_palette}
        checked = {
            name: check(kwargs[name]) for name, check in checks.items() if kwargs.get(name) is not None
        }
        if kwargs.get("do_reduce_labels") and checked.get("label_map", REDUCED_LABELS) != REDUCED_LABELS:
            raise ValueError(
                "label_map and do_reduce_labels=True both say what the ids of a mask are. Give only one of them."
            )
        label_map = checked.get("label_map")
        if label_map and kwargs.get("palette") is None and (colors := colors_of_classes(label_map)):
            checked["palette"] = check_palette(colors)
        checked["ignore_index"] = check_ignore_index(
            kwargs["ignore_index"], count_classes(label_map, checked.get("palette"))
        )
        if isinstance(kwargs.get("size"), UnusedSize) and not kwargs.get("do_resize"):
            del checked["size"]
        for name in ("value_range", "image_mean", "image_std"):
            if isinstance(kwargs.get(name), list):
                checked[name] = tuple(kwargs[name])
        return super()._standardize_kwargs(**{**kwargs, "size": None}) | checked

    def _validate_preprocess_kwargs(self, **kwargs: Any) -> None:
        super()._validate_preprocess_kwargs(**kwargs)
        for name in NOT_SUPPORTED:
            if kwargs.get(name):
                raise ValueError(
                    f"{name}={kwargs[name]} is not supported. Crop or pad images before the processor."
                )
        if kwargs["do_normalize"]:
            check_channels(kwargs["image_mean"], kwargs["image_std"], kwargs["do_convert_rgb"])


def check_settings(settings: Any, name: str | os.PathLike) -> None:
    """Raises ValueError if the contents of a processor's file are not a JSON object."""
    if not isinstance(settings, dict):
        raise ValueError(
            f"preprocessor_config.json of {name} is damaged: it is not a JSON object. Copy it again."
        )


def check_channels(mean: Any, std: Any, is_rgb: bool) -> None:
    """Raises ValueError unless mean and standard deviation are for the same number of channels, for RGB for three."""
    numbers = [len(value) for value in (mean, std) if isinstance(value, tuple)]
    if is_rgb and any(number != 3 for number in numbers):
        name = "image_mean" if isinstance(mean, tuple) and len(mean) != 3 else "image_std"
        raise ValueError(
            f"{name} has {len(mean if name == 'image_mean' else std)} entries, but do_convert_rgb=True gives every image "
            "3 channels. Pass do_convert_rgb=False."
        )
    if len(set(numbers)) > 1:
        raise ValueError(
            f"image_mean has {numbers[0]} entries and image_std {numbers[1]}. Give one for each channel to both."
        )


def reject_unknown(options: Iterable[str], known: Iterable[str]) -> None:
    """Raises ValueError for the first option that is neither known nor private, with the nearest known one."""
    for name in options:
        if name not in known and not name.startswith("_"):
            near = nearest(name, known)
            hint = f"did you mean '{near}'?" if near else f"known options: {', '.join(known)}."
            raise ValueError(f"no option '{name}', {hint}")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that a name equals or resembles, or None."""
    return next(iter(get_close_matches(name, known, n=1)), None)
