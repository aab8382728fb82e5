"""The model that a run starts from: new, or from the checkpoint that --init-from names, which is recognized.

A checkpoint whose architecture can learn the task stays what it is, and only its classifier is adapted. Any
other, or one that --model is to differ from, gives its weights to one of our models.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_BACKBONE_MAPPING,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from ..configuration.checked_config import CheckedConfig
from ..configuration.field_rules import check_encoder_sizes
from ..modeling.backbone_building import adapted_config, explained_settings
from ..modeling.input_channels import adapt_channels, channels_of, with_num_channels
from ..modeling.pretrained_backbones import is_timm_name
from ..processing.mask_models import FIXED_SIZE, check_has_classes
from .checkpoints import model_folder
from .model_files import check_all_settings, check_finite, explained_damage
from .model_names import explained_absence
from .models import ModelKind, config_class_of

logger = logging.getLogger(__name__)

UNDERSTOOD = (
    "--init-from understands a run of contextseg-train, and a folder of save_pretrained or a name on the Hub with one of "
    "our models, a Swin, a UPerNet with Swin, a SegFormer or another encoder of transformers; and a model name of timm. "
    "contextseg-convert makes the authors' own files readable."
)


# The methods that start one of our models from another model's weights, the most specific one first.
METHODS = ("from_swin", "from_segformer", "from_backbone")


def build_model(
    kind: ModelKind,
    name: str | None,
    preset: str | None,
    *,
    class_names: list[str],
    options: dict[str, Any],
    init_from: str | None = None,
) -> PreTrainedModel:
    """Builds a model for the given classes.

    Args:
        kind: What the model is for.
        name: Model type, such as "glam_swin"; None with `init_from` leaves the choice to the checkpoint.
        preset: Published size, such as "tiny"; None for the defaults of the configuration.
        class_names: Class names by id.
        options: Fields of the configuration to set.
        init_from: Checkpoint to start from, see `started`; None initializes the model randomly.

    Raises:
        ValueError: If type, preset or checkpoint do not exist or do not fit together.
    """
    options = {
        "id2label": dict(enumerate(class_names)),
        "label2id": {label: index for index, label in enumerate(class_names)},
        **options,
    }
    if init_from:
        with without_reports(), explained_damage(checkpoint_of(init_from)):
            model = started(kind, name, init_from, options)
        check_finite(model, f"cannot start from {init_from}")
        return model
    with explained_settings(name):
        config = configuration(kind, name, preset, options)
        return kind.classes[type(config)](config)


def configuration(
    kind: ModelKind, name: str, preset: str | None, options: dict[str, Any]
) -> PreTrainedConfig:
    """Returns the configuration of a model type, in the published size `preset` if it is not None."""
    config_class = config_class_of(kind, name)
    if "num_channels" in options:
        rest = {option: value for option, value in options.items() if option != "num_channels"}
        return with_num_channels(configuration(kind, name, preset, rest), options["num_channels"])
    if not issubclass(config_class, CheckedConfig):
        check_encoder_sizes(options)
    if preset is None:
        return config_class(**options)
    if not hasattr(config_class, "preset"):
        raise ValueError(f"'{name}' has no presets. Leave out --preset, and set sizes with --set NAME=VALUE.")
    return config_class.preset(preset, **options)


def started(kind: ModelKind, name: str | None, source: str, options: dict[str, Any]) -> PreTrainedModel:
    """Builds a model from a checkpoint, and logs in one line what it is and what is newly initialized.

    Args:
        kind: What the model is for.
        name: Model type, such as "glam_swin"; None keeps the checkpoint's own if it fits the purpose, and
            otherwise takes the one of ours that it can start.
        source: A run, a folder, a name on the Hub, or a model name of timm.
        options: Fields of the configuration to set.

    Raises:
        ValueError: If the checkpoint is not understood, or cannot start this model.
    """
    folder = checkpoint_of(source)
    if is_timm_name(source):
        return started_from_timm(kind, name, source, options)
    config = read_config(source, folder)
    check_has_classes(config, f"--init-from {source}")
    if config.model_type == (name or config.model_type) and type(config) in kind.classes:
        return continued(kind, source, folder, config, options)
    return converted(kind, name, folder, config.model_type, methods_for(config), options)


def started_from_timm(
    kind: ModelKind, name: str | None, source: str, options: dict[str, Any]
) -> PreTrainedModel:
    """Starts one of our models from timm's weights. Raises ValueError if they cannot be downloaded."""
    try:
        return converted(kind, name, source, "timm", METHODS[2:], options)
    except LocalEntryNotFoundError as error:
        raise ValueError(
            f"--init-from {source}: the weights of this model of timm are not on this machine, and the Hub does not "
            "answer. Run this once with a connection, or start from a folder."
        ) from error


@contextmanager
def without_reports() -> Iterator[None]:
    """Context manager without transformers' tables of missing and unexpected tensors: one line of ours says it."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def checkpoint_of(source: str) -> str:
    """Returns what loads a checkpoint: a folder, a name on the Hub, or a model name of timm."""
    return source if is_timm_name(source) else model_folder(source)


def channels_of_checkpoint(source: str | None) -> int:
    """Returns the number of channels that a checkpoint takes; 3 for models of timm, and without a checkpoint."""
    if not source or is_timm_name(source):
        return 3
    return channels_of(read_config(source, checkpoint_of(source)))


def config_of_checkpoint(source: str) -> PreTrainedConfig | None:
    """Returns the configuration of a checkpoint; None for a model of timm. Raises ValueError as `read_config`."""
    return None if is_timm_name(source) else read_config(source, checkpoint_of(source))


def read_config(source: str, folder: str) -> PreTrainedConfig:
    """Reads the configuration of a checkpoint. Raises ValueError if there is none that transformers knows."""
    check_all_settings(Path(folder))
    try:
        with explained_absence(folder):
            return AutoConfig.from_pretrained(folder)
    except (ValueError, KeyError, OSError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise ValueError(f"--init-from {source}: {reason}. {UNDERSTOOD}") from error


def methods_for(config: PreTrainedConfig) -> tuple[str, ...]:
    """The methods that can read a checkpoint with this configuration, the most complete one first."""
    encoder = adapted_config(getattr(config, "backbone_config", None) or config, None)
    has_decoder = any("Segmentation" in name for name in config.architectures or ())
    usable = {
        "from_swin": encoder.model_type == "swin",
        "from_segformer": config.model_type == "segformer" and has_decoder,
        "from_backbone": type(encoder) in MODEL_FOR_BACKBONE_MAPPING or encoder.model_type == "segformer",
    }
    return tuple(method for method in METHODS if usable[method])


def converted(
    kind: ModelKind,
    name: str | None,
    source: str,
    origin: str,
    methods: tuple[str, ...],
    options: dict[str, Any],
) -> PreTrainedModel:
    """Starts one of our models from weights of another kind; `origin` is their type, for messages."""
    by_method = {method: models_with(kind, method) for method in methods}
    fitting = list(dict.fromkeys(model for models in by_method.values() for model in models))
    if name is not None:
        config_class_of(kind, name)
    method = next(
        (method for method, models in by_method.items() if models and name in (None, *models)), None
    )
    if method is None and origin in FIXED_SIZE:
        raise ValueError(
            f"--init-from {source} is an EoMT, which contextseg-train does not train. Fine-tune it with contextseg-finetune "
            f"--init-from {source}."
        )
    if method is None:
        use = f"Leave out --model, or use --model {' or '.join(fitting)}. " if fitting else ""
        model = f"--model {name}" if name else f"a model for {kind.purpose}"
        raise ValueError(
            f"--init-from {source}, a checkpoint of '{origin}', cannot start {model}. {use}{UNDERSTOOD}"
        )
    model_class = kind.classes[CONFIG_MAPPING[name or by_method[method][0]]]
    model = getattr(model_class, method)(source, **options)
    if method == "from_backbone":  # the others log what they load
        new = ", ".join(part for part, _ in model.named_children() if part != "backbone")
        logger.warning(
            "%s: encoder '%s' loaded into %s; newly initialized: %s",
            source,
            origin,
            model_class.__name__,
            new,
        )
    return model


def models_with(kind: ModelKind, method: str) -> list[str]:
    """The model types of a kind whose classes have a method."""
    return [config.model_type for config, model in kind.classes.items() if hasattr(model, method)]


def continued(
    kind: ModelKind, source: str, folder: str, config: PreTrainedConfig, options: dict[str, Any]
) -> PreTrainedModel:
    """Loads a checkpoint for the same purpose; classes of other names get a new classifier."""
    unknown = sorted(name for name in options if not hasattr(config, name))
    if unknown and not isinstance(config, CheckedConfig):  # ours check their own fields
        raise ValueError(
            f"{source} is a '{config.model_type}' of transformers, which has no field '{unknown[0]}'. Leave the option out, or "
            "build a model of contextseg on the same encoder, such as --model segdeformer."
        )
    options = dict(options)
    channels = options.pop("num_channels", None)
    model, info = kind.auto_class.from_pretrained(
        folder, ignore_mismatched_sizes=True, output_loading_info=True, **options
    )
    if channels not in (None, channels_of(model.config)):
        model = adapt_channels(model, channels)
    mismatched = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
    counts = Counter(key.partition(".")[0] for key in {*info["missing_keys"], *mismatched})
    new = [f"{part} ({count} tensors)" for part, count in sorted(counts.items())]
    names, known = set(model.config.id2label.values()), set(config.id2label.values())
    if isinstance(config, CheckedConfig) and names - known:
        new.append(f"{len(names - known)} of {len(names)} classes")
    logger.warning(
        "%s: %s loaded as it is; newly initialized: %s",
        source,
        type(model).__name__,
        ", ".join(new) or "nothing",
    )
    return model
