"""Builds any encoder as a backbone with a uniform interface.

Supported are our backbones, those of transformers (every AutoBackbone, and SegFormer's MiT) and timm, and
those that users register with AutoBackbone.
"""

from collections.abc import Callable

from torch import nn
from transformers import PreTrainedConfig

from ..configuration.checked_config import choose
from .any_backbone import AnyBackbone, adapted, foreign_backbone
from .modeling_cswin import CswinBackbone
from .modeling_glam import GlamBackbone
from .modeling_glam_swin import GlamSwinBackbone
from .modeling_maformer import MaformerBackbone

# Keyed by `model_type`, which is the same in every copy of a configuration class.
OWN_BACKBONES: dict[str, Callable[[PreTrainedConfig], nn.Module]] = {
    "cswin": CswinBackbone,
    "glam": GlamBackbone,
    "glam_swin": GlamSwinBackbone,
    "maformer": MaformerBackbone,
}


def build_backbone(backbone_config: PreTrainedConfig, flat: str = "keep") -> AnyBackbone:
    """Builds a backbone with random weights from any encoder configuration.

    Args:
        backbone_config: Configuration of one of our backbones, of a backbone in transformers, or a
            `TimmBackboneConfig`.
        flat: What to do with the single-stride feature maps of plain vision transformers: "keep" leaves them
            unchanged, "pyramid" adds layers that turn them into strides 4, 8, 16 and 32 (see
            `FeatureInfo.pyramid_strides`).

    Returns:
        A module whose `forward` returns `feature_maps`, a tuple of (B, C_i, H/s_i, W/s_i), fine to coarse.

    Raises:
        ValueError: If the encoder does not run, timm has no model of this name, or `flat` is unknown.
    """
    origin = "ours" if backbone_config.model_type in OWN_BACKBONES else "foreign"
    return choose("backbones that are", origin, BACKBONE_BUILDERS)(backbone_config, flat)


def own_backbone(backbone_config: PreTrainedConfig, flat: str) -> AnyBackbone:
    """One of our backbones in the adapter."""
    build = choose("backbone", backbone_config.model_type, OWN_BACKBONES)
    return adapted(build(backbone_config), flat)


BACKBONE_BUILDERS: dict[str, Callable[[PreTrainedConfig, str], AnyBackbone]] = {
    "ours": own_backbone,
    "foreign": foreign_backbone,
}


__all__ = ["AnyBackbone", "build_backbone"]
