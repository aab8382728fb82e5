"""What the fields of a configuration may be: one range for each number, and the types of the others.

`checked` applies these rules before a configuration is built, so that whatever is wrong raises a ValueError of
one sentence.
"""

import dataclasses
from collections.abc import Mapping
from functools import wraps
from typing import Any, get_args, get_origin

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from .ranges import Range, check_number, check_numbers, shown, whole

WIDTH = whole(1, 16384)  # channels
WEIGHT = Range(minimum=0, maximum=10**6)  # of a loss term, or of a class
RATE = Range(minimum=0, below=1)  # of stochastic depth

# Every number of every configuration; in a field that holds a list, each entry.
FIELD_RANGES = {
    "attention_loss_weight": WEIGHT,
    "auxiliary_hidden_size": WIDTH,
    "auxiliary_loss_weight": WEIGHT,
    "auxiliary_map": whole(-64, 63),
    "class_weights": WEIGHT,
    "consistency_weight": WEIGHT,
    "context_loss_weight": WEIGHT,
    "context_ratio": whole(1, 64),
    "crop_size": whole(1, 65536),
    "decoder_hidden_size": WIDTH,
    "decoder_num_heads": whole(1, 1024),
    "depths": whole(0, 256),
    "downsample_strides": whole(1, 2),
    "drop_path_rate": RATE,
    "embed_dim": WIDTH,
    "fusion_mlp_ratio": Range(minimum=0, maximum=64),
    "gld_grid_size": whole(1, 64),
    "gld_ratio": Range(above=0, maximum=1),
    "global_clamp": Range(above=0, maximum=10**6),
    "global_loss_weight": WEIGHT,
    "global_position_rows": whole(0, 10**7),
    "hidden_sizes": WIDTH,
    "initializer_range": Range(above=0, maximum=10),
    "internal_depth": whole(1, 256),
    "internal_num_heads": whole(1, 1024),
    "kv_pooling": whole(1, 256),
    "label_smoothing": Range(minimum=0, below=1),
    "layer_norm_eps": Range(above=0, maximum=1),
    "logits_stride": whole(1, 65536),
    "merge_strides": whole(1, 2),
    "mlp_ratio": Range(above=0, maximum=64),
    "neck_depth": whole(2, 256),
    "num_channels": whole(1, 4096),
    "num_global_tokens": whole(0, 256),
    "num_heads": whole(1, 1024),
    "num_labels": whole(1, 65536),
    "num_relay_tokens": whole(0, 256),
    "patch_size": whole(1, 256),
    "pretrain_image_size": whole(1, 65536),
    "pretrained_window_sizes": whole(0, 256),
    "reduction_ratio": whole(1, 64),
    "semantic_loss_ignore_index": whole(-(2**31), 2**31 - 1),
    "stripe_widths": whole(0, 256),
    "token_label_loss_weight": WEIGHT,
    "window_size": whole(1, 64),
}
# Without stripes, all stages attend to the whole grid; a single stage has none after it.
MAY_BE_EMPTY = {"decoder_num_heads", "downsample_strides", "merge_strides", "stripe_widths"}
PER_STAGE_AND_AXIS = {
    "downsample_strides",
    "merge_strides",
    "window_size",
}  # each entry a number, or one number per axis
# Sizes of encoders of transformers: far above any published model, but without them a typo takes all memory.
ENCODER_RANGES = {
    **dict.fromkeys(("depths", "num_hidden_layers", "num_layers", "num_encoder_blocks"), whole(0, 256)),
    **dict.fromkeys(("embed_dim", "hidden_size", "hidden_sizes", "decoder_hidden_size"), WIDTH),
    **dict.fromkeys(("intermediate_size", "image_size"), whole(1, 65536)),
    "num_channels": FIELD_RANGES["num_channels"],
}
MOST_WEIGHTS = 10**9  # parameters; the largest published size has 0.2 billion
DTYPES = ("float32", "float16", "bfloat16", "float64", "float", "half", "double")
# Fields of transformers' base class, whose types it does not check.
BASE_TYPES = {
    **dict.fromkeys(("output_hidden_states", "output_attentions", "return_dict"), bool),
    "problem_type": str,
}
WORDS = {bool: "True or False", str: "a text", dict: "a dictionary"}


def check_fields(config_class: type, options: Mapping[str, Any]) -> None:
    """Raises ValueError for the first of the given options whose value its field cannot have."""
    fields, aliases = own_fields(config_class), getattr(config_class, "attribute_map", {})
    for name, value in options.items():
        field = fields.get(aliases.get(name, name))
        if field is not None:
            check_field(name, field, value)
        elif name == "num_labels":
            check_number(name, value, FIELD_RANGES[name])
        elif name in BASE_TYPES and not (value is None or isinstance(value, BASE_TYPES[name])):
            raise ValueError(f"{name} is {shown(value)}, but must be {WORDS[BASE_TYPES[name]]}.")
        elif name in ("dtype", "torch_dtype") and not is_dtype(value):
            raise ValueError(f"{name} is {shown(value)}. Use one of {', '.join(DTYPES)}.")


def is_dtype(value: Any) -> bool:
    """Whether transformers can take the value as the type of weights; torch, which is not imported here, has others."""
    if isinstance(value, str):
        return value in DTYPES
    if isinstance(value, dict):  # of the parts of a model
        return all(isinstance(part, str) for part in value)
    return value is None or type(value).__name__ == "dtype"


def own_fields(config_class: type) -> dict[str, dataclasses.Field]:
    """Returns the fields of a configuration that transformers' base class does not have."""
    inherited = PreTrainedConfig.__dataclass_fields__
    return {
        name: field
        for name, field in config_class.__dataclass_fields__.items()
        if name not in inherited and not name.startswith("_")
    }


def check_field(name: str, field: dataclasses.Field, value: Any) -> None:
    """Raises ValueError, with `name`, if a field cannot have the value. Its default is always allowed."""
    if value is field.default:
        return
    kinds = {get_origin(kind) or kind for kind in get_args(field.type) or (field.type,)}
    is_number = int in kinds and not isinstance(value, list | tuple)  # in a field that may hold a list
    if field.name in FIELD_RANGES and list in kinds and not is_number:
        check_numbers(
            name,
            entries_along_axes(value) if field.name in PER_STAGE_AND_AXIS else value,
            FIELD_RANGES[field.name],
            may_be_empty=field.name in MAY_BE_EMPTY,
        )
    elif field.name in FIELD_RANGES:
        check_number(name, value, FIELD_RANGES[field.name])
    elif (
        value is None and type(None) not in kinds or value is not None and not isinstance(value, tuple(kinds))
    ):
        wanted = next((words for kind, words in WORDS.items() if kind in kinds), "another type")
        raise ValueError(f"{name} is {shown(value)}, but must be {wanted}.")


def entries_along_axes(values: Any) -> Any:
    """A list whose entries may be lists, as one list; anything else as it is."""
    if not isinstance(values, list | tuple):
        return values
    return [
        number
        for entry in values
        for number in (entry if isinstance(entry, list | tuple) and entry else [entry])
    ]


def check_encoder_sizes(options: Mapping[str, Any]) -> None:
    """Raises ValueError for a size of an encoder of transformers that no machine could build."""
    for name, allowed in ENCODER_RANGES.items():
        value = options.get(name)
        if value is not None:
            check = check_numbers if isinstance(value, list | tuple) else check_number
            check(name, value, allowed)


def check_field_range(name: str, value: Any) -> None:
    """Raises ValueError if the value of a numeric field is out of its range."""
    check_number(name, value, FIELD_RANGES[name])


# The code in a Hub repository comes without them: the configuration that it loads has passed them.
CHECKS = {"fields": check_fields, "encoder": check_encoder_sizes, "range": check_field_range}


def run_check(name: str, *arguments: Any) -> None:
    """Calls a function of `CHECKS` where it exists."""
    if CHECKS[name] is not NotImplemented:
        CHECKS[name](*arguments)


def checked(config_class: type) -> type:
    """Decorator for configurations: `strict` of huggingface_hub, and the rules of this module.

    Whatever is wrong raises a ValueError with the field, the value and what is required.
    """
    config_class = strict(config_class)
    initialize = config_class.__init__

    @wraps(initialize)
    def __init__(self: Any, *arguments: Any, **options: Any) -> None:  # noqa: N807
        run_check("fields", config_class, options)
        if isinstance(options.get("id2label"), list | tuple):  # whose type older versions check before us
            options["id2label"] = dict(enumerate(options["id2label"]))
        try:
            initialize(self, *arguments, **options)
        except StrictDataclassError as error:
            text = " ".join(str(error.__cause__ or error).split())
            raise ValueError(text if len(text) <= 600 else f"{text[:300]} ... {text[-200:]}") from error

    config_class.__init__ = __init__
    return config_class
