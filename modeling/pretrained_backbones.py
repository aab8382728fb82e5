"""Backbones with pretrained weights: transformers checkpoints, ours included, and timm models by name."""

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

from ..configuration.backbone_configs import changed_backbone
from .any_backbone import AnyBackbone, adapted
from .backbone_building import adapted_config, build_encoder
from .backbone_info import measure
from .backbones import OWN_BACKBONES
from .input_channels import fit_stem

if is_timm_available():
    import timm

logger = logging.getLogger(__name__)


def load_pretrained_backbone(
    name: str | os.PathLike,
    out_indices: Sequence[int] | None = None,
    flat: str = "keep",
    revision: str = "main",
) -> AnyBackbone:
    """Loads the encoder of a checkpoint as a backbone.

    `encoder_config` with the same arguments returns the `backbone_config` of a model with this backbone.

    Args:
        name: Local folder, or name on the Hub, of a transformers checkpoint with any head; or the name of a
            timm model, such as "resnet50.a1_in1k" or "timm/resnet50.a1_in1k".
        out_indices: Stages whose feature maps are used; None leaves the choice to `build_backbone`.
        flat: What to do with feature maps of a plain vision transformer, see `build_backbone`.
        revision: Branch, tag or commit on the Hub.

    Returns:
        A module from images (B, C, H, W) to `feature_maps` (B, C_i, h_i, w_i), fine to coarse.

    Raises:
        ValueError: If the checkpoint does not hold weights of the encoder.
    """
    return loaded_backbone(name, encoder_config(name, out_indices, revision), flat, revision)


def loaded_backbone(
    name: str | os.PathLike, config: PreTrainedConfig, flat: str, revision: str
) -> AnyBackbone:
    """Builds a backbone from its configuration, with the weights of a checkpoint."""
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
    """Builds a model with the pretrained encoder of a checkpoint; everything else is newly initialized.

    Args:
        model_class: Class of the model, whose configuration has a `backbone_config`.
        checkpoint: As `name` of `load_pretrained_backbone`.
        out_indices: Stages whose feature maps are used.
        revision: Branch, tag or commit on the Hub.
        **overrides: Other fields of the configuration; with `num_channels`, the first convolution is adapted. A
            dictionary `backbone_config` changes fields of the encoder.
    """
    config = encoder_config(checkpoint, out_indices, revision)
    changes = overrides.pop("backbone_config", None)
    if changes is not None:
        config = changed_backbone(config, changes)
    model = model_class(model_class.config_class(backbone_config=config, **overrides))
    loaded = loaded_backbone(checkpoint, config, model.config.used_flat_maps, revision)
    encoder = model.backbone.encoder
    encoder.load_state_dict(fit_stem(loaded.encoder.state_dict(), encoder.state_dict()))
    return model.eval()


def encoder_config(
    name: str | os.PathLike, out_indices: Sequence[int] | None = None, revision: str = "main"
) -> PreTrainedConfig:
    """Returns the configuration of the encoder of a checkpoint, or of a timm model, without class labels.

    Args:
        name: Local folder, or name on the Hub, of a transformers checkpoint with any head; or the name of a
            timm model.
        out_indices: Stages whose feature maps are used; None keeps the configured ones.
        revision: Branch, tag or commit on the Hub.
    """
    name = os.fspath(name)
    if is_timm_name(name):
        return TimmBackboneConfig(backbone=timm_name(name), out_indices=list(out_indices or [-1]))
    config = AutoConfig.from_pretrained(name, revision=revision)
    config = getattr(config, "backbone_config", None) or config
    config.id2label, config.label2id = {0: "LABEL_0", 1: "LABEL_1"}, {"LABEL_0": 0, "LABEL_1": 1}
    return adapted_config(config, out_indices)


def is_timm_name(name: str) -> bool:
    """Whether a name is that of a timm model; a local folder takes precedence."""
    return not os.path.isdir(name) and is_timm_available() and timm.is_model(timm_name(name))


def timm_name(name: str) -> str:
    return name.removeprefix("timm/")


def load_encoder(
    encoder_class: type[nn.Module], name: str | os.PathLike, config: PreTrainedConfig, revision: str
) -> nn.Module:
    """Loads an encoder in float32; tensors missing in the checkpoint are newly initialized and logged."""
    encoder, info = encoder_class.from_pretrained(
        name, config=config, revision=revision, dtype=torch.float32, output_loading_info=True
    )
    missing, total = sorted(info["missing_keys"]), len(encoder.state_dict())
    if 2 * len(missing) > total:
        raise ValueError(
            f"{name} has {total - len(missing)} of the {total} tensors of {encoder_class.__name__}: "
            f"it is not a checkpoint of this encoder. Missing: {', '.join(missing[:3])}, ... "
            f"Pass a checkpoint of a '{config.model_type}' model."
        )
    if missing:
        logger.info("%s has no %s: newly initialized, training needed", name, ", ".join(missing))
    return encoder


def encoder_normalization(
    name: str | os.PathLike, revision: str = "main"
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and std, one value per channel, for normalizing the images of a pretrained encoder.

    Args:
        name: Local folder, or name on the Hub, of a transformers checkpoint; or the name of a timm model.
        revision: Branch, tag or commit on the Hub.

    Returns:
        (mean, std) for pixel values from 0 to 1; those of ImageNet if the checkpoint does not specify them.
    """
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


__all__ = ["encoder_config", "encoder_normalization", "load_pretrained_backbone", "model_on_backbone"]
