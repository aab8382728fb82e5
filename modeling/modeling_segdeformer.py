"""SegDeformer (Shi et al., "A Transformer-Based Decoder for Semantic Segmentation with Multi-level Context
Mining", ECCV 2022): internal and external context mining over any backbone.

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
    """Any backbone with the SegDeformer decoder; `config.decoder` can name another decoder for comparison.

    Args:
        config: Configuration of backbone, decoder and loss; `num_labels` or `id2label` sets the classes.
    """

    config: SegDeformerConfig

    def __init__(self, config: SegDeformerConfig) -> None:
        super().__init__(config, build_backbone(config.backbone_config, config.used_flat_maps))

    def compute_loss(
        self, logits: Tensor, decoded: Decoded, feature_maps: tuple[Tensor, ...], labels: Tensor
    ) -> Tensor:
        """(B, K, h, w), ..., (B, H, W) -> scalar, the weighted sum of main, mid-level and auxiliary loss.

        In training mode (of the decoder) it also updates momentum tokens with the class means of the batch.

        Args:
            logits: Class scores (B, K, h, w).
            decoded: Output of the decoder.
            feature_maps: Feature maps of the encoder (B, C, ., .), fine to coarse.
            labels: Class ids (B, H, W).

        Returns:
            The loss, a scalar.
        """
        if self.decoder.training and decoded.internal_map is not None:
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
        """Builds a segmenter on a pretrained encoder; the decoder is newly initialized.

        `encoder_normalization` returns the mean and std for normalizing its images.

        Args:
            checkpoint: Local folder, or name on the Hub, of a transformers checkpoint of the encoder with any
                head; or the name of a timm model, such as "resnet50.a1_in1k".
            out_indices: Stages whose feature maps are used; by default the last one of each stride.
            revision: Branch, tag or commit on the Hub.
            **overrides: Configuration fields to set, such as `id2label` or `neck`.

        Returns:
            The model in evaluation mode.

        Raises:
            ValueError: If the checkpoint does not hold weights of the encoder.
            ImportError: If contextseg is not installed, in the code of a Hub repository.
        """
        backbones = library_module("modeling.pretrained_backbones")
        return backbones.model_on_backbone(cls, checkpoint, out_indices, revision, **overrides)

    @classmethod
    def from_segformer(cls, checkpoint: str | os.PathLike, revision: str = "main", **overrides: Any) -> Self:
        """Loads the encoder and the all-MLP decoder of a SegFormer checkpoint; context mining is new.

        Args:
            checkpoint: Local folder, or name on the Hub such as "nvidia/segformer-b0-finetuned-ade-512-512".
            revision: Branch, tag or commit on the Hub.
            **overrides: Configuration fields to set, such as `id2label`. All others are taken from the
                checkpoint where it has them.

        Returns:
            The model in evaluation mode.

        Raises:
            ValueError: If the checkpoint is not a SegFormer, or its decoder has another width than the
                model's.
            ImportError: If contextseg is not installed, in the code of a Hub repository.
        """
        segformer = library_module("modeling.segformer_checkpoints")
        return segformer.model_from_segformer(cls, checkpoint, revision, **overrides)


__all__ = ["SegDeformerForSemanticSegmentation"]
