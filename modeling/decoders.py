"""The decoders by name, and how each is built from a configuration.

This file contains only the table: one entry per decoder, with string keys, and the imports that the entries
need. The Hub export keeps only the entries that a model uses.
"""

from collections.abc import Callable

from torch import nn

from ..configuration.decoding import DecodingConfig
from .decoder_segdeformer import ContextMining, SegDeformerDecoder
from .decoder_semantic_fpn import SemanticFpnDecoder
from .decoder_unet import build_unet
from .decoder_upernet import UperNetDecoder

# Each entry builds a decoder, `forward(feature_maps, pixel_mask) -> Decoded`, from the configuration, the
# channels of the feature maps, fine to coarse, and a function that builds an encoder stage from its index
# (None if it cannot be mirrored).
BuildStage = Callable[[int], nn.Module] | None
DECODERS: dict[str, Callable[[DecodingConfig, tuple[int, ...], BuildStage], nn.Module]] = {
    "segdeformer": lambda config, channels, _: SegDeformerDecoder(
        config,
        channels,
        config.decoder_hidden_size,
        config.num_labels,
        ContextMining(**config.context_mining()),
    ),
    "semantic_fpn": lambda config, channels, _: SemanticFpnDecoder(channels, config.decoder_hidden_size),
    "unet": lambda config, _, build_stage: build_unet(config, build_stage),
    "upernet": lambda config, channels, _: UperNetDecoder(channels, config.decoder_hidden_size),
}
