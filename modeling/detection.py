"""Mask R-CNN (He et al., "Mask R-CNN", ICCV 2017) on our backbones: torchvision's detector and its losses, as the MAFormer
paper (arXiv 2209.01620, Table 5) puts it on its encoder. Nothing of the detector is written anew.

A feature pyramid of 256 channels and one extra level by max-pooling, square anchors' sides 32 to 512, a box head of two linear
layers and a mask head of four convolutions. In the detectors of the paper, background has a score but neither box nor
mask; in torchvision it has all three, unused: 4 * 1025 weights more in the box predictor and 257 in the mask predictor.

Legend: B batch, C channels, H, W image height and width, h, w the sides of a map, N objects of one image.
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
FINEST_ANCHOR = (
    32  # side in pixels, for a map of stride 4; it doubles from level to level, as the stride does
)
ASPECT_RATIOS = (0.5, 1.0, 2.0)
TORCHVISION = {*signature(MaskRCNN).parameters, *signature(GeneralizedRCNNTransform).parameters}
OPTIONS = TORCHVISION - {"backbone", "num_classes", "kwargs"}


class Anchors(AnchorGenerator):
    """torchvision's, made in float32 where they are used: as plain tensors they would stay on the meta device, on which
    `from_pretrained` builds models, and in half precision they would miss their cells."""

    def set_cell_anchors(self, dtype: torch.dtype, device: torch.device) -> None:  # noqa: ARG002
        self.cell_anchors = [
            self.generate_anchors(sizes, ratios, torch.float32, device)
            for sizes, ratios in zip(self.sizes, self.aspect_ratios, strict=True)
        ]


class PyramidBackbone(nn.Module):
    """A backbone under a feature pyramid. Its parts have the names of torchvision's `BackboneWithFPN`."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.body = backbone
        self.fpn = FeaturePyramidNetwork(
            list(backbone.channels), PYRAMID_CHANNELS, extra_blocks=LastLevelMaxPool()
        )
        self.out_channels = PYRAMID_CHANNELS

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) -> maps (B, 256, h, w), fine to coarse, by name: "0", "1", ... and the extra level "pool"."""
        return fused_maps(self.fpn, self.body(pixel_values).feature_maps)


def fused_maps(fpn: FeaturePyramidNetwork, feature_maps: Sequence[Tensor]) -> dict[str, Tensor]:
    """Maps (B, C_i, h_i, w_i), fine to coarse -> maps (B, 256, h, w) by name: "0", "1", ... and the extra level "pool"."""
    return fpn({str(level): feature_map for level, feature_map in enumerate(feature_maps)})


def mask_rcnn(backbone: nn.Module, num_labels: int, **options: Any) -> MaskRCNN:
    """Mask R-CNN on a backbone, with torchvision's interface.

    In training mode, `model(images, targets)` returns five losses to be summed; in evaluation mode, `model(images)` returns
    for each image `boxes` (N, 4) in its own pixels, `labels` (N,), `scores` (N,) and `masks` (N, 1, H, W), probabilities.
    Images are a list of (C, H, W) in 0..1, of any sizes; targets have `boxes` (N, 4) as left, top, right, bottom, `labels`
    (N,) in 1..num_labels, and `masks` (N, H, W) of 0 and 1.

    The model resizes each image (short side 800, long side at most 1333), normalises it by ImageNet's mean and deviation, and
    pads the batch to multiples of 32. The backbone is not told where the padding is, as in the paper's detector.

    `MaskRcnnForObjectDetection` is the same detector as a model of transformers, and `contextseg-train --task detection` trains
    it: `--recipe maformer_small_mask_rcnn_1x_coco` has the paper's "1x" schedule.

    backbone: any of ours, or another with `channels` and `.feature_maps`, fine to coarse, each half as large as the one before.
    num_labels: kinds of objects, 80 for COCO. Background is not counted here; torchvision gives it label 0.
    options: arguments of torchvision's `MaskRCNN`, such as `min_size` or `box_score_thresh`. The anchors suit a finest map of
        stride 4; pass `rpn_anchor_generator` for another.
    """
    if num_labels < 1:
        raise ValueError(
            f"num_labels is {num_labels}. Give the number of kinds of objects, background not counted."
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
