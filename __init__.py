"""contextseg: wide-context semantic segmentation for Hugging Face transformers.

Importing it registers its models with transformers' Auto classes and lets what they save carry its code; nothing else
happens on import. The names below are loaded when they are first used.
"""

from importlib import import_module
from typing import Any

from .hub.hooks import register_hub_hooks
from .modeling.auto_classes import register_auto_classes
from .processing.image_processing_segmentation import (
    SegmentationImageProcessor,
    SegmentationImageProcessorPil,
)

__version__ = "0.1.0"

PUBLIC = {
    "BoundaryIoU": "processing.metrics",
    "ConfusionMatrix": "processing.metrics",
    "CswinBackbone": "modeling.modeling_cswin",
    "CswinConfig": "configuration.configuration_cswin",
    "CswinForImageClassification": "modeling.modeling_cswin",
    "CswinForSemanticSegmentation": "modeling.modeling_cswin",
    "CswinModel": "modeling.modeling_cswin",
    "GlamSwinBackbone": "modeling.modeling_glam_swin",
    "GlamSwinConfig": "configuration.configuration_glam_swin",
    "GlamSwinForImageClassification": "modeling.modeling_glam_swin",
    "GlamSwinForSemanticSegmentation": "modeling.modeling_glam_swin",
    "GlamSwinModel": "modeling.modeling_glam_swin",
    "Inference": "processing.inference",
    "MaformerBackbone": "modeling.modeling_maformer",
    "MaformerConfig": "configuration.configuration_maformer",
    "MaformerForImageClassification": "modeling.modeling_maformer",
    "MaformerForSemanticSegmentation": "modeling.modeling_maformer",
    "MaformerModel": "modeling.modeling_maformer",
    "MaskRcnnConfig": "configuration.configuration_mask_rcnn",
    "MaskRcnnForObjectDetection": "modeling.modeling_mask_rcnn",
    "SegDeformerConfig": "configuration.configuration_segdeformer",
    "SegDeformerForSemanticSegmentation": "modeling.modeling_segdeformer",
    "SegmentationCollator": "processing.collation",
    "SegmentationImageProcessor": "processing.image_processing_segmentation",
    "SegmentationImageProcessorPil": "processing.image_processing_segmentation",
    "SegmentationMetric": "processing.segmentation_metric",
    "TrainerScores": "processing.metrics",
    "add_lora": "modeling.lora",
    "cascade_mask_rcnn": "modeling.detection_cascade",
    "global_attention_maps": "modeling.explanations",
    "mask_rcnn": "modeling.detection",
    "reduce_logits": "processing.metrics",
}
__all__ = sorted(PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(
            f"module 'contextseg' has no attribute '{name}'. Public names: {', '.join(__all__)}."
        )
    return getattr(import_module(f".{PUBLIC[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_auto_classes({"torchvision": SegmentationImageProcessor, "pil": SegmentationImageProcessorPil})
register_hub_hooks()
