"""Converts mmsegmentation's Mix Transformer (SegFormer's encoder) to the names of the checkpoints
`nvidia/mit-*`.

In mmsegmentation, queries, keys and values are one projection, and the MLP consists of 1x1 convolutions.
Sizes are read from the tensors, except the width of a head, which in every published size is the width of the
first stage.
"""

import re
from collections.abc import Mapping

from torch import Tensor
from transformers import SegformerConfig, SegformerModel

from ...modeling.renaming import RenamingTable, StateDict

STRIDES = (4, 2, 2, 2)  # of the patch embeddings, in every published size
ENCODER = RenamingTable(
    renamed=(
        (r"^layers\.(\d)\.0\.projection\.", r"encoder.patch_embeddings.\1.proj."),
        (r"^layers\.(\d)\.0\.norm\.", r"encoder.patch_embeddings.\1.layer_norm."),
        (r"^layers\.(\d)\.1\.(\d+)\.", r"encoder.block.\1.\2."),
        (r"^layers\.(\d)\.2\.", r"encoder.layer_norm.\1."),
        (r"\.attn\.attn\.in_proj_", ".attention.self.qkv."),
        (r"\.attn\.attn\.out_proj\.", ".attention.output.dense."),
        (r"\.attn\.sr\.", ".attention.self.sr."),
        (r"\.attn\.norm\.", ".attention.self.layer_norm."),
        (r"\.norm(\d)\.", r".layer_norm_\1."),
        (r"\.ffn\.layers\.0\.", ".mlp.dense1."),
        (r"\.ffn\.layers\.1\.", ".mlp.dwconv.dwconv."),
        (r"\.ffn\.layers\.4\.", ".mlp.dense2."),
    ),
    split=((r"\bqkv\b", ("query", "key", "value")),),
)


def mit_from_mmseg(weights: Mapping[str, Tensor]) -> SegformerModel:
    """Builds transformers' encoder with these weights, whose names begin with `layers.`.

    Raises:
        ValueError: If weights are missing, left over or of other shapes.
    """
    model, report = SegformerModel.from_pretrained(
        None, config=mit_config(weights), state_dict=renamed(weights), output_loading_info=True
    )
    if problems := {name: found for name, found in report.items() if found}:
        raise ValueError(f"this is not a Mix Transformer of mmsegmentation: {problems}.")
    return model


def renamed(weights: Mapping[str, Tensor]) -> StateDict:
    """Returns the weights under the names of `nvidia/mit-*`, which every version of transformers reads."""
    converted = ENCODER.apply(weights)
    return {
        name: tensor[..., 0, 0] if re.search(r"\.dense\d\.weight$", name) else tensor
        for name, tensor in converted.items()
    }


def mit_config(weights: Mapping[str, Tensor]) -> SegformerConfig:
    """Returns the configuration, with sizes read from the tensors."""
    stages = range(1 + max(int(name.split(".")[1]) for name in weights if name.startswith("layers.")))
    embeddings = [weights[f"layers.{stage}.0.projection.weight"] for stage in stages]
    widths = [len(embedding) for embedding in embeddings]
    hidden = [len(weights[f"layers.{stage}.1.0.ffn.layers.0.weight"]) for stage in stages]
    reductions = [weights.get(f"layers.{stage}.1.0.attn.sr.weight") for stage in stages]
    return SegformerConfig(
        num_channels=embeddings[0].shape[1],
        num_encoder_blocks=len(widths),
        depths=[
            len({name.split(".")[3] for name in weights if name.startswith(f"layers.{stage}.1.")})
            for stage in stages
        ],
        sr_ratios=[1 if kernel is None else kernel.shape[-1] for kernel in reductions],
        hidden_sizes=widths,
        patch_sizes=[embedding.shape[-1] for embedding in embeddings],
        strides=STRIDES[: len(widths)],
        num_attention_heads=[width // widths[0] for width in widths],
        mlp_ratios=[inner // width for inner, width in zip(hidden, widths, strict=True)],
    )


__all__ = ["mit_from_mmseg"]
