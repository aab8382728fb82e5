"""Mask R-CNN (He et al., "Mask R-CNN", ICCV 2017) on our backbones, with torchvision's detector and losses.

As in Table 5 of the MAFormer paper (arXiv 2209.01620), the detector has a feature pyramid of 256 channels
with an extra max-pooled level, anchors of 32 to 512 pixels, a box head of two linear layers and a mask head
of four convolutions. In the paper's detectors, the background class has a score but neither box nor mask. In
torchvision it has all three, though box and mask are unused: 4 * 1025 additional weights in the box predictor
and 257 in the mask predictor.

Legend: B batch, C channels, H, W image height and width, h, w those of a feature map, N objects per image.
"""

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from ..configuration.checked_config import reject_unknown_options

PYRAMID_CHANNELS = 256
FINEST_ANCHOR = 32  # side in pixels at stride 4; doubles from level to level, as the stride does
ASPECT_RATIOS = (0.5, 1.0, 2.0)
TORCHVISION = {*signature(MaskRCNN).parameters, *signature(GeneralizedRCNNTransform).parameters}
OPTIONS = TORCHVISION - {"backbone", "num_classes", "kwargs"}


class Anchors(AnchorGenerator):
    """torchvision's anchors, generated on the device of the features and in float32.

    torchvision stores them as plain tensors. These would stay on the meta device, on which `from_pretrained`
    builds models, and in half precision they would be inaccurate.
    """

    def set_cell_anchors(self, dtype: torch.dtype, device: torch.device) -> None:  # noqa: ARG002
        self.cell_anchors = [
            self.generate_anchors(sizes, ratios, torch.float32, device)
            for sizes, ratios in zip(self.sizes, self.aspect_ratios, strict=True)
        ]


class PyramidBackbone(nn.Module):
    """A backbone with a feature pyramid; submodules are named as in torchvision's `BackboneWithFPN`."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.body = backbone
        self.fpn = FeaturePyramidNetwork(
            list(backbone.channels), PYRAMID_CHANNELS, extra_blocks=LastLevelMaxPool()
        )
        self.out_channels = PYRAMID_CHANNELS

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) -> maps (B, 256, h, w), fine to coarse, named "0", "1", ... and "pool"."""
        return fused_maps(self.fpn, self.body(pixel_values).feature_maps)


def fused_maps(fpn: FeaturePyramidNetwork, feature_maps: Sequence[Tensor]) -> dict[str, Tensor]:
    """Maps (B, C_i, h_i, w_i), fine to coarse -> maps (B, 256, h, w) named "0", "1", ... and "pool"."""
    return fpn({str(level): feature_map for level, feature_map in enumerate(feature_maps)})


def mask_rcnn(backbone: nn.Module, num_labels: int, **options: Any) -> MaskRCNN:
    """Builds Mask R-CNN on a backbone, with torchvision's interface.

    In training mode, `model(images, targets)` returns a dictionary of five losses to be summed. In evaluation
    mode, `model(images)` returns for each image a dictionary of `boxes` (N, 4) in pixels of the original
    image, `labels` (N,), `scores` (N,) and `masks` (N, 1, H, W), probabilities. Images are a list of tensors
    (C, H, W) with values in [0, 1], of any size. Each target has `boxes` (N, 4) as (left, top, right, bottom)
    in pixels, `labels` (N,) in 1..num_labels, and binary `masks` (N, H, W).

    The model resizes each image (short side 800, long side at most 1333 pixels), normalizes it with
    ImageNet's mean and std, and pads the batch to multiples of 32. As in the paper's detector, the backbone
    gets no padding mask.

    `MaskRcnnForObjectDetection` is the same detector as a transformers model, and `contextseg-train --task
    detection` trains it; `--recipe maformer_small_mask_rcnn_1x_coco` has the paper's "1x" schedule.

    Args:
        backbone: One of our backbones, or any module with `channels` whose output has `feature_maps`, fine to
            coarse, each half the size of the one before.
        num_labels: Number of object classes without background, such as 80 for COCO. In torchvision,
            background is label 0.
        **options: Arguments of torchvision's `MaskRCNN`, such as `min_size` or `box_score_thresh`. The
            default anchors suit a finest feature map of stride 4; pass `rpn_anchor_generator` for others.

    Returns:
        The detector, with randomly initialized heads.

    Raises:
        ValueError: If `num_labels` is below 1 or `MaskRCNN` has no such option.
    """
    if num_labels < 1:
        raise ValueError(
            f"num_labels is {num_labels}; 1 or more is required. Pass the number of object classes, without "
            "background."
        )
    reject_unknown_options("mask_rcnn", options, OPTIONS)
    levels = [str(level) for level in range(len(backbone.channels))]
    anchors = [(FINEST_ANCHOR * 2**level,) for level in range(len(levels) + 1)]
    parts = {
        "rpn_anchor_generator": Anchors(tuple(anchors), (ASPECT_RATIOS,) * len(anchors)),
        "box_roi_pool": MultiScaleRoIAlign(levels, output_size=7, sampling_ratio=2),
        "mask_roi_pool": MultiScaleRoIAlign(levels, output_size=14, sampling_ratio=2),
    }
    return MaskRCNN(PyramidBackbone(backbone), num_classes=num_labels + 1, **{**parts, **options})


__all__ = ["Anchors", "PyramidBackbone", "fused_maps", "mask_rcnn"]
