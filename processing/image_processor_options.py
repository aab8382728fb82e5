"""Options of a segmentation image processor, their defaults, and checks for invalid and unknown ones."""

from difflib import get_close_matches
from typing import Any

from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling
from transformers.processing_utils import ImagesKwargs, Unpack

from .image_reading import PIXEL_LIMIT
from .label_maps import normalize_label_map
from .palettes import check_palette
from .processor_numbers import check_processor_numbers
from .resize_rules import check_resize_rule

NOT_SUPPORTED = ("do_center_crop", "crop_size", "pad_size")
FILE_ENTRIES = {"image_processor_type", "processor_class", "feature_extractor_type", "auto_map"}


class SegmentationImageProcessorKwargs(ImagesKwargs, total=False):
    """Options of transformers' image processors, and:

    label_map (`dict`, *optional*):
        Value in the mask file (id, or color as "#rrggbb") to class id or "ignore". None: ids are classes.
    ignore_index (`int`): Label of pixels without a class, and of padding.
    palette (`list`, *optional*): One [red, green, blue] per class, to decode masks of colors and to color
        predictions.
    value_range (`list`, *optional*): (low, high), black and white in images that are not 8-bit; 16-bit ones
        need none.
    pixel_limit (`int`): Most pixels of an image, as read and as resized.
    """

    label_map: dict | None
    ignore_index: int
    palette: list | tuple | None
    value_range: list | tuple | None
    pixel_limit: int


class SegmentationOptions:
    """The options as class attributes, which transformers copies to each processor and saves as JSON."""

    valid_kwargs = SegmentationImageProcessorKwargs
    model_input_names = ["pixel_values", "pixel_mask"]

    do_convert_rgb = True
    do_resize = None  # None: if a `size` is given
    size = None  # see resize_rules.py
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

    def __init__(self, **kwargs: Unpack[SegmentationImageProcessorKwargs]) -> None:
        known = [*self.valid_kwargs.__annotations__, *FILE_ENTRIES]
        for name in kwargs:
            if name not in known and not name.startswith("_"):
                near = get_close_matches(name, known, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"known options: {', '.join(known)}."
                raise ValueError(f"no option '{name}', {hint}")
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Builds the image processor from the contents of a file. Raises ValueError if it is not a dictionary."""
        if not isinstance(image_processor_dict, dict):
            raise ValueError(
                "preprocessor_config.json is damaged: it does not hold a JSON object. Copy it again."
            )
        return super().from_dict(image_processor_dict, **kwargs)

    def _standardize_kwargs(self, **kwargs: Any) -> dict[str, Any]:
        check_processor_numbers(kwargs)
        checks = {"size": check_resize_rule, "label_map": normalize_label_map, "palette": check_palette}
        checked = {
            name: check(kwargs[name]) for name, check in checks.items() if kwargs.get(name) is not None
        }
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
        mean = kwargs["image_mean"]
        if kwargs["do_normalize"] and kwargs["do_convert_rgb"] and isinstance(mean, tuple) and len(mean) != 3:
            raise ValueError(
                f"image_mean has {len(mean)} entries, but do_convert_rgb=True gives every image 3 channels. "
                "Pass do_convert_rgb=False."
            )
