"""SegDeformer (Shi et al., "A Transformer-Based Decoder for Semantic Segmentation with Multi-level Context Mining",
ECCV 2022): internal and external context mining over any backbone.

Legend: B batch, K labels, H, W image height and width.
"""

import os
from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor

from ..configuration.configuration_segdeformer import SegDeformerConfig
from .backbones import build_backbone
from .blocks import Decoded
from .modeling_segmentation import SegmentationModel
from .pretrained import library_module


class SegDeformerForSemanticSegmentation(SegmentationModel):
    """Any backbone with the SegDeformer decoder; `config.decoder` may name another one for comparison."""

    config: SegDeformerConfig

    def __init__(self, config: SegDeformerConfig) -> None:
        super().__init__(config, build_backbone(config.backbone_config, config.flat_maps))

    def compute_loss(
        self, logits: Tensor, decoded: Decoded, feature_maps: tuple[Tensor, ...], labels: Tensor
    ) -> Tensor:
        """As every segmenter's; in training, momentum tokens learn the batch's class means."""
        if self.training and decoded.internal_map is not None:
            self.decoder.update_tokens(decoded.internal_map, labels, self.config.semantic_loss_ignore_index)
        return super().compute_loss(logits, decoded, feature_maps, labels)

    @classmethod
    def from_backbone(
        cls,
        checkpoint: str | os.PathLike,
        out_indices: Sequence[int] | None = None,
        revision: str = "main",
        **overrides: Any,
    ) -> Self:
        """A model on an encoder's pretrained weights, with a new decoder.

        checkpoint: folder, or name on the Hub, of an encoder in transformers' layout, whatever head it has; or a model of
            timm, such as "resnet50.a1_in1k". `encoder_normalisation` tells the mean and standard deviation that its images
            want.
        out_indices: stages whose feature maps are used; by default one for each stride.
        revision: branch, tag or commit on the Hub.
        overrides: fields of the configuration, such as `id2label` or `neck`.
        """
        backbones = library_module("modeling.pretrained_backbones")
        return backbones.model_on_backbone(cls, checkpoint, out_indices, revision, **overrides)

    @classmethod
    def from_segformer(cls, checkpoint: str | os.PathLike, revision: str = "main", **overrides: Any) -> Self:
        """A model with the encoder and the all-MLP decoder of a SegFormer checkpoint; the context mining is new.

        checkpoint: folder, or name on the Hub such as "nvidia/segformer-b0-finetuned-ade-512-512".
        revision: branch, tag or commit on the Hub.
        overrides: fields of the configuration, such as `id2label`; sizes are the checkpoint's.
        """
        segformer = library_module("modeling.segformer_checkpoints")
        return segformer.model_from_segformer(cls, checkpoint, revision, **overrides)


__all__ = ["SegDeformerForSemanticSegmentation"]
