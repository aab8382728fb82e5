"""Mask R-CNN and Cascade Mask R-CNN as a transformers model: built from torchvision's modules by `mask_rcnn`
and `cascade_mask_rcnn`, with the inputs and outputs of transformers' object detectors.

The image processor (`DetrImageProcessor`) resizes and normalizes images and returns a `pixel_mask` for padded
batches; its `post_process_object_detection` and the object-detection pipeline accept the outputs.

Legend: B batch, C channels, H, W height and width of the padded images, K labels, N objects of one image,
Q largest number of detections in an image of the batch.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FeaturePyramidNetwork
from transformers import initialization as init
from transformers.image_transforms import center_to_corners_format, corners_to_center_format
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from ..configuration.configuration_mask_rcnn import MaskRcnnConfig
from .backbones import build_backbone
from .detection import fused_maps, mask_rcnn
from .detection_cascade import cascade_mask_rcnn
from .pretrained import ContextsegPreTrainedModel, check_images, library_module

SIDE_MULTIPLE = 32  # padded image sides, as in torchvision: keeps the strides of the anchors integers
# How torchvision's constructors initialize the convolutions of its modules; biases start at zero.
CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
KAIMING_NORMAL = partial(init.kaiming_normal_, mode="fan_out", nonlinearity="relu")
CONVOLUTION_WEIGHTS = {
    FeaturePyramidNetwork: partial(init.kaiming_uniform_, a=1),
    RPNHead: partial(init.normal_, std=0.01),
    FastRCNNConvFCHead: KAIMING_NORMAL,
    MaskRCNNHeads: KAIMING_NORMAL,
    MaskRCNNPredictor: KAIMING_NORMAL,
}


@dataclass
class InstanceSegmentationOutput(ModelOutput):
    """Output of `MaskRcnnForObjectDetection`: losses in training mode, detections in evaluation mode.

    Args:
        loss: Scalar, the sum of `loss_dict`. Training mode only.
        loss_dict: The losses of torchvision's detector by name. Training mode only.
        logits: (B, Q, K + 1). Their softmax gives the score of a detection at its class and the remaining
            probability at "no object", the last class. Images with fewer than Q detections are padded with
            rows that are all "no object".
        pred_boxes: (B, Q, 4), center x, center y, width and height, relative to the image size without
            padding.
        roi_masks: (B, Q, 28, 28), probability of the object in each cell of its box.
    """

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    pred_boxes: Tensor | None = None
    roi_masks: Tensor | None = None


class MaskRcnnForObjectDetection(ContextsegPreTrainedModel):
    """Mask R-CNN or Cascade Mask R-CNN on any backbone: predicts boxes, classes and masks of objects.

    Args:
        config: Configuration of backbone and detector; `num_labels` or `id2label` sets the classes.
    """

    config: MaskRcnnConfig
    _keep_in_fp32_modules_strict = {"rpn", "roi_heads"}  # half precision is too coarse for box coordinates

    def __init__(self, config: MaskRcnnConfig) -> None:
        super().__init__(config)
        build = mask_rcnn
        if config.use_cascade:
            build = partial(cascade_mask_rcnn, box_loss=config.cascade_box_loss)
        backbone = build_backbone(config.trained_backbone_config, config.used_flat_maps)
        detector = build(backbone, config.num_labels, **config.detector_options)
        self.backbone = backbone
        self.fpn, self.rpn, self.roi_heads = detector.backbone.fpn, detector.rpn, detector.roi_heads
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initializes as torchvision's constructors do; `init` leaves weights that were loaded unchanged."""
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            module.reset_parameters()
        for part, fill in CONVOLUTION_WEIGHTS.items():
            if isinstance(module, CONVOLUTIONS) and is_within(module, part, self):
                fill(module.weight)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        labels: Sequence[Mapping[str, Tensor]] | None = None,
    ) -> InstanceSegmentationOutput:
        """(B, C, H, W), optional (B, H, W) -> losses in training mode, detections (B, Q, ...) otherwise.

        Args:
            pixel_values: (B, C, H, W), normalized by the image processor.
            pixel_mask: (B, H, W), 1 for image, 0 for padding right and below; None without padding.
            labels: One mapping per image, as `DetrImageProcessor` makes them from COCO annotations:
                `class_labels` (N,), `boxes` (N, 4), center x, center y, width and height relative to W and H,
                and `masks` (N, H, W). Required in training mode. Ignored in evaluation mode, because
                torchvision computes losses in training mode only.

        Returns:
            `loss` and `loss_dict` in training mode; `logits`, `pred_boxes` and `roi_masks` in evaluation
            mode.

        Raises:
            ValueError: If a shape is wrong, or labels are missing or invalid in training mode.
        """
        check_images(self.config, pixel_values, pixel_mask)
        targets = detection_targets(labels, pixel_values, self.config.num_labels) if self.training else None
        images = ImageList(padded(pixel_values), image_sizes(pixel_values, pixel_mask))
        feature_maps = fused_maps(self.fpn, self.backbone(images.tensors).feature_maps)
        with torch.autocast(pixel_values.device.type, enabled=False):
            feature_maps = {level: feature_map.float() for level, feature_map in feature_maps.items()}
            proposals, losses = self.rpn(images, feature_maps, targets)
            found, head_losses = self.roi_heads(feature_maps, proposals, images.image_sizes, targets)
        if self.training:
            losses = {**losses, **head_losses}
            return InstanceSegmentationOutput(loss=sum(losses.values()), loss_dict=losses)
        return detection_outputs(found, images.image_sizes, self.config.num_labels)

    def instances(
        self,
        outputs: InstanceSegmentationOutput,
        target_sizes: Sequence[tuple[int, int]],
        threshold: float = 0.5,
    ) -> list[dict[str, Tensor]]:
        """Returns the detections with a score above a threshold, in pixels of the original images.

        Args:
            outputs: Output of `forward` in evaluation mode.
            target_sizes: (height, width) of each image, in pixels.
            threshold: Detections with a score above it are kept; from 0 to 1.

        Returns:
            One dict per image: `scores` (N,), `labels` (N,), `boxes` (N, 4) as left, top, right, bottom in
            pixels, and boolean `masks` (N, height, width).
        """
        found = []
        for size, logits, shares, roi_masks in zip(
            target_sizes, outputs.logits, outputs.pred_boxes, outputs.roi_masks, strict=True
        ):
            scores, labels = logits.softmax(-1)[:, :-1].max(-1)
            kept = scores > threshold
            boxes = center_to_corners_format(shares[kept]) * box_scale(size, shares)
            masks = pasted(roi_masks[kept], boxes, size)
            found.append({"scores": scores[kept], "labels": labels[kept], "boxes": boxes, "masks": masks})
        return found

    @classmethod
    def from_backbone(
        cls,
        checkpoint: str | os.PathLike,
        out_indices: Sequence[int] | None = None,
        revision: str = "main",
        **overrides: Any,
    ) -> Self:
        """Builds a detector on a pretrained encoder; the heads are newly initialized.

        `encoder_normalization` returns the mean and std for normalizing its images.

        Args:
            checkpoint: Local folder, or name on the Hub, of a transformers checkpoint of the encoder with any
                head, for example one of our classifiers; or the name of a timm model.
            out_indices: Stages whose feature maps are used; by default the last one of each stride.
            revision: Branch, tag or commit on the Hub.
            **overrides: Configuration fields to set, such as `id2label` or `use_cascade`.

        Returns:
            The model in evaluation mode.

        Raises:
            ValueError: If the checkpoint does not hold weights of the encoder.
            ImportError: If contextseg is not installed, in the code of a Hub repository.
        """
        backbones = library_module("modeling.pretrained_backbones")
        return backbones.model_on_backbone(cls, checkpoint, out_indices, revision, **overrides)


def is_within(layer: nn.Module, kind: type[nn.Module], model: nn.Module) -> bool:
    """Whether a layer is inside a module of this kind: `_init_weights` may not see that module itself."""
    parts = (part for part in model.modules() if isinstance(part, kind))
    return any(layer is inner for part in parts for inner in part.modules())


def image_sizes(pixel_values: Tensor, pixel_mask: Tensor | None) -> list[tuple[int, int]]:
    """(B, C, H, W), optional mask (B, H, W), 1 for image (top left) -> (height, width) of each image."""
    if pixel_mask is None:
        return [tuple(pixel_values.shape[-2:])] * len(pixel_values)
    heights, widths = pixel_mask.any(2).sum(1).tolist(), pixel_mask.any(1).sum(1).tolist()
    return list(zip(heights, widths, strict=True))


def padded(pixel_values: Tensor) -> Tensor:
    """(B, C, H, W) -> the same, zero-padded right and below to multiples of 32."""
    height, width = pixel_values.shape[-2:]
    return F.pad(pixel_values, (0, -width % SIDE_MULTIPLE, 0, -height % SIDE_MULTIPLE))


def box_scale(size: Sequence[int], like: Tensor) -> Tensor:
    """(height, width) -> (4,), the factors from relative boxes to pixels."""
    height, width = size
    return like.new_tensor([width, height, width, height])


def detection_targets(
    labels: Sequence[Mapping[str, Tensor]] | None, pixel_values: Tensor, num_labels: int
) -> list[dict[str, Tensor]]:
    """Labels of transformers' detectors, (B, C, H, W) -> torchvision's targets.

    A target has `boxes` (N, 4), left, top, right, bottom in pixels, `labels` (N,) from 1 on and `masks`
    (N, H, W).
    """
    batch, size = len(pixel_values), tuple(pixel_values.shape[-2:])
    if labels is None or len(labels) != batch:
        given = "no labels" if labels is None else f"labels of {len(labels)} images"
        raise ValueError(
            f"got {given} in training mode; one entry is required for each of {batch} images. "
            "Pass labels, or call model.eval() to detect objects."
        )
    targets = []
    for index, label in enumerate(labels):
        check_label(label, f"labels[{index}]", size, num_labels)
        boxes = center_to_corners_format(label["boxes"].float()) * box_scale(size, pixel_values.float())
        targets.append({"boxes": boxes, "labels": label["class_labels"].long() + 1, "masks": label["masks"]})
    return targets


def check_label(label: Mapping[str, Tensor], name: str, size: tuple[int, int], num_labels: int) -> None:
    """Raises ValueError unless each object has a class, a box with an area and a mask of the image's size."""
    if missing := {"boxes", "class_labels", "masks"} - label.keys():
        raise ValueError(
            f"{name} has no '{min(missing)}'. Mask R-CNN needs boxes, class_labels and masks of every image."
        )
    count = len(label["class_labels"])
    wanted = {"boxes": (count, 4), "masks": (count, *size)}
    for part, shape in wanted.items():
        if tuple(label[part].shape) != shape:
            raise ValueError(
                f"{name}['{part}'] has shape {tuple(label[part].shape)}; "
                f"{shape} is required for {count} class_labels."
            )
    if count and not 0 <= label["class_labels"].min() <= label["class_labels"].max() < num_labels:
        raise ValueError(
            f"{name}['class_labels'] contains {label['class_labels'].unique().tolist()}; "
            f"0 to {num_labels - 1} are required. Set num_labels or id2label to the classes of the data."
        )
    if count and not (label["boxes"][:, 2:] > 0).all():
        raise ValueError(f"{name}['boxes'] contains a box without area. Leave such objects out.")


def detection_outputs(
    found: Sequence[Mapping[str, Tensor]], sizes: Sequence[tuple[int, int]], num_labels: int
) -> InstanceSegmentationOutput:
    """torchvision's detections, (height, width) of each image -> outputs (B, Q, ...)."""
    most = max(len(image["scores"]) for image in found)
    rows = []
    for image, size in zip(found, sizes, strict=True):
        scores, count = image["scores"], len(image["scores"])
        logits = scores.new_full((most, num_labels + 1), -torch.inf)
        logits[count:, -1] = 0.0
        logits[:count, -1] = torch.log1p(-scores)
        logits[torch.arange(count, device=scores.device), image["labels"] - 1] = scores.log()
        boxes = corners_to_center_format(image["boxes"]) / box_scale(size, scores)
        rows.append([logits, *(filled_up(part, most) for part in (boxes, image["masks"][:, 0]))])
    logits, boxes, masks = (torch.stack(part) for part in zip(*rows, strict=True))
    return InstanceSegmentationOutput(logits=logits, pred_boxes=boxes, roi_masks=masks)


def filled_up(rows: Tensor, count: int) -> Tensor:
    """(N, ...) -> (count, ...), padded with zeros."""
    return torch.cat([rows, rows.new_zeros(count - len(rows), *rows.shape[1:])])


def pasted(roi_masks: Tensor, boxes: Tensor, size: Sequence[int]) -> Tensor:
    """(N, 28, 28) probabilities, (N, 4) boxes -> (N, height, width), True inside an object."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool, device=boxes.device)
    # One by one, to save memory.
    for mask, cells, box in zip(masks, roi_masks, boxes, strict=True):
        mask.copy_(paste_masks_in_image(cells[None, None], box[None], tuple(size))[0, 0] > 0.5)
    return masks


__all__ = ["InstanceSegmentationOutput", "MaskRcnnForObjectDetection"]
