"""Code and `auto_map` of a repository, from the configuration of a model or an image processor."""

import importlib
from pathlib import Path
from typing import Any

from transformers import AutoBackbone, AutoModel

from ..configuration.backbone_configs import OWN_BACKBONES
from ..modeling.auto_classes import MODELS
from ..modeling.explanations import global_attention_maps
from .backbone_export import custom_backbone_file
from .bundling import bundle
from .modules import Import

PACKAGE = __name__.partition(".")[0]
# Table of choices -> configuration field that names the entry in use.
TABLES = {
    "DECODERS": "decoder",
    "CLASSIFIERS": "decoder",
    "ENCODERS": "encoder_type",
    "UPSAMPLINGS": "upsampling",
    "NECKS": "neck",
    "EXTERNAL_TOKENS": "external_tokens",
    "GLOBAL_BRANCHES": "global_branch",
}

CUSTOM_BACKBONE = Import(".custom_backbones", "REGISTERED_HERE", None)


def model_code(config: dict[str, Any], folder: Path) -> dict[str, str]:
    """Returns file name -> source for the model of a config.json; empty if the model is not ours."""
    classes = model_classes(config)
    if not classes:
        return {}
    custom = custom_backbone_file(config, folder)
    entries = [*dict.fromkeys(classes.values())]  # the model and its backbone may be one class
    entries += [global_attention_maps] * has_attention_maps(config, classes["AutoConfig"])
    return bundle(entries, choices(config, classes["AutoConfig"]), [CUSTOM_BACKBONE] * bool(custom)) | custom


def has_attention_maps(config: dict[str, Any], config_class: type) -> bool:
    """Whether the code of a model has `global_attention_maps`: it or its encoder has global tokens, and it is of one scale."""
    if hasattr(config_class, "context_ratio"):
        return False
    own = config.get("num_global_tokens", getattr(config_class, "num_global_tokens", 0))
    return bool(own or (config.get("backbone_config") or {}).get("num_global_tokens"))


def processor_code(settings: dict[str, Any], folder: Path) -> dict[str, str]:  # noqa: ARG001 - as above
    """Returns file name -> source for the processor of a preprocessor_config.json; empty if not ours."""
    classes = processor_classes(settings)
    return bundle(classes["AutoImageProcessor"].values()) if classes else {}


def choices(config: dict[str, Any], config_class: type) -> dict[str, str]:
    """Returns table of choices -> entry in use, for the tables that this configuration chooses from."""
    fields = config_class.__dataclass_fields__
    chosen = {
        table: config.get(field, getattr(config_class, field))
        for table, field in TABLES.items()
        if isinstance(getattr(config_class, field, None), str)
    }
    model_type = (config.get("backbone_config") or {}).get("model_type", "")
    return chosen | {
        "CHECKS": "none",
        "OWN_BACKBONES": model_type,
        "UNETS": "mirrored" if "upsampling" in fields else "pyramid",
        "BACKBONE_BUILDERS": "ours" if model_type in OWN_BACKBONES else "foreign",
    }


def model_classes(config: dict[str, Any]) -> dict[str, type]:
    """Returns Auto class -> class of this package, for all classes that can load the model's weights.

    The encoder can be loaded from the weights of every model; a head only by the class that was saved.
    """
    name = (config.get("architectures") or [""])[0]
    for config_class, models in MODELS.items():
        if any(model.__name__ == name for model in models.values()):
            opening = {
                auto_class.__name__: model
                for auto_class, model in models.items()
                if model.__name__ == name or auto_class in (AutoModel, AutoBackbone)
            }
            return {"AutoConfig": config_class, **opening}
    return {}


def processor_classes(settings: dict[str, Any]) -> dict[str, dict[str, type]]:
    """Returns Auto class -> backend -> image processor class for a preprocessor_config.json."""
    name = settings.get("image_processor_type", "")
    package = importlib.import_module(PACKAGE)
    if not name or name not in package.__all__:
        return {}
    found = getattr(package, name)
    return {"AutoImageProcessor": {"torchvision": found, "pil": getattr(package, f"{name}Pil", found)}}


def reference(found: type | dict[str, type]) -> str | dict[str, str]:
    """Returns `file.Class`, the form of an `auto_map`."""
    if isinstance(found, dict):
        return {backend: reference(cls) for backend, cls in found.items()}
    return f"{found.__module__.rpartition('.')[2]}.{found.__name__}"


def code_files(settings: dict[str, Any]) -> list[str]:
    """Returns the files of its own repository that an `auto_map` refers to."""
    references = []
    for entry in settings.get("auto_map", {}).values():
        references += (
            entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else [entry]
        )
    return [f"{entry.partition('.')[0]}.py" for entry in references if entry and "--" not in entry]
