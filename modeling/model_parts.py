"""The parts that models of this package and of transformers have in common."""

from transformers import PreTrainedModel


def backbone_name(model: PreTrainedModel) -> str:
    """Name of the attribute that holds the backbone. Raises ValueError if there is none."""
    for name in (model.base_model_prefix, "backbone"):
        if name and hasattr(model, name):
            return name
    raise ValueError(
        f"{type(model).__name__} has no backbone separate from its head. Pass a model with a head, such as "
        "SegDeformerForSemanticSegmentation."
    )
