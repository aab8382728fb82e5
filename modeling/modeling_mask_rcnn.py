"""Mask R-CNN and Cascade Mask R-CNN as a model of transformers: torchvision's parts, put together by `mask_rcnn` and
`cascade_mask_rcnn`, with the inputs and outputs of transformers' object detectors.

Images come resized and normalised from the image processor (`DetrImageProcessor`), with a `pixel_mask` where a batch is
padded; its `post_process_object_detection` and the object-detection pipeline read the outputs.

Legend: B batch, C channels, H, W axes of the padded images, K labels, N objects of one image, Q detections, the most of
any image.
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

SIDE_MULTIPLE = 32  # of padded images, as torchvision has it: the anchors' strides come out whole
# How torchvision's constructors fill the convolutions of its parts; biases start at zero.
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
    """What `MaskRcnnForObjectDetection` returns.

    loss: in training, the sum of `loss_dict`, torchvision's five losses by name.
    logits: (B, Q, K + 1), of which a softmax is a detection's score at its class, and the rest at "no object", the last; all
        of it is there for the rows that fill up images with fewer than Q detections.
    pred_boxes: (B, Q, 4), centre x, centre y, width and height as shares of the image without its padding.
    roi_masks: (B, Q, 28, 28), probability of the object in each cell of its box.
    """

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    pred_boxes: Tensor | None = None
    roi_masks: Tensor | None = None


class MaskRcnnForObjectDetection(ContextsegPreTrainedModel):
    """Boxes, classes and masks of objects, from a backbone of any type."""

    config: MaskRcnnConfig
    _keep_in_fp32_modules_strict = {"rpn", "roi_heads"}  # coordinates have more digits than half precision

    def __init__(self, config: MaskRcnnConfig) -> None:
        super().__init__(config)
        build = cascade_mask_rcnn if config.use_cascade else mask_rcnn
        backbone = build_backbone(config.trained_backbone_config, config.flat_maps)
        detector = build(backbone, config.num_labels, **config.detector_options)
        self.backbone = backbone
        self.fpn, self.rpn, self.roi_heads = detector.backbone.fpn, detector.rpn, detector.roi_heads
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As torchvision's constructors; weights that were loaded are out of reach of transformers' `init`."""
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
        """(B, C, H, W), optional (B, H, W) one where there is image -> losses in training mode, else detections.

        labels: for each image what `DetrImageProcessor` makes of COCO annotations: `class_labels` (N,), `boxes` (N, 4),
            centre x, centre y, width and height as shares of W and H, and `masks` (N, H, W). In evaluation mode they are not
            read, since torchvision draws the samples of its losses in training mode only.
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
        """Of each image the detections with a higher score, in the pixels of `target_sizes`, heights and widths.

        Returns `scores` (N,), `labels` (N,), `boxes` (N, 4) as left, top, right, bottom, and `masks` (N, height, width).
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
        """A detector on an encoder's pretrained weights; its heads are new.

        checkpoint: folder, or name on the Hub, of an encoder in transformers' layout, whatever head it has, such as a
            classifier of ours; or a model of timm. `encoder_normalisation` tells the mean and standard deviation that its
            images want.
        out_indices: stages whose feature maps are used; by default one for each stride.
        revision: branch, tag or commit on the Hub.
        overrides: fields of the configuration, such as `id2label` or `use_cascade`.
        """
        backbones = library_module("modeling.pretrained_backbones")
        return backbones.model_on_backbone(cls, checkpoint, out_indices, revision, **overrides)


def is_within(layer: nn.Module, kind: type[nn.Module], model: nn.Module) -> bool:
    """Whether a layer belongs to a part of this kind. (`_init_weights` may not be called with the part itself.)"""
    parts = (part for part in model.modules() if isinstance(part, kind))
    return any(layer is inner for part in parts for inner in part.modules())


def image_sizes(pixel_values: Tensor, pixel_mask: Tensor | None) -> list[tuple[int, int]]:
    """(B, C, H, W), (B, H, W) one where there is image, from the upper left corner on -> height and width of each image."""
    if pixel_mask is None:
        return [tuple(pixel_values.shape[-2:])] * len(pixel_values)
    heights, widths = pixel_mask.any(2).sum(1).tolist(), pixel_mask.any(1).sum(1).tolist()
    return list(zip(heights, widths, strict=True))


def padded(pixel_values: Tensor) -> Tensor:
    """(B, C, H, W) -> the same with zeros right and below, up to multiples of 32."""
    height, width = pixel_values.shape[-2:]
    return F.pad(pixel_values, (0, -width % SIDE_MULTIPLE, 0, -height % SIDE_MULTIPLE))


def box_scale(size: Sequence[int], like: Tensor) -> Tensor:
    """Height and width -> (4,), what boxes as shares of an image are multiplied with."""
    height, width = size
    return like.new_tensor([width, height, width, height])


def detection_targets(
    labels: Sequence[Mapping[str, Tensor]] | None, pixel_values: Tensor, num_labels: int
) -> list[dict[str, Tensor]]:
    """Labels of transformers' detectors, (B, C, H, W) -> torchvision's: `boxes` (N, 4) as left, top, right, bottom, `labels` (N,) from 1 on, `masks`."""
    batch, size = len(pixel_values), tuple(pixel_values.shape[-2:])
    if labels is None or len(labels) != batch:
        given = "no labels" if labels is None else f"labels of {len(labels)} images"
        raise ValueError(
            f"{given} were given in training mode, and one entry is required for each of {batch} images. "
            "Pass labels, or call model.eval() to detect objects."
        )
    targets = []
    for index, label in enumerate(labels):
        check_label(label, f"labels[{index}]", size, num_labels)
        boxes = center_to_corners_format(label["boxes"].float()) * box_scale(size, pixel_values.float())
        targets.append({"boxes": boxes, "labels": label["class_labels"].long() + 1, "masks": label["masks"]})
    return targets


def check_label(label: Mapping[str, Tensor], name: str, size: tuple[int, int], num_labels: int) -> None:
    """Raises unless the objects of an image have classes, boxes of some area, and masks of the image's size (H, W)."""
    if missing := {"boxes", "class_labels", "masks"} - label.keys():
        raise ValueError(
            f"{name} has no '{min(missing)}'. Give boxes, class_labels and masks of every image; Mask R-CNN needs all three."
        )
    count = len(label["class_labels"])
    wanted = {"boxes": (count, 4), "masks": (count, *size)}
    for part, shape in wanted.items():
        if tuple(label[part].shape) != shape:
            raise ValueError(
                f"{name}['{part}'] has shape {tuple(label[part].shape)}; {shape} is required for {count} class_labels."
            )
    if count and not 0 <= label["class_labels"].min() <= label["class_labels"].max() < num_labels:
        raise ValueError(
            f"{name}['class_labels'] holds {label['class_labels'].unique().tolist()}; 0 to {num_labels - 1} are required."
        )
    if count and not (label["boxes"][:, 2:] > 0).all():
        raise ValueError(f"{name}['boxes'] holds a box without area. Leave such objects out.")


def detection_outputs(
    found: Sequence[Mapping[str, Tensor]], sizes: Sequence[tuple[int, int]], num_labels: int
) -> InstanceSegmentationOutput:
    """torchvision's detections and the size of each image -> outputs with one row for each detection (B, Q, ...)."""
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
    """(N, ...) -> (count, ...), with zeros."""
    return torch.cat([rows, rows.new_zeros(count - len(rows), *rows.shape[1:])])


def pasted(roi_masks: Tensor, boxes: Tensor, size: Sequence[int]) -> Tensor:
    """(N, 28, 28) probabilities and (N, 4) boxes -> (N, height, width), true where an object is; one after the other, to save memory."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool, device=boxes.device)
    for mask, cells, box in zip(masks, roi_masks, boxes, strict=True):
        mask.copy_(paste_masks_in_image(cells[None, None], box[None], tuple(size))[0, 0] > 0.5)
    return masks


__all__ = ["InstanceSegmentationOutput", "MaskRcnnForObjectDetection"]
