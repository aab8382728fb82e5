"""Backbones with pretrained weights: checkpoints of transformers, ours, and timm's by name."""

import json
import logging
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, SegformerConfig, TimmBackboneConfig
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import cached_file, is_timm_available

from .backbone_building import adapted_config, build_encoder
from .backbone_info import measure
from .backbones import OWN_BACKBONES, AnyBackbone, adapted

if is_timm_available():
    import timm

logger = logging.getLogger(__name__)


def load_pretrained_backbone(
    name: str | os.PathLike,
    out_indices: Sequence[int] | None = None,
    flat: str = "keep",
    revision: str = "main",
) -> AnyBackbone:
    """The encoder of a checkpoint in its adapter; `encoder_config` of the same name is the `backbone_config` for it.

    name: folder or name on the Hub of a checkpoint in transformers' layout, whatever head it has, or a model of timm
        such as "resnet50.a1_in1k" or "timm/resnet50.a1_in1k".
    out_indices: stages whose maps are used; None leaves the choice to `build_backbone`.
    flat: see `build_backbone`.
    revision: branch, tag or commit on the Hub.
    """
    config = encoder_config(name, out_indices, revision)
    if config.model_type in OWN_BACKBONES:
        encoder = load_encoder(OWN_BACKBONES[config.model_type], name, config, revision)
        return adapted(encoder, flat)
    facts = measure(config)
    if config.model_type == TimmBackboneConfig.model_type:
        encoder = build_encoder(config, facts.out_indices, pretrained=True)
    else:
        encoder = build_encoder(config, facts.out_indices)
        wrapped = encoder.model if config.model_type == SegformerConfig.model_type else encoder
        loaded = load_encoder(type(wrapped), name, wrapped.config, revision)
        wrapped.load_state_dict(loaded.state_dict())
    return adapted(encoder, flat, facts)


def model_on_backbone(
    model_class: type[PreTrainedModel],
    checkpoint: str | os.PathLike,
    out_indices: Sequence[int] | None,
    revision: str,
    **overrides: Any,
) -> PreTrainedModel:
    """A model whose configuration has a `backbone_config`, with this checkpoint's encoder in it; all else is new.

    overrides: other fields of its configuration.
    """
    backbone_config = encoder_config(checkpoint, out_indices, revision)
    model = model_class(model_class.config_class(backbone_config=backbone_config, **overrides))
    loaded = load_pretrained_backbone(checkpoint, out_indices, model.config.flat_maps, revision)
    model.backbone.encoder.load_state_dict(loaded.encoder.state_dict())
    return model.eval()


def encoder_config(
    name: str | os.PathLike, out_indices: Sequence[int] | None = None, revision: str = "main"
) -> PreTrainedConfig:
    """The configuration of a checkpoint's encoder, or of a model of timm; labels of a classifier are left out."""
    name = os.fspath(name)
    if is_timm_name(name):
        return TimmBackboneConfig(backbone=timm_name(name), out_indices=list(out_indices or [-1]))
    config = AutoConfig.from_pretrained(name, revision=revision)
    config = getattr(config, "backbone_config", None) or config
    config.id2label, config.label2id = {0: "LABEL_0", 1: "LABEL_1"}, {"LABEL_0": 0, "LABEL_1": 1}
    return adapted_config(config, out_indices)


def is_timm_name(name: str) -> bool:
    """Whether a name is timm's; a folder never is."""
    return not os.path.isdir(name) and is_timm_available() and timm.is_model(timm_name(name))


def timm_name(name: str) -> str:
    return name.removeprefix("timm/")


def load_encoder(
    encoder_class: type[nn.Module], name: str | os.PathLike, config: PreTrainedConfig, revision: str
) -> nn.Module:
    """The encoder in float32 with a checkpoint's weights; what it lacks is fresh, and listed in one line."""
    encoder, info = encoder_class.from_pretrained(
        name, config=config, revision=revision, dtype=torch.float32, output_loading_info=True
    )
    missing, total = sorted(info["missing_keys"]), len(encoder.state_dict())
    if 2 * len(missing) > total:
        raise ValueError(
            f"{name} holds {total - len(missing)} of the {total} tensors of {encoder_class.__name__}; it is no checkpoint of "
            f"this encoder. Missing are {', '.join(missing[:3])}, ... Give a checkpoint of a '{config.model_type}' model."
        )
    if missing:
        logger.info("%s does not hold %s: they are new and need training", name, ", ".join(missing))
    return encoder


def encoder_normalisation(
    name: str | os.PathLike, revision: str = "main"
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation that a checkpoint's images were normalised with; ImageNet's where it does not say."""
    name = os.fspath(name)
    if is_timm_name(name):
        settings = timm.get_pretrained_cfg(timm_name(name)).to_dict()
        return tuple(settings["mean"]), tuple(settings["std"])
    path = cached_file(
        name, "preprocessor_config.json", revision=revision, _raise_exceptions_for_missing_entries=False
    )
    settings = {}
    if path is not None:
        with open(path, encoding="utf-8") as file:
            settings = json.load(file)
    mean = settings.get("image_mean") or IMAGENET_DEFAULT_MEAN
    std = settings.get("image_std") or IMAGENET_DEFAULT_STD
    return tuple(mean), tuple(std)


__all__ = ["encoder_config", "encoder_normalisation", "load_pretrained_backbone", "model_on_backbone"]
