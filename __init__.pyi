"""The public names of contextseg, and where each is defined; `__init__.py` loads them when they are first used."""

from .configuration.configuration_caswit import CaswitConfig as CaswitConfig
from .configuration.configuration_cswin import CswinConfig as CswinConfig
from .configuration.configuration_glam import GlamConfig as GlamConfig
from .configuration.configuration_glam_swin import GlamSwinConfig as GlamSwinConfig
from .configuration.configuration_maformer import MaformerConfig as MaformerConfig
from .configuration.configuration_mask_rcnn import MaskRcnnConfig as MaskRcnnConfig
from .configuration.configuration_nnformer import NnFormerConfig as NnFormerConfig
from .configuration.configuration_relay import RelayConfig as RelayConfig
from .configuration.configuration_segdeformer import SegDeformerConfig as SegDeformerConfig
from .hub.int8_onnx import quantize_onnx as quantize_onnx
from .hub.onnx_export import export_onnx as export_onnx
from .hub.pt2_export import export_pt2 as export_pt2
from .modeling.detection import mask_rcnn as mask_rcnn
from .modeling.detection_cascade import cascade_mask_rcnn as cascade_mask_rcnn
from .modeling.explanations import global_attention_maps as global_attention_maps
from .modeling.grad_cam import grad_cam as grad_cam
from .modeling.lora import add_lora as add_lora
from .modeling.modeling_caswit import CaswitBackbone as CaswitBackbone
from .modeling.modeling_caswit import CaswitForSemanticSegmentation as CaswitForSemanticSegmentation
from .modeling.modeling_caswit_masked import CaswitForMaskedImageModeling as CaswitForMaskedImageModeling
from .modeling.modeling_cswin import CswinBackbone as CswinBackbone
from .modeling.modeling_cswin import CswinForImageClassification as CswinForImageClassification
from .modeling.modeling_cswin import CswinForSemanticSegmentation as CswinForSemanticSegmentation
from .modeling.modeling_cswin import CswinModel as CswinModel
from .modeling.modeling_glam import GlamBackbone as GlamBackbone
from .modeling.modeling_glam import add_global_tokens as add_global_tokens
from .modeling.modeling_glam_swin import GlamSwinBackbone as GlamSwinBackbone
from .modeling.modeling_glam_swin import GlamSwinForImageClassification as GlamSwinForImageClassification
from .modeling.modeling_glam_swin import GlamSwinForMaskedImageModeling as GlamSwinForMaskedImageModeling
from .modeling.modeling_glam_swin import GlamSwinForSemanticSegmentation as GlamSwinForSemanticSegmentation
from .modeling.modeling_glam_swin import GlamSwinModel as GlamSwinModel
from .modeling.modeling_maformer import MaformerBackbone as MaformerBackbone
from .modeling.modeling_maformer import MaformerForImageClassification as MaformerForImageClassification
from .modeling.modeling_maformer import MaformerForMaskedImageModeling as MaformerForMaskedImageModeling
from .modeling.modeling_maformer import MaformerForSemanticSegmentation as MaformerForSemanticSegmentation
from .modeling.modeling_maformer import MaformerModel as MaformerModel
from .modeling.modeling_mask_rcnn import MaskRcnnForObjectDetection as MaskRcnnForObjectDetection
from .modeling.modeling_nnformer import NnFormerBackbone as NnFormerBackbone
from .modeling.modeling_nnformer import (
    NnFormerForSemanticSegmentation as NnFormerForSemanticSegmentation,
)
from .modeling.modeling_nnformer import NnFormerModel as NnFormerModel
from .modeling.modeling_relay import RelayForSemanticSegmentation as RelayForSemanticSegmentation
from .modeling.modeling_segdeformer import (
    SegDeformerForSemanticSegmentation as SegDeformerForSemanticSegmentation,
)
from .processing.boundary_metrics import BoundaryF as BoundaryF
from .processing.boundary_metrics import BoundaryIoU as BoundaryIoU
from .processing.collation import SegmentationCollator as SegmentationCollator
from .processing.data.augmentation import AugmentedDataset as AugmentedDataset
from .processing.data.augmentation import JointAugmentation as JointAugmentation
from .processing.data.datasets import open_data as open_data
from .processing.data.report import check_data as check_data
from .processing.heat_pictures import heat_overlay as heat_overlay
from .processing.heat_pictures import heat_picture as heat_picture
from .processing.image_processing_segmentation import (
    SegmentationImageProcessor as SegmentationImageProcessor,
)
from .processing.image_processing_segmentation import (
    SegmentationImageProcessorPil as SegmentationImageProcessorPil,
)
from .processing.image_processing_volume import VolumeImageProcessor as VolumeImageProcessor
from .processing.inference import Inference as Inference
from .processing.mask_models import MaskSegmenter as MaskSegmenter
from .processing.metrics import ConfusionMatrix as ConfusionMatrix
from .processing.metrics import TrainerScores as TrainerScores
from .processing.metrics import reduce_logits as reduce_logits
from .processing.overlays import mask_overlay as mask_overlay
from .processing.rasters.raster import Raster as Raster
from .processing.rasters.raster import open_raster as open_raster
from .processing.rasters.raster import read_window as read_window
from .processing.rasters.raster import window_values as window_values
from .processing.rasters.segmentation import segment_raster as segment_raster
from .processing.segmentation_metric import SegmentationMetric as SegmentationMetric
from .processing.volumes.surface_distances import surface_distances as surface_distances
from .processing.volumes.volume_reading import Volume as Volume
from .processing.volumes.volume_reading import read_label_volume as read_label_volume
from .processing.volumes.volume_reading import read_volume as read_volume
from .processing.volumes.volume_scores import VolumeScores as VolumeScores
from .processing.volumes.volume_writing import write_label_volume as write_label_volume
from .training.trainer import SegmentationTrainer as SegmentationTrainer
from .training.trainer import SetEpoch as SetEpoch

__version__: str
