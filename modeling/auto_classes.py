"""Registers this package's types with transformers' Auto classes."""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    PreTrainedConfig,
)
from transformers.models.auto import modeling_auto

from ..configuration.configuration_cswin import CswinConfig
from ..configuration.configuration_glam_swin import GlamSwinConfig
from ..configuration.configuration_maformer import MaformerConfig
from ..configuration.configuration_segdeformer import SegDeformerConfig
from .modeling_cswin import (
    CswinBackbone,
    CswinForImageClassification,
    CswinForSemanticSegmentation,
    CswinModel,
)
from .modeling_glam_swin import (
    GlamSwinBackbone,
    GlamSwinForImageClassification,
    GlamSwinForSemanticSegmentation,
    GlamSwinModel,
)
from .modeling_maformer import (
    MaformerBackbone,
    MaformerForImageClassification,
    MaformerForSemanticSegmentation,
    MaformerModel,
)
from .modeling_segdeformer import SegDeformerForSemanticSegmentation

MODELS: dict[type[PreTrainedConfig], dict[type, type]] = {
    SegDeformerConfig: {AutoModelForSemanticSegmentation: SegDeformerForSemanticSegmentation},
    GlamSwinConfig: {
        AutoModel: GlamSwinModel,
        AutoBackbone: GlamSwinBackbone,
        AutoModelForImageClassification: GlamSwinForImageClassification,
        AutoModelForSemanticSegmentation: GlamSwinForSemanticSegmentation,
    },
    MaformerConfig: {
        AutoModel: MaformerModel,
        AutoBackbone: MaformerBackbone,
        AutoModelForImageClassification: MaformerForImageClassification,
        AutoModelForSemanticSegmentation: MaformerForSemanticSegmentation,
    },
    CswinConfig: {
        AutoModel: CswinModel,
        AutoBackbone: CswinBackbone,
        AutoModelForImageClassification: CswinForImageClassification,
        AutoModelForSemanticSegmentation: CswinForSemanticSegmentation,
    },
}


def register_auto_classes(image_processors: dict[str, type]) -> None:
    """Makes `Auto*.from_pretrained` and `pipeline` find our models and their image processors (by backend)."""
    for config, models in MODELS.items():
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoImageProcessor.register(config, image_processor_classes=image_processors, exist_ok=True)
        for auto_class, model in models.items():
            auto_class.register(config, model, exist_ok=True)
        # The pipeline checks this list of names, and without an entry logs an error before it works all the same.
        segmenter = models[AutoModelForSemanticSegmentation]
        modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[config.model_type] = segmenter.__name__
