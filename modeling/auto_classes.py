"""Registers the models of this package with transformers' Auto classes."""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    DetrImageProcessor,
    DetrImageProcessorPil,
    PreTrainedConfig,
)

from ..configuration.configuration_caswit import CaswitConfig
from ..configuration.configuration_cswin import CswinConfig
from ..configuration.configuration_glam import GlamConfig
from ..configuration.configuration_glam_swin import GlamSwinConfig
from ..configuration.configuration_maformer import MaformerConfig
from ..configuration.configuration_mask_rcnn import MaskRcnnConfig
from ..configuration.configuration_nnformer import NnFormerConfig
from ..configuration.configuration_relay import RelayConfig
from ..configuration.configuration_segdeformer import SegDeformerConfig
from .modeling_caswit import CaswitForSemanticSegmentation
from .modeling_caswit_masked import CaswitForMaskedImageModeling
from .modeling_cswin import (
    CswinBackbone,
    CswinForImageClassification,
    CswinForSemanticSegmentation,
    CswinModel,
)
from .modeling_glam import GlamBackbone
from .modeling_glam_swin import (
    GlamSwinBackbone,
    GlamSwinForImageClassification,
    GlamSwinForMaskedImageModeling,
    GlamSwinForSemanticSegmentation,
    GlamSwinModel,
)
from .modeling_maformer import (
    MaformerBackbone,
    MaformerForImageClassification,
    MaformerForMaskedImageModeling,
    MaformerForSemanticSegmentation,
    MaformerModel,
)
from .modeling_mask_rcnn import MaskRcnnForObjectDetection
from .modeling_nnformer import NnFormerBackbone, NnFormerForSemanticSegmentation, NnFormerModel
from .modeling_relay import RelayForSemanticSegmentation
from .modeling_segdeformer import SegDeformerForSemanticSegmentation

MODELS: dict[type[PreTrainedConfig], dict[type, type]] = {
    SegDeformerConfig: {AutoModelForSemanticSegmentation: SegDeformerForSemanticSegmentation},
    GlamConfig: {AutoBackbone: GlamBackbone},
    GlamSwinConfig: {
        AutoModel: GlamSwinModel,
        AutoBackbone: GlamSwinBackbone,
        AutoModelForImageClassification: GlamSwinForImageClassification,
        AutoModelForMaskedImageModeling: GlamSwinForMaskedImageModeling,
        AutoModelForSemanticSegmentation: GlamSwinForSemanticSegmentation,
    },
    MaformerConfig: {
        AutoModel: MaformerModel,
        AutoBackbone: MaformerBackbone,
        AutoModelForImageClassification: MaformerForImageClassification,
        AutoModelForMaskedImageModeling: MaformerForMaskedImageModeling,
        AutoModelForSemanticSegmentation: MaformerForSemanticSegmentation,
    },
    CswinConfig: {
        AutoModel: CswinModel,
        AutoBackbone: CswinBackbone,
        AutoModelForImageClassification: CswinForImageClassification,
        AutoModelForSemanticSegmentation: CswinForSemanticSegmentation,
    },
    CaswitConfig: {
        AutoModelForMaskedImageModeling: CaswitForMaskedImageModeling,
        AutoModelForSemanticSegmentation: CaswitForSemanticSegmentation,
    },
    RelayConfig: {AutoModelForSemanticSegmentation: RelayForSemanticSegmentation},
    NnFormerConfig: {
        AutoModel: NnFormerModel,
        AutoBackbone: NnFormerBackbone,
        AutoModelForSemanticSegmentation: NnFormerForSemanticSegmentation,
    },
    MaskRcnnConfig: {AutoModelForObjectDetection: MaskRcnnForObjectDetection},
}
DETECTION_PROCESSORS = {"torchvision": DetrImageProcessor, "pil": DetrImageProcessorPil}


def register_auto_classes(image_processors: dict[str, type], volume_processors: dict[str, type]) -> None:
    """Registers our models and processors, so that `Auto*.from_pretrained` and `pipeline` find them.

    Args:
        image_processors: Image processor classes by backend ("torchvision", "pil"), for all models except
            detectors and those of volumes.
        volume_processors: The same for models that take only volumes.
    """
    of_config = {MaskRcnnConfig: DETECTION_PROCESSORS, NnFormerConfig: volume_processors}
    for config, models in MODELS.items():
        processors = of_config.get(config, image_processors)
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoImageProcessor.register(config, image_processor_classes=processors, exist_ok=True)
        for auto_class, model in models.items():
            auto_class.register(config, model, exist_ok=True)
