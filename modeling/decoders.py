"""The decoders by name, and how each is built from a configuration.

This file holds the table and nothing else: one entry a decoder, with string keys, and only the imports that the entries need.
"""

from collections.abc import Callable

from torch import nn

from ..configuration.decoding import DecodingConfig
from .decoder_segdeformer import ContextMining, SegDeformerDecoder
from .decoder_semantic_fpn import SemanticFpnDecoder
from .decoder_upernet import UperNetDecoder

# From a configuration and the channels of the feature maps, fine to coarse, to a decoder.
DECODERS: dict[str, Callable[[DecodingConfig, tuple[int, ...]], nn.Module]] = {
    "segdeformer": lambda config, channels: SegDeformerDecoder(
        config,
        channels,
        config.decoder_hidden_size,
        config.num_labels,
        ContextMining(reduction_ratio=config.reduction_ratio),
    ),
    "semantic_fpn": lambda config, channels: SemanticFpnDecoder(channels, config.decoder_hidden_size),
    "upernet": lambda config, channels: UperNetDecoder(channels, config.decoder_hidden_size),
}
