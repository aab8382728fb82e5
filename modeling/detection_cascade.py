"""Cascade Mask R-CNN (Cai and Vasconcelos, "Cascade R-CNN", TPAMI 2019), built from torchvision's parts.

Three stages of heads refine the boxes of the previous stage with an increasing IoU threshold for positive
samples. As in Table 6 of the MAFormer paper, each stage has a box head of four convolutions with batch norm
and one linear layer, class-specific boxes, and a mask head; the IoU thresholds are 0.5, 0.6 and 0.7, the loss
weights 1, 0.5 and 0.25. The box loss is torchvision's smooth L1, or GIoU as in mmdetection's configurations of
Swin, which such papers follow.

Legend: B batch, h, w height and width of a feature map, N boxes per image, R boxes of all images, K classes
including background.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.roi_heads import (
    RoIHeads,
    fastrcnn_loss,
    maskrcnn_inference,
    maskrcnn_loss,
)
from torchvision.ops import clip_boxes_to_image, generalized_box_iou_loss

from ..configuration.checked_config import choose, reject_unknown_options
from .detection import OPTIONS, PYRAMID_CHANNELS, mask_rcnn

OVERLAPS = (0.5, 0.6, 0.7)  # IoU with an object from which on a proposal is positive
BOX_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
LOSS_WEIGHTS = (1.0, 0.5, 0.25)
GIOU_WEIGHT = 10.0  # mmdetection's
SET_BY_STAGE = {
    *("box_head", "box_predictor", "mask_head", "mask_predictor"),
    *("box_fg_iou_thresh", "box_bg_iou_thresh", "bbox_reg_weights"),
}


def predict_boxes(
    stage: RoIHeads, features: dict[str, Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """Maps (B, 256, h, w), boxes (N, 4) per image -> logits (R, K), box offsets (R, 4 * K)."""
    return stage.box_predictor(stage.box_head(stage.box_roi_pool(features, boxes, sizes)))


def predict_masks(
    stage: RoIHeads, features: dict[str, Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]
) -> Tensor:
    """Maps (B, 256, h, w), boxes (N, 4) per image -> mask logits (R, K, 28, 28)."""
    return stage.mask_predictor(stage.mask_head(stage.mask_roi_pool(features, boxes, sizes)))


def refine(
    stage: RoIHeads, logits: Tensor, offsets: Tensor, boxes: list[Tensor], sizes: list[tuple[int, int]]
) -> list[Tensor]:
    """Logits (R, K), offsets (R, 4 * K), boxes (N, 4) per image -> refined boxes of the likeliest classes."""
    moved = stage.box_coder.decode(offsets.detach(), boxes)
    likeliest = logits[:, 1:].argmax(dim=1) + 1
    moved = moved[torch.arange(len(moved), device=moved.device), likeliest]
    per_image = moved.split([len(boxes_in_image) for boxes_in_image in boxes])
    return [clip_boxes_to_image(moved, size) for moved, size in zip(per_image, sizes, strict=True)]


def generalized_iou(
    stage: RoIHeads,
    offsets: Tensor,
    boxes: list[Tensor],
    labels: list[Tensor],
    offset_targets: list[Tensor],
) -> Tensor:
    """Offsets (R, 4 * K), and per image boxes (N, 4), labels (N,) and offsets of the objects (N, 4) -> scalar.

    The sum of 1 - GIoU of the positive boxes, over the number of all boxes.
    """
    label = torch.cat(labels)
    positive = (label > 0).nonzero()[:, 0]
    found = offsets.unflatten(1, (-1, 4))[positive, label[positive]]
    start, wanted = torch.cat(boxes)[positive], torch.cat(offset_targets)[positive]
    moved, objects = (stage.box_coder.decode_single(part, start) for part in (found, wanted))
    return GIOU_WEIGHT * generalized_box_iou_loss(moved, objects, reduction="sum") / label.numel()


class CascadeHeads(nn.Module):
    """Three of torchvision's `RoIHeads` in sequence, with the interface of one, and "smooth_l1" or "giou" for boxes."""

    def __init__(self, stages: Sequence[RoIHeads], box_loss: str = "smooth_l1") -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.uses_giou = choose("box loss", box_loss, {"smooth_l1": False, "giou": True})

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        sizes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Maps (B, 256, h, w), boxes (N, 4) and size per image -> detections, or losses in training."""
        if self.training:
            return [], self.losses(features, proposals, sizes, targets)
        return self.detections(features, proposals, sizes), {}

    def losses(
        self,
        features: dict[str, Tensor],
        boxes: list[Tensor],
        sizes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """The weighted sums over all stages of the class, box and mask loss."""
        total = dict.fromkeys(("loss_classifier", "loss_box_reg", "loss_mask"), 0.0)
        for stage, weight in zip(self.stages, LOSS_WEIGHTS, strict=True):
            boxes, matched, labels, offset_targets = stage.select_training_samples(boxes, targets)
            logits, offsets = predict_boxes(stage, features, boxes, sizes)
            of_classes, of_boxes = fastrcnn_loss(logits, offsets, labels, offset_targets)
            if self.uses_giou:
                of_boxes = generalized_iou(stage, offsets, boxes, labels, offset_targets)
            losses = (
                of_classes,
                of_boxes,
                self.mask_loss(stage, features, boxes, sizes, targets, (matched, labels)),
            )
            total = {name: total[name] + weight * loss for name, loss in zip(total, losses, strict=True)}
            boxes = refine(stage, logits, offsets, boxes, sizes)
        return total

    @staticmethod
    def mask_loss(
        stage: RoIHeads,
        features: dict[str, Tensor],
        boxes: list[Tensor],
        sizes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]],
        matches: tuple[list[Tensor], list[Tensor]],
    ) -> Tensor:
        """Mask loss of positive boxes; `matches` are index (N,) and label (N,) of each box's object."""
        held = [(label > 0).nonzero()[:, 0] for label in matches[1]]
        boxes = [boxes_in_image[where] for boxes_in_image, where in zip(boxes, held, strict=True)]
        matched = [match[where] for match, where in zip(matches[0], held, strict=True)]
        masks, labels = ([target[name] for target in targets] for name in ("masks", "labels"))
        return maskrcnn_loss(predict_masks(stage, features, boxes, sizes), boxes, masks, labels, matched)

    def detections(
        self, features: dict[str, Tensor], proposals: list[Tensor], sizes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Detections with the boxes of the last stage, and scores and masks averaged over all stages."""
        scores = 0.0
        for stage in self.stages:
            boxes = proposals
            logits, offsets = predict_boxes(stage, features, boxes, sizes)
            scores = scores + logits.softmax(dim=-1) / len(self.stages)
            proposals = refine(stage, logits, offsets, boxes, sizes)
        # torchvision applies a softmax, which maps log-probabilities to probabilities.
        found = stage.postprocess_detections(scores.log(), offsets, boxes, sizes)
        named = [
            {"boxes": boxes, "scores": scores, "labels": labels}
            for boxes, scores, labels in zip(*found, strict=True)
        ]
        votes = [
            maskrcnn_inference(predict_masks(stage, features, found[0], sizes), found[2])
            for stage in self.stages
        ]
        for image, masks in zip(named, zip(*votes, strict=True), strict=True):
            image["masks"] = torch.stack(masks).mean(dim=0)
        return named


def cascade_mask_rcnn(
    backbone: nn.Module, num_labels: int, box_loss: str = "smooth_l1", **options: Any
) -> MaskRCNN:
    """Builds Cascade Mask R-CNN on a backbone, with the interface of `mask_rcnn`.

    The recipe `maformer_small_cascade_mask_rcnn_3x_coco` of `contextseg-train`, and those for other sizes,
    have the paper's "3x" schedule.

    Args:
        backbone: As for `mask_rcnn`.
        num_labels: Number of object classes without background.
        box_loss: Loss of the boxes: "smooth_l1" of their offsets, or "giou" with mmdetection's weight of 10.
        **options: Arguments of torchvision's `MaskRCNN`, except those that each stage sets itself: heads,
            predictors, IoU thresholds of the boxes and `bbox_reg_weights`.

    Returns:
        The detector, with randomly initialized heads.

    Raises:
        ValueError: If `num_labels` is below 1, or there is no such option or loss.
    """
    reject_unknown_options("cascade_mask_rcnn", options, OPTIONS - SET_BY_STAGE)
    side = options["box_roi_pool"].output_size[0] if "box_roi_pool" in options else 7
    stages = []
    for overlap, weights in zip(OVERLAPS, BOX_WEIGHTS, strict=True):
        box_head = FastRCNNConvFCHead(
            (PYRAMID_CHANNELS, side, side), [PYRAMID_CHANNELS] * 4, [1024], norm_layer=nn.BatchNorm2d
        )
        stages.append(
            mask_rcnn(
                backbone,
                num_labels,
                box_head=box_head,
                box_fg_iou_thresh=overlap,
                box_bg_iou_thresh=overlap,
                bbox_reg_weights=weights,
                **options,
            )
        )
    model = stages[0]
    model.roi_heads = CascadeHeads([stage.roi_heads for stage in stages], box_loss)
    return model


__all__ = ["CascadeHeads", "cascade_mask_rcnn"]
