"""Checkpoints of the CSWin authors' repository: classifiers, and backbones for segmentation, of every size.

The tensors have the same meaning as ours, except that queries, keys and values are one projection there and
three here. Sizes are read from the tensors, except stripe widths and numbers of heads, which no tensor
determines.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...configuration.configuration_cswin import CswinConfig
from ...modeling.modeling_cswin import CswinBackbone, CswinForImageClassification
from ...modeling.renaming import RenamingTable, fill

# STRIPES: the attention of one direction. BLOCKS: a block, or, with a prefix, the blocks of a model.
STRIPES = RenamingTable(renamed=((r"\bget_v\.", "position."),))
BLOCKS = RenamingTable(
    renamed=(
        (r"\bqkv\.", "attention.qkv."),
        (r"\bproj\.", "attention.o_proj."),
        (r"\battns\.(\d)\.", r"attention.branches.\1."),
        *STRIPES.renamed,
    ),
    split=((r"\bqkv\b", ("q_proj", "k_proj", "v_proj")),),
)
STEM = (
    (r"^stage1_conv_embed\.0\.", "encoder.embeds.0.projection."),
    (r"^stage1_conv_embed\.2\.", "encoder.embeds.0.norm."),
    (r"^merge(\d)\.conv\.", r"encoder.embeds.\1.projection."),
    (r"^merge(\d)\.norm\.", r"encoder.embeds.\1.norm."),
    (r"^norm(\d)\.", r"norms.stage\1."),
    (r"^stage(\d)\.", lambda match: f"encoder.stages.{int(match[1]) - 1}."),
    *BLOCKS.renamed,
)
BACKBONE = RenamingTable(STEM, BLOCKS.split)
CLASSIFIER = RenamingTable(
    (*STEM, (r"^(encoder|norm)\.", r"backbone.\1."), (r"^head\.", "classifier.")), BLOCKS.split
)

# Arguments with the same value in all models of the authors; no other value is supported here.
FIXED = {
    "patch_size": 4,
    "qkv_bias": True,
    "qk_scale": None,
    "drop_rate": 0.0,
    "attn_drop_rate": 0.0,
    "hybrid_backbone": None,
}
# Arguments that do not affect the computation, or that the tensors determine.
IRRELEVANT = {
    "type", "img_size", "num_classes", "embed_dim", "depth", "in_chans", "norm_layer", "use_chk",
}  # fmt: skip
UNDERSTOOD = {"split_size", "num_heads", "mlp_ratio", "drop_path_rate"}


def cswin_from_official(
    weights: Mapping[str, Tensor], arguments: Mapping[str, Any]
) -> CswinBackbone | CswinForImageClassification:
    """Builds our model with the authors' weights: a classifier if they have a `head`, else a backbone.

    Args:
        weights: The authors' state dict.
        arguments: The authors' constructor arguments, of which `split_size` and `num_heads` are required; or
            a whole `case.json` of the golden data.

    Raises:
        ValueError: If an argument is missing, or cannot be converted.
    """
    arguments = arguments.get("args", arguments)
    check_arguments(arguments)
    is_classifier = "head.weight" in weights
    options = config_options(weights, arguments)
    table = CLASSIFIER if is_classifier else BACKBONE
    if is_classifier:
        options["num_labels"] = len(weights["head.weight"])
    else:
        options["out_features"] = [
            f"stage{stage}" for stage in range(1, 5) if f"norm{stage}.weight" in weights
        ]
    model = (CswinForImageClassification if is_classifier else CswinBackbone)(CswinConfig(**options))
    fill(model, table.apply(weights))
    return model.eval()


def config_options(weights: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of our configuration for the authors' arguments and the sizes of their tensors."""
    stages = range(1, 5)
    depths = [
        len({name.split(".")[1] for name in weights if re.match(rf"stage{stage}\.\d+\.", name)})
        for stage in stages
    ]
    has_stripes = [f"stage{stage}.0.attns.1.get_v.weight" in weights for stage in stages]
    embedding = weights["stage1_conv_embed.0.weight"]
    options = {
        "num_channels": embedding.shape[1],
        "hidden_sizes": [len(weights[f"stage{stage}.0.norm1.weight"]) for stage in stages],
        "depths": depths,
        "num_heads": arguments["num_heads"],
        "stripe_widths": [
            width if striped else 0
            for width, striped in zip(arguments["split_size"], has_stripes, strict=True)
        ],
        "stripe_padding": "official",
    }
    optional = {name: arguments[name] for name in ("mlp_ratio", "drop_path_rate") if name in arguments}
    return {**options, **optional}


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Raises ValueError for an argument that is missing, or that would be ignored although it has an effect."""
    for name in ("split_size", "num_heads"):
        if name not in arguments:
            raise ValueError(
                f"the arguments lack '{name}', which no tensor determines. Give the authors' value, a list of four numbers."
            )
    for name, value in arguments.items():
        if name in FIXED and value != FIXED[name]:
            raise ValueError(f"{name} is {value}; only {name}={FIXED[name]} can be converted.")
        if name not in UNDERSTOOD | IRRELEVANT | FIXED.keys():
            raise ValueError(
                f"the conversion does not know the argument '{name}'. Remove it if it has no effect."
            )
