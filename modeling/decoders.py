"""The decoders by name, and how each is built from a configuration.

This file contains only the tables: one entry per decoder, with string keys, and the imports that the entries
need. The Hub export keeps only the entries that a model uses.
"""

from collections.abc import Callable

from torch import nn

from ..configuration.checked_config import choose
from ..configuration.decoding import DecodingConfig
from .decoder_pyramid_unet import PyramidUnetDecoder
from .decoder_segdeformer import ContextMining, SegDeformerDecoder
from .decoder_semantic_fpn import SemanticFpnDecoder
from .decoder_unet import build_unet
from .decoder_upernet import UperNetDecoder

# Each entry builds a decoder, `forward(feature_maps, pixel_mask) -> Decoded`, from the configuration, the
# backbone, whose `channels` and `strides` are those of its feature maps, fine to coarse, and a function that
# builds an encoder stage from its index (None if the encoder cannot be mirrored).
BuildStage = Callable[[int], nn.Module] | None
Build = Callable[[DecodingConfig, nn.Module, BuildStage], nn.Module]
UNETS: dict[str, Build] = {
    "mirrored": lambda config, _, build_stage: build_unet(config, build_stage),
    "pyramid": lambda config, backbone, _: PyramidUnetDecoder(
        backbone.channels, backbone.strides[0], config.decoder_hidden_size
    ),
}
DECODERS: dict[str, Build] = {
    "segdeformer": lambda config, backbone, _: SegDeformerDecoder(
        config,
        backbone.channels,
        config.decoder_hidden_size,
        config.num_labels,
        ContextMining(**config.context_mining()),
    ),
    "semantic_fpn": lambda config, backbone, _: SemanticFpnDecoder(
        backbone.channels, config.decoder_hidden_size
    ),
    "unet": lambda config, backbone, build_stage: choose(
        "Unet", "pyramid" if build_stage is None else "mirrored", UNETS
    )(config, backbone, build_stage),
    "upernet": lambda config, backbone, _: UperNetDecoder(backbone.channels, config.decoder_hidden_size),
}
