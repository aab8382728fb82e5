"""The Mix Transformer (SegFormer's encoder) of mmsegmentation: its names, as the checkpoints of `nvidia/mit-*` have them.

Queries, keys and values are one projection there, and the layers of the MLP are convolutions of one cell. Sizes are
read from the tensors; the width of a head, which none tells, is the width of the first stage in every published size.
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
    """transformers' encoder with these weights, whose names begin with `layers.`."""
    model, report = SegformerModel.from_pretrained(
        None, config=mit_config(weights), state_dict=renamed(weights), output_loading_info=True
    )
    if problems := {name: found for name, found in report.items() if found}:
        raise ValueError(f"this is no Mix Transformer of mmsegmentation: {problems}.")
    return model


def renamed(weights: Mapping[str, Tensor]) -> StateDict:
    """Under the names of `nvidia/mit-*`, which transformers reads in every version."""
    converted = ENCODER.apply(weights)
    return {
        name: tensor[..., 0, 0] if re.search(r"\.dense\d\.weight$", name) else tensor
        for name, tensor in converted.items()
    }


def mit_config(weights: Mapping[str, Tensor]) -> SegformerConfig:
    """The sizes that the tensors have."""
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
