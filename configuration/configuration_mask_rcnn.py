"""Mask R-CNN (He et al., ICCV 2017) and Cascade Mask R-CNN (Cai et al., TPAMI 2019) on any backbone."""

from copy import deepcopy
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from .backbone_configs import WithBackbone, backbone_from_dict, check_takes_images
from .checked_config import CheckedConfig, reject_unknown_options
from .configuration_cswin import CswinConfig
from .configuration_maformer import MaformerConfig
from .field_rules import checked

# The numeric arguments of torchvision's `MaskRCNN`, except those that are set elsewhere: images are resized
# by the image processor, and a cascade has its own IoU thresholds.
DETECTOR_OPTIONS = (
    *(f"rpn_{stage}_nms_top_n_{mode}" for stage in ("pre", "post") for mode in ("train", "test")),
    *("rpn_nms_thresh", "rpn_fg_iou_thresh", "rpn_bg_iou_thresh", "rpn_score_thresh"),
    *("rpn_batch_size_per_image", "rpn_positive_fraction"),
    *("box_score_thresh", "box_nms_thresh", "box_detections_per_img"),
    *("box_batch_size_per_image", "box_positive_fraction"),
)


def maformer(size: str, drop_path_rate: float, use_cascade: bool = False) -> dict[str, Any]:
    """Preset of a detector of the MAFormer paper, whose stochastic depth differs from classification."""
    backbone = {"model_type": "maformer", **MaformerConfig.presets[size], "drop_path_rate": drop_path_rate}
    return {"backbone_config": backbone, "use_cascade": use_cascade}


def cswin(size: str, drop_path_rate: float, use_cascade: bool = False) -> dict[str, Any]:
    """Preset of a detector with CSWin, a baseline of the MAFormer paper."""
    backbone = {"model_type": "cswin", **CswinConfig.presets[size], "drop_path_rate": drop_path_rate}
    return {"backbone_config": backbone, "use_cascade": use_cascade}


@checked
class MaskRcnnConfig(WithBackbone, CheckedConfig):
    """Configuration of torchvision's Mask R-CNN, as built by `mask_rcnn`, on any backbone.

    The presets are those of the MAFormer paper: "maformer_small", "maformer_base" and "maformer_large" from
    Table 5, and those ending in "_cascade" from Table 6, with the baselines "cswin_tiny", "cswin_small" and
    "cswin_base"; "nano" is a small model for experiments.

    backbone_config: Configuration of one of our backbones, of any backbone in transformers, or
        `TimmBackboneConfig(backbone=NAME)` for timm; or a dictionary with `model_type` and fields. The
        anchors suit a finest feature map of stride 4.
    use_cascade: Whether to use the three stages of heads of `cascade_mask_rcnn` instead of one.
    cascade_box_loss: Loss of the boxes of a cascade: "smooth_l1" as in torchvision, or "giou" with the weight 10
        as in mmdetection's configurations of Swin.
    drop_path_rate: Stochastic depth rate; replaces that of the backbone's configuration if not None.
    detector_options: Numeric arguments of torchvision's `MaskRCNN`, such as {"box_detections_per_img": 300}.
    """

    model_type = "mask_rcnn"
    sub_configs = {"backbone_config": AutoConfig}
    presets = {
        "nano": maformer("nano", 0.0),
        "maformer_small": maformer("small", 0.2),
        "maformer_base": maformer("base", 0.3),
        "maformer_large": maformer("large", 0.3),
        "maformer_small_cascade": maformer("small", 0.2, use_cascade=True),
        "maformer_base_cascade": maformer("base", 0.3, use_cascade=True),
        "maformer_large_cascade": maformer("large", 0.4, use_cascade=True),
        "cswin_tiny": cswin("tiny", 0.2),
        "cswin_small": cswin("small", 0.4),
        "cswin_base": cswin("base", 0.5),
        "cswin_tiny_cascade": cswin("tiny", 0.2, use_cascade=True),
        "cswin_small_cascade": cswin("small", 0.4, use_cascade=True),
        "cswin_base_cascade": cswin("base", 0.5, use_cascade=True),
    }

    backbone_config: dict | PreTrainedConfig | None = None
    use_cascade: bool = False
    cascade_box_loss: str = "smooth_l1"
    drop_path_rate: float | int | None = None
    detector_options: dict | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.backbone_config is None:
            self.backbone_config = MaformerConfig()
        if isinstance(self.backbone_config, dict):
            self.backbone_config = backbone_from_dict(
                self.backbone_config, is_stored=kwargs.get("_is_stored", False)
            )
        check_takes_images(self.backbone_config)
        self.num_channels = kwargs.pop("num_channels", self.num_channels)
        if self.drop_path_rate is not None and not hasattr(self.backbone_config, "drop_path_rate"):
            raise ValueError(
                f"drop_path_rate is {self.drop_path_rate}, but the backbone '{self.backbone_config.model_type}' "
                "has no stochastic depth. Leave drop_path_rate out."
            )
        self.detector_options = dict(self.detector_options or {})
        reject_unknown_options("detector_options", self.detector_options, DETECTOR_OPTIONS)
        super().__post_init__(**kwargs)

    def validate_box_loss(self) -> None:
        if self.cascade_box_loss not in ("smooth_l1", "giou"):
            raise ValueError(f"cascade_box_loss is '{self.cascade_box_loss}'. Use 'smooth_l1' or 'giou'.")

    @property
    def trained_backbone_config(self) -> PreTrainedConfig:
        """`backbone_config` with `drop_path_rate` of this configuration, if that is set."""
        if self.drop_path_rate is None:
            return self.backbone_config
        config = deepcopy(self.backbone_config)
        config.drop_path_rate = self.drop_path_rate
        return config

    @property
    def used_flat_maps(self) -> str:
        """How the feature maps of a plain vision transformer are used: turned into a pyramid."""
        return "pyramid"


__all__ = ["MaskRcnnConfig"]
