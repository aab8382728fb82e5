"""Base class of the segmenters with two scales: a sharp local crop, and a wide context around it.

A family's backbone takes pairs of crops and returns the feature maps of both branches (`PairFeatures`). What
is predicted is the local crop. A whole image is cut into tiles with their contexts, so that everything that
takes a segmenter takes these too, for images of any size.

Legend: B batch, C channels, K labels, s side of a crop, H, W height and width of an image, T tiles.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BackboneOutput, SemanticSegmenterOutput
from transformers.utils.generic import can_return_tuple

from ..configuration.decoding import DecodingConfig
from .crop_pairs import context_labels_of, contexts_of, joined_tiles, tiles_of
from .losses import check_label_size, check_shapes
from .modeling_segmentation import SegmentationModel
from .pretrained import as_weights, check_images
from .windows import cropped

TILES_PER_PASS = 16


@dataclass
class PairFeatures(BackboneOutput):
    """Feature maps of pairs of crops.

    Attributes:
        feature_maps: Maps (B, C_i, h_i, w_i) of the local crops, fine to coarse.
        context_maps: What `context_logits` takes: by default, maps of the contexts, of the same shapes.
        hidden_states: Maps (B, C, h, w) of the local crops after each stage, on request.
        attentions: Attention probabilities, on request.
    """

    context_maps: tuple[Tensor, ...] | None = None


class PairScores(NamedTuple):
    """The logits of a batch of pairs, (B, K, h, w) each."""

    local: Tensor
    mid: Tensor | None = None  # SegDeformer's mid-level scores, None with other decoders
    auxiliary: Tensor | None = None  # of the auxiliary head; None without one, or without labels
    context: Tensor | None = None  # of the context branch; None without labels


class TwoScaleSegmentationModel(SegmentationModel):
    """A segmenter of local crops whose backbone also sees the context of each crop.

    A family implements `context_loss`, and `context_logits` if its context branch has heads of its own. Its backbone
    has `channels` and `strides`, and is called as `backbone(pixel_values, context_values, output_hidden_states=...,
    output_attentions=..., return_dict=True)`. It returns `PairFeatures`.
    """

    shares_context = False  # whether features of a context do not depend on the local crop
    uses_context_labels = False  # whether the loss of the context branch takes labels of the whole context

    def __init__(self, config: DecodingConfig, backbone: nn.Module, **options: Any) -> None:
        """Adds decoder, classifier and auxiliary head to a backbone; sets `config.logits_stride`."""
        super().__init__(config, backbone, **options)
        if config.crop_size % backbone.strides[0]:
            raise ValueError(
                f"crop_size is {config.crop_size}, but must be a multiple of {backbone.strides[0]}, the stride of the "
                "finest feature map, so that tiles can be put together."
            )

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        context_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        labels: Tensor | None = None,
        context_labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> SemanticSegmenterOutput:
        """(B, C, H, W) -> logits (B, K, H / stride, W / stride); with labels, also the loss.

        Args:
            pixel_values: (B, C, H, W), normalized by the image processor: local crops if there are
                `context_values`, else whole images, which are cut into tiles of `config.crop_size`.
            context_values: (B, C, H, W), for each local crop the area with the same center and
                `config.context_ratio` times its sides, reduced to its size; 0 outside the image. None cuts the
                contexts from `pixel_values`.
            pixel_mask: (B, H, W), 1 for image, 0 for padding, which counts as outside the image; None without
                padding.
            labels: (B, H, W), class ids; pixels with `config.semantic_loss_ignore_index` are ignored.
            context_labels: (B, H, W), class ids of the contexts, for families whose context branch learns from
                them. With whole images they are cut from `labels`.
            output_hidden_states: Whether to return the feature maps of every stage of the local branch.
            output_attentions: Whether to return attention probabilities; needs `attn_implementation="eager"`.
                With whole images their batch axis holds the tiles, row by row.

        Raises:
            ValueError: If a shape or label is wrong, or attentions are not available.
        """
        states, attentions = self.asked_outputs(output_hidden_states, output_attentions)
        check_images(self.config, pixel_values, pixel_mask, attentions)
        check_label_size(pixel_values, labels)
        check_context(pixel_values, context_values, labels, context_labels)
        pixel_values = inside_image(as_weights(self, pixel_values), pixel_mask)
        recorded = {"output_hidden_states": states, "output_attentions": attentions}
        if context_values is not None:
            return self.segment_pairs(
                pixel_values, as_weights(self, context_values), labels, context_labels, **recorded
            )
        return self.segment_tiles(pixel_values, labels, **recorded)

    def segment_pairs(
        self,
        pixel_values: Tensor,
        context: Any,
        labels: Tensor | None = None,
        context_labels: Tensor | None = None,
        **recorded: bool,
    ) -> SemanticSegmenterOutput:
        """(B, C, s, s) and what the backbone takes as their context -> logits of the local crops, and loss."""
        scores, outputs = self.score_pairs(pixel_values, context, labels is not None, **recorded)
        return SemanticSegmenterOutput(
            loss=None if labels is None else self.loss_of_pairs(scores, labels, context_labels),
            logits=scores.local,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def segment_tiles(
        self, pixel_values: Tensor, labels: Tensor | None = None, **recorded: bool
    ) -> SemanticSegmenterOutput:
        """(B, C, H, W) -> logits of whole images, put together from tiles; the loss is that of all tiles."""
        side, ratio = self.config.crop_size, self.config.context_ratio
        ignored = self.config.semantic_loss_ignore_index
        loss, size = None, tuple(pixel_values.shape[2:])
        pairs = in_passes(tiles_of(pixel_values, side), contexts_of(pixel_values, side, ratio))
        passes = [self.score_pairs(*pair, labels is not None, **recorded) for pair in pairs]
        scores = PairScores(*joined_passes([scores for scores, _ in passes]))
        if labels is not None:
            context_labels = None
            if self.uses_context_labels:
                context_labels = context_labels_of(labels, side, ratio, ignored)
            loss = self.loss_of_pairs(scores, tiles_of(labels[:, None], side, ignored)[:, 0], context_labels)
        states = [outputs.hidden_states or () for _, outputs in passes]
        attentions = [outputs.attentions or () for _, outputs in passes]
        return SemanticSegmenterOutput(
            loss=loss,
            logits=self.joined(scores.local, size),
            hidden_states=tuple(self.joined(state, size) for state in joined_passes(states)) or None,
            attentions=tuple(joined_passes(attentions)) or None,
        )

    def joined(self, tiles: Tensor, size: tuple[int, int]) -> Tensor:
        """Maps (T, C, h, w) of the tiles of images with `size` pixels -> maps (B, C, h', w') of the images."""
        return joined_tiles(tiles, size, self.config.crop_size)

    def score_pairs(
        self, pixel_values: Tensor, context: Any, has_labels: bool, **recorded: bool
    ) -> tuple[PairScores, PairFeatures]:
        """(B, C, s, s) and their context -> logits of the local crops, and all that the loss needs."""
        outputs = self.backbone(pixel_values, context, **recorded, return_dict=True)
        decoded = self.decoder(outputs.feature_maps)
        cells = [ceil_div(side, self.config.logits_stride) for side in pixel_values.shape[2:]]
        scores = PairScores(cropped(self.classifier(decoded.feature_map), cells), decoded.mid_logits)
        if has_labels:
            auxiliary = self.auxiliary_logits(outputs.feature_maps)
            context = self.context_logits(outputs.context_maps)
            context = None if context is None else cropped(context, cells)
            scores = scores._replace(auxiliary=auxiliary, context=context)
        return scores, outputs

    def context_logits(self, context_maps: tuple[Tensor, ...]) -> Tensor | None:
        """Maps of the context branch -> its logits (B, K, h, w), for the loss; by the same heads as here.

        None if the context branch has no loss.
        """
        return self.classifier(self.decoder(context_maps).feature_map)

    def loss_of_pairs(self, scores: PairScores, labels: Tensor, context_labels: Tensor | None) -> Tensor:
        """Logits of all pairs, (B, s, s), (B, s, s) or None -> scalar, the loss of both branches."""
        local = self.sum_of_losses(scores.local, scores.mid, scores.auxiliary, labels)
        return local + self.context_loss(scores, labels, context_labels)

    def context_loss(self, scores: PairScores, labels: Tensor, context_labels: Tensor | None) -> Tensor:
        """Logits of all pairs, (B, s, s), (B, s, s) or None -> scalar, the weighted loss of the context branch.

        Args:
            scores: Logits; `scores.context` is what `context_logits` returned.
            labels: Class ids of the local crops.
            context_labels: Class ids of the contexts; None if the caller has none, or the family takes none.
        """
        raise NotImplementedError


def check_context(
    pixel_values: Tensor, context_values: Tensor | None, labels: Tensor | None, context_labels: Tensor | None
) -> None:
    """Raises ValueError unless contexts and their labels have the shapes of the local crops and theirs."""
    if labels is not None:
        check_shapes(pixel_values, labels)
    if context_values is not None and (found := shape_of(context_values)) != tuple(pixel_values.shape):
        raise ValueError(
            f"context_values is {found}, but must be a tensor of the shape of pixel_values, "
            f"{tuple(pixel_values.shape)}: the area around each local crop, reduced to the size of the crop. Leave it "
            "out to pass whole images."
        )
    if context_labels is None:
        return
    if context_values is None or labels is None:
        raise ValueError(
            "context_labels are labels of context_values, and need labels too. Leave them out for whole images, from "
            "whose labels they are cut."
        )
    if (found := shape_of(context_labels)) != tuple(labels.shape):
        raise ValueError(
            f"context_labels is {found}, but must be a tensor of the shape of labels, {tuple(labels.shape)}: class ids "
            "of the whole context, reduced to the size of the crop."
        )


def shape_of(value: Any) -> tuple[int, ...] | str:
    """The shape of a tensor, or the name of another type."""
    return tuple(value.shape) if isinstance(value, Tensor) else f"of type {type(value).__name__}"


def inside_image(pixel_values: Tensor, pixel_mask: Tensor | None) -> Tensor:
    """(B, C, H, W), mask (B, H, W) or None -> the same images, 0 where the mask is."""
    return pixel_values if pixel_mask is None else pixel_values * (pixel_mask[:, None] != 0)


def ceil_div(size: int, step: int) -> int:
    """Ceiling division, in the form that torch.export can solve."""
    return (size + step - 1) // step


def in_passes(*batches: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """(T, ...) each -> at most `TILES_PER_PASS` of each at a time; all at once in compiled programs."""
    if torch.compiler.is_compiling():
        return iter([batches])
    return zip(*(batch.split(TILES_PER_PASS) for batch in batches), strict=True)


def joined_passes(passes: Sequence[Sequence[Tensor | None]]) -> list[Tensor | None]:
    """The tensors (N, ...) or None of each pass -> the same of all passes, (T, ...)."""
    return [None if parts[0] is None else torch.cat(parts) for parts in zip(*passes, strict=True)]


__all__ = ["PairFeatures", "PairScores", "TwoScaleSegmentationModel"]
