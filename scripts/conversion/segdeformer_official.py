"""Checkpoints of the SegDeformer authors' repository: the decode head alone, or a whole model with a Mix
Transformer.

The tensors have the same meaning as ours, except that tokens have a leading axis of length one there.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...configuration.configuration_segdeformer import SegDeformerConfig
from ...modeling.modeling_segdeformer import SegDeformerForSemanticSegmentation
from ...modeling.renaming import RenamingTable, StateDict, fill
from .mit_mmseg import mit_from_mmseg

PROJECTIONS = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "o_proj"}

# An attention block.
ATTENTION = RenamingTable(
    renamed=(
        (r"\b(query|key|value|out)_project\.", lambda match: f"{PROJECTIONS[match[1]]}."),
        (r"\.conv\.weight$", ".convolution.weight"),
        (r"\.bn\.", ".norm."),
    ),
)

# The external context mining: class tokens and cross-attention.
EXTERNAL = RenamingTable(
    renamed=(
        (r"^class_token\.cls_token$", "tokens.class_tokens"),
        (r"^class_token\.prop_token$", "tokens.info_tokens"),
        (r"^class_token\.(q|k)\.", r"\1_proj."),
        (r"^trans\.cross_attn\.", "attention."),
        *ATTENTION.renamed,
    ),
)

# The whole head; its classifier is not part of our decoder.
HEAD = RenamingTable(
    renamed=(
        (r"^decode_head\.", ""),  # its prefix in whole checkpoints
        (r"^conv_seg\.", "classifier."),
        (r"^convs\.", "decoder.neck.projections."),
        (r"^fusion_conv\.", "decoder.neck.fusion."),
        (r"^trans\.attn\.", "decoder.internal.layers.0.attention."),
        *(
            (pattern, f"decoder.external.{replacement}")
            for pattern, replacement in EXTERNAL.renamed[: -len(ATTENTION.renamed)]
        ),
        *ATTENTION.renamed,
    ),
)


def head_from_official(weights: Mapping[str, Tensor], table: RenamingTable = HEAD) -> StateDict:
    """Returns the authors' tensors of a head, or of the part that `table` describes, with our names and
    shapes.
    """
    return {
        name: tensor.squeeze(0) if re.search(r"\b(class|info)_tokens$", name) else tensor
        for name, tensor in table.apply(weights).items()
    }


def segdeformer_from_official(
    weights: Mapping[str, Tensor], overrides: Mapping[str, Any]
) -> SegDeformerForSemanticSegmentation:
    """Builds our model from a whole checkpoint with a Mix Transformer, the kind that the authors released.

    Args:
        weights: The authors' state dict, from which sizes are read.
        overrides: Fields of our configuration, such as `id2label`.

    Raises:
        ValueError: If the checkpoint is of another kind.
    """
    backbone, head = (
        {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
        for prefix in ("backbone.", "decode_head.")
    )
    if "layers.0.0.projection.weight" not in backbone or "conv_seg.weight" not in head:
        raise ValueError(
            "the checkpoint is not a Mix Transformer (backbone.layers...) with a SegDeformer head (decode_head...). "
            "Give a checkpoint of the SegDeformer authors' mmsegmentation, MiT-B0 to B5."
        )
    encoder = mit_from_mmseg(backbone)
    classifier = head["conv_seg.weight"]
    sizes = {"decoder_hidden_size": classifier.shape[1], "num_labels": len(classifier)}
    if "id2label" in overrides:
        sizes.pop("num_labels")
    model = SegDeformerForSemanticSegmentation(
        SegDeformerConfig(backbone_config=encoder.config, **{**sizes, **overrides})
    )
    ours = {f"backbone.encoder.model.{name}": tensor for name, tensor in encoder.state_dict().items()}
    fill(model, ours | head_from_official(head))
    return model.eval()


__all__ = ["ATTENTION", "EXTERNAL", "HEAD", "head_from_official", "segdeformer_from_official"]
