"""Swin-Unets of the GLAM authors' repository: with or without global tokens, with or without non-local
upsampling.

Decoder modules are numbered in two ways: without NLU, the first module is only the expansion of the
bottleneck; with NLU, each module is one step. The authors' NLU builds two residual branches and uses one,
stores twice as many relative positions along each axis as it can address, and has an indexing error, which
our models reproduce with `nonlocal_bias="official"`.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...modeling.renaming import RenamingTable, StateDict
from .glam_blocks import (
    BLOCKS,
    ENCODER_FIELDS,
    ENCODER_FIXED,
    ENCODER_IRRELEVANT,
    check_arguments,
    dead_parts,
    encoder_options,
)

FIXED = {**ENCODER_FIXED, "final_upsample": "expand_first"}
IRRELEVANT = {
    *ENCODER_IRRELEVANT,
    "depths_decoder",
    "num_classes",
}  # the decoder's depths mirror the encoder's
UNDERSTOOD = {
    *ENCODER_FIELDS,
    "pretrain_img_size",
    "residual_patch_expand",
    "cross_attention_weight",
    "use_cross_attention_by_layer",
}
DEFAULTS = {
    "depths": (2, 2, 2, 2),
    "drop_path_rate": 0.1,
}  # of the authors' constructor, where they differ from ours

PREFIX = r"^(?:backbone\.)?(?:swin_unet\.)?"

# An NLU block; within a model its name is `upsample`.
NONLOCAL = RenamingTable(
    renamed=(
        (r"(^|upsample\.)attn\.relative_position_bias_table$", r"\1attend.position_bias.table"),
        (r"(^|upsample\.)attn\.proj\.", r"\1attend.attention.o_proj."),
        (r"(^|upsample\.)attn\.proj_q\.", r"\1attend.attention.q_proj."),
        (r"(^|upsample\.)attn\.proj_kv\.", r"\1attend.attention.kv."),
        (r"(^|upsample\.)expand\.expand\.", r"\1shortcut.expansion."),
        (r"(^|upsample\.)expand\.norm\.", r"\1shortcut.norm."),
        (r"(^|upsample\.)proj_shortcut\.", r"\1shortcut.projection."),
    ),
    split=((r"\bkv\b", ("k_proj", "v_proj")),),
    dropped=(r"\brelative_position_index$",),
)
SHORTCUTS = {True: "expand", False: "bilinear"}  # by the authors' residual_patch_expand
UNUSED_SHORTCUT = {"expand": r"\bproj_shortcut\.", "bilinear": r"\bexpand\."}

OUTSIDE_STEPS = (
    (r"^patch_embed\.proj\.", "backbone.encoder.patch_embed.projection."),
    (r"^patch_embed\.norm\.", "backbone.encoder.patch_embed.norm."),
    (r"^layers\.(\d+)\.downsample\.", r"backbone.encoder.merges.\1."),
    (r"^layers\.", "backbone.encoder.stages."),
    (r"^norm_up\.", "decoder.norm."),
    (r"^up\.expand\.", "decoder.expand.expansion."),
    (r"^up\.norm\.", "decoder.expand.norm."),
    (r"^output\.", "classifier."),
)
EXPANDING_STEPS = (
    (r"^layers_up\.0\.expand\.", "decoder.steps.0.upsample.expand.expansion."),
    (r"^layers_up\.0\.norm\.", "decoder.steps.0.upsample.expand.norm."),
    (r"^layers_up\.(\d+)\.upsample\.expand\.", r"decoder.steps.\1.upsample.expand.expansion."),
    (r"^layers_up\.(\d+)\.upsample\.norm\.", r"decoder.steps.\1.upsample.expand.norm."),
    (r"^layers_up\.(\d+)\.", lambda match: f"decoder.steps.{int(match[1]) - 1}.stage."),
    (r"^concat_back_dim\.(\d+)\.", lambda match: f"decoder.steps.{int(match[1]) - 1}.fuse."),
)
NONLOCAL_STEPS = (
    (r"^layers_patch_expand\.(\d+)\.expand\.", r"decoder.steps.\1.upsample.expand.expansion."),
    (r"^layers_patch_expand\.(\d+)\.norm\.", r"decoder.steps.\1.upsample.expand.norm."),
    (r"^layers_cross_attention_up\.(\d+)\.blocks\.0\.", r"decoder.steps.\1.upsample."),
    (r"^layers_up\.(\d+)\.", r"decoder.steps.\1.stage."),
    (r"^concat_back_dim\.(\d+)\.", r"decoder.steps.\1.fuse."),
)


def is_unet(weights: Mapping[str, Tensor]) -> bool:
    return any("layers_up." in name for name in weights)


def has_nonlocal_layout(weights: Mapping[str, Tensor]) -> bool:
    return any("layers_cross_attention_up." in name for name in weights)


def unet_options(arguments: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the fields of our configuration for the authors' arguments of a Unet; the loss, as theirs, is
    the mean over all pixels.
    """
    check_arguments("the Unet", arguments, UNDERSTOOD, FIXED, IRRELEVANT)
    return {
        **DEFAULTS,
        **encoder_options(arguments, weights),
        "decoder": "unet",
        "num_labels": next(len(tensor) for name, tensor in weights.items() if name.endswith("output.weight")),
        "loss_reduction": "all",
        "pretrain_image_size": arguments.get("pretrain_img_size", 224),
        "upsampling": upsampling(arguments, weights),
        "nonlocal_bias": "official",
        "nonlocal_shortcut": SHORTCUTS[arguments.get("residual_patch_expand", True)],
    }


def upsampling(arguments: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    """Returns our name of the upsampling. Raises ValueError if it is not the same for all steps."""
    steps = sum(re.search(r"\bconcat_back_dim\.\d+\.weight$", name) is not None for name in weights)
    choices = set(arguments.get("use_cross_attention_by_layer", [True] * steps)[:steps])
    if len(choices) > 1:
        raise ValueError(
            f"the Unet has use_cross_attention_by_layer={arguments['use_cross_attention_by_layer']}; "
            "only the same value for all layers can be converted."
        )
    return "nonlocal" if has_nonlocal_layout(weights) and choices == {True} else "expand"


def unet_table(weights: Mapping[str, Tensor], options: Mapping[str, Any]) -> RenamingTable:
    """Returns the table that renames, splits and drops the tensors of a Unet with these options."""
    depths, has_nonlocal = options["depths"], has_nonlocal_layout(weights)
    uses_nonlocal = options["upsampling"] == "nonlocal"
    steps = NONLOCAL_STEPS if has_nonlocal else EXPANDING_STEPS
    dropped = [r"^decode_head\.", *BLOCKS.dropped]  # the wrapper has a head that it does not use
    for stage, depth in enumerate(depths):
        dropped += dead_parts(rf"{PREFIX[1:]}layers\.{stage}\.", depth)
    for step, depth in enumerate(depths[-2::-1], start=0 if has_nonlocal else 1):
        dropped += dead_parts(rf"{PREFIX[1:]}layers_up\.{step}\.", depth)
    if uses_nonlocal:
        unused = UNUSED_SHORTCUT[options["nonlocal_shortcut"]]
        dropped += [r"\blayers_patch_expand\.", rf"\blayers_cross_attention_up\..*{unused}"]
    elif has_nonlocal:
        dropped.append(r"\blayers_cross_attention_up\.")
    renamed = (
        (PREFIX, ""),
        (r"^norm\.", f"backbone.norms.stage{len(depths)}."),
        *OUTSIDE_STEPS,
        *steps,
        *(NONLOCAL.renamed if uses_nonlocal else ()),
        *BLOCKS.renamed,
    )
    return RenamingTable(renamed, (*NONLOCAL.split, *BLOCKS.split), tuple(dropped))


def fitted_nonlocal(converted: StateDict, attention_weight: float = 1.0) -> StateDict:
    """Adapts the weights of NLU blocks to ours: drops unused positions, and multiplies `attention_weight`
    into the branches.
    """
    fitted = dict(converted)
    for name, tensor in converted.items():
        if name.endswith("attend.position_bias.table"):
            fitted[name] = addressed_rows(tensor)
        elif re.search(r"(^|upsample\.)(attend\.attention\.o_proj|mlp\.fc2)\.", name):
            fitted[name] = tensor * attention_weight
    return fitted


def addressed_rows(table: Tensor) -> Tensor:
    """((4w-1)^2, heads) -> ((2w-1)^2, heads), the relative positions that an NLU block can address; w is the
    window size.
    """
    window = (round(table.shape[0] ** 0.5) + 1) // 4
    return table[: (2 * window - 1) ** 2].clone()
