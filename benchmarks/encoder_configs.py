"""One small, randomly initialized encoder of every kind that transformers and timm offer, without downloads.

Of transformers, every model type that AutoBackbone knows and SegFormer's MiT; of timm, the smallest model of every module
that gives feature maps.
"""

from collections.abc import Iterator
from dataclasses import fields

import timm
import torch
from timm.models import _registry
from transformers import CONFIG_MAPPING, PreTrainedConfig, TimmBackboneConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES

# Fields of configurations of transformers, where they exist.
SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_attention_heads": 2,
    "embed_dim": 8,
    "embedding_size": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 2, 2],
    "hidden_sizes": [8, 16, 32, 64],
}
# What only this model type needs in order to be small and valid.
EXCEPTIONS = {
    "bit": {"num_groups": 2},
    "dinat": {"kernel_size": 3, "dilations": [[1], [2], [1], [1]]},
    "hgnet_v2": {
        "embedding_size": 16,
        "stem_channels": [3, 8, 12],
        "stage_in_channels": [12, 16, 24, 32],
        "stage_mid_channels": [8, 8, 8, 8],
        "stage_out_channels": [16, 24, 32, 40],
        "stage_numb_of_layers": [1, 1, 1, 1],
    },
    "segformer": {"num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 8},
    "pvt_v2": {"num_attention_heads": [1, 1, 2, 2]},
    "sapiens2": {"num_first_full_attention_layers": 2, "num_last_full_attention_layers": 2},
    "textnet": {"hidden_sizes": [8, 8, 16, 24, 32], "stem_out_channels": 8},
    "vitdet": {"window_block_indices": [0, 2], "window_size": 4},
}
# Options of timm models, tried in turn; the last takes the model as it is.
SHRUNKEN = (
    {"embed_dim": 48, "depth": 4, "num_heads": 4},
    {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 4)},
    {"depths": (1, 1, 1, 1)},
    {"layers": (1, 1, 1, 1)},
    {"depth": 4},
    {},
)
SMALL_ENOUGH = 4_000_000  # parameters
WRONG_OPTIONS = (AssertionError, IndexError, RuntimeError, StopIteration, TypeError, ValueError)


def transformers_types() -> list[str]:
    """Model types that AutoBackbone of the installed transformers knows, and SegFormer's, which we adapt."""
    wrappers = {TimmBackboneConfig.model_type}
    return sorted({*MODEL_FOR_BACKBONE_MAPPING_NAMES, "segformer"} - wrappers)


def transformers_config(model_type: str) -> PreTrainedConfig:
    """A small configuration of a model type of transformers."""
    config_class = CONFIG_MAPPING[model_type]
    config = config_class()
    config_class = type(getattr(config, "vision_config", config))
    known = {field.name for field in fields(config_class)}
    small = {name: value for name, value in SMALL.items() if name in known}
    return config_class(**{**small, **EXCEPTIONS.get(model_type, {})})


def timm_families() -> list[str]:
    """Modules of the installed timm that hold models, such as "resnet" and "swin_transformer"."""
    return sorted(_registry._module_to_models)


def timm_configs(family: str) -> Iterator[TimmBackboneConfig]:
    """The smallest model of a family of timm with few layers, where it has options for that, and as it is."""
    names = sorted(_registry._module_to_models[family])
    # timm's own models for tests are the smallest; to build all others takes long in large families.
    tests = [name for name in names if name.startswith("test_")]
    size, name = min((parameters(name), name) for name in tests or names)
    for options in SHRUNKEN if size > SMALL_ENOUGH else ({},):
        try:
            parameters(name, **options)
        except WRONG_OPTIONS:
            continue
        yield TimmBackboneConfig(backbone=name, model_kwargs=options)


def parameters(name: str, **options: object) -> int:
    """Number of parameters of a timm model, built without weights."""
    with torch.device("meta"):
        return sum(value.numel() for value in timm.create_model(name, **options).parameters())


__all__ = ["timm_configs", "timm_families", "transformers_config", "transformers_types"]
