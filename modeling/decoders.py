"""The decoders by name, and how each is built from a configuration, with its classifier.

This file contains only the tables: one entry per decoder, with string keys, and the imports that the entries
need. The Hub export keeps only the entries that a model uses.
"""

from collections.abc import Callable

from torch import nn

from ..configuration.checked_config import choose
from ..configuration.decoding import DecodingConfig
from .decoder_nnformer import build_nnformer_decoder, finest_classifier
from .decoder_pyramid_unet import PyramidUnetDecoder
from .decoder_segdeformer import ContextMining, SegDeformerDecoder
from .decoder_semantic_fpn import SemanticFpnDecoder
from .decoder_transposed import CoarsestMap, ProgressiveDecoder
from .decoder_unet import build_unet, unet_classifier
from .decoder_upernet import UperNetDecoder
from .label_rows import TransposedClassifier

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
    "nnformer": lambda config, _, build_stage: build_nnformer_decoder(config, build_stage),
    "one_step": lambda *_: CoarsestMap(),
    "progressive": lambda _, backbone, __: ProgressiveDecoder(backbone.channels[-1], backbone.strides[-1]),
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
    "semantic_branch": lambda config, backbone, _: SemanticFpnDecoder(
        backbone.channels, config.decoder_hidden_size, use_pyramid=False
    ),
    "unet": lambda config, backbone, build_stage: choose(
        "Unet", "pyramid" if build_stage is None else "mirrored", UNETS
    )(config, backbone, build_stage),
    "upernet": lambda config, backbone, _: UperNetDecoder(backbone.channels, config.decoder_hidden_size),
}
# Decoders whose logits have full resolution build the classifier; all others share one, at the finest stride.
CLASSIFIERS: dict[str, Callable[[DecodingConfig, nn.Module, nn.Module], nn.Module]] = {
    "nnformer": lambda config, *_: finest_classifier(config),
    "one_step": lambda config, backbone, _: TransposedClassifier(
        backbone.channels[-1], config.num_labels, backbone.strides[-1], backbone.strides[-1]
    ),
    "progressive": lambda config, _, decoder: TransposedClassifier(
        decoder.out_channels, config.num_labels, 2, 2
    ),
    "unet": lambda config, *_: unet_classifier(config),
}
