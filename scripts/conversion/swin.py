"""Checkpoints of transformers' Swin, alone or with UPerNet; the table is `modeling/swin_checkpoints.py`."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedModel

from ...modeling.modeling_glam_swin import (
    GlamSwinBackbone,
    GlamSwinForImageClassification,
    GlamSwinForSemanticSegmentation,
    GlamSwinModel,
)

CLASSES = {
    "SwinModel": GlamSwinModel,
    "SwinForMaskedImageModeling": GlamSwinModel,
    "SwinBackbone": GlamSwinBackbone,
    "SwinForImageClassification": GlamSwinForImageClassification,
    "UperNetForSemanticSegmentation": GlamSwinForSemanticSegmentation,
}


def glam_swin_from_transformers(checkpoint: str | Path, options: dict[str, Any]) -> PreTrainedModel:
    """Builds our model of the same kind as the checkpoint. Without options, it has no global tokens and is
    equivalent.

    Args:
        checkpoint: A folder or a name on the Hub.
        options: Fields of our configuration.

    Raises:
        ValueError: If the checkpoint is not a Swin or UPerNet-Swin model.
    """
    config = AutoConfig.from_pretrained(checkpoint)
    architecture = (config.architectures or ["unknown"])[0]
    if architecture not in CLASSES:
        raise ValueError(
            f"the checkpoint's architecture is {architecture}. Convertible: {', '.join(CLASSES)}."
        )
    same = {"num_global_tokens": 0}
    if architecture == "SwinBackbone":
        same["out_features"] = config.out_features
    return CLASSES[architecture].from_swin(checkpoint, **{**same, **options})
