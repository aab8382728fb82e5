"""Relay tokens (Perron et al., "Adapting Vision Transformers to Ultra-High Resolution Semantic Segmentation with Relay
Tokens", TMLR 2026): a sharp local crop and its wide context pass the same blocks, and a few learned tokens carry
information from one to the other.

The context is supervised within the footprint of the local crop only, as in the authors' code, also with what the
local crop itself predicts (`scale_losses.py`). The order in which a block updates the tokens is that of the paper;
`relay_update="mean"` is that of their published ViT and SwinV2.

Legend: B batch, K labels, C channels, s side of both crops.
"""

import os
from typing import Any, Self

from torch import Tensor

from ..configuration.configuration_relay import RelayConfig
from .modeling_relay_backbone import RelayBackbone, RelayPreTrainedModel
from .pretrained import library_module
from .scale_losses import scale_losses
from .two_scale import PairScores, TwoScaleSegmentationModel


class RelayForSemanticSegmentation(TwoScaleSegmentationModel, RelayPreTrainedModel):
    """ViT or Swin V2 with relay tokens and any decoder, by default one transposed convolution.

    `forward` takes pairs of crops, or whole images, which it cuts into tiles with their contexts. Decoder and
    classifier serve both crops; the logits of the contexts are computed for the loss only, which does not need
    `context_labels`.

    Args:
        config: Configuration of encoder, decoder and loss; `num_labels` or `id2label` sets the classes.
    """

    def __init__(self, config: RelayConfig) -> None:
        super().__init__(config, RelayBackbone(config))

    @classmethod
    def from_backbone(cls, checkpoint: str | os.PathLike, revision: str = "main", **overrides: Any) -> Self:
        """Starts from the weights of a Swin V2 or ViT of transformers, as the authors do.

        Both crops get its patch embedding; relay tokens and decoder are newly initialized.

        Args:
            checkpoint: Local folder, or name on the Hub such as "microsoft/swinv2-small-patch4-window8-256".
            revision: Branch, tag or commit on the Hub.
            **overrides: Configuration fields to set, such as `id2label` or `num_relay_tokens`.

        Returns:
            The model in evaluation mode.

        Raises:
            ValueError: If the checkpoint is neither a Swin V2 nor a ViT, or its tensors do not fit the model.
            FileNotFoundError: If the checkpoint has no weights.
            ImportError: If contextseg is not installed, in the code of a Hub repository.
        """
        checkpoints = library_module("modeling.relay_checkpoints")
        return checkpoints.model_from_encoder(cls, checkpoint, revision, **overrides)

    def context_loss(self, scores: PairScores, labels: Tensor, context_labels: Tensor | None) -> Tensor:  # noqa: ARG002
        """Logits of all pairs, (B, s, s), not used -> scalar, the weighted losses of the context's logits."""
        config = self.config
        losses = scale_losses(
            scores.local,
            scores.context,
            labels,
            ratio=config.context_ratio,
            ignore_index=config.semantic_loss_ignore_index,
            detach_consistency=config.detach_consistency,
        )
        return config.global_loss_weight * losses.context + config.consistency_weight * losses.consistency


__all__ = ["RelayForSemanticSegmentation"]
