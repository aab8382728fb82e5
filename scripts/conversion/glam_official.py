"""Checkpoints of the GLAM authors' repository: GLAM-Swin and plain Swin, as backbones, with UPerNet, or as
Unets.

Common parts are in `glam_blocks.py`, Unets in `glam_unet_official.py`, and the shortening of position tables
in `glam_position_tables.py`.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...configuration.configuration_glam_swin import GlamSwinConfig
from ...modeling.modeling_glam_swin import GlamSwinBackbone, GlamSwinForSemanticSegmentation
from ...modeling.renaming import RenamingTable, StateDict, fill
from .glam_blocks import (
    BLOCKS,
    ENCODER_FIELDS,
    ENCODER_FIXED,
    ENCODER_IRRELEVANT,
    check_arguments,
    dead_parts,
    encoder_options,
)
from .glam_position_tables import shortened_tables, stored_rows
from .glam_unet_official import fitted_nonlocal, is_unet, unet_options, unet_table

MODEL = RenamingTable(
    renamed=(
        (r"^(backbone\.)?patch_embed\.proj\.", r"\1encoder.patch_embed.projection."),
        (r"^(backbone\.)?patch_embed\.norm\.", r"\1encoder.patch_embed.norm."),
        (r"^(backbone\.)?layers\.(\d+)\.downsample\.", r"\1encoder.merges.\2."),
        (r"^(backbone\.)?layers\.", r"\1encoder.stages."),
        (r"^(backbone\.)?norm(\d+)\.", lambda match: f"{match[1] or ''}norms.stage{int(match[2]) + 1}."),
        (r"^decode_head\.psp_modules\.(\d+)\.1\.", r"decoder.pooling.branches.\1."),
        (r"^decode_head\.bottleneck\.", "decoder.pooling.bottleneck."),
        (r"^decode_head\.lateral_convs\.", "decoder.laterals."),
        (r"^decode_head\.fpn_convs\.", "decoder.fpn_convs."),
        (r"^decode_head\.fpn_bottleneck\.", "decoder.fusion."),
        (r"^decode_head\.conv_seg\.", "classifier."),
        (r"^auxiliary_head\.convs\.0\.", "auxiliary_head.conv."),
        (r"^auxiliary_head\.conv_seg\.", "auxiliary_head.classifier."),
        (r"\.conv\.weight$", ".convolution.weight"),
        (r"\.bn\.", ".norm."),
        *BLOCKS.renamed,
    ),
    split=BLOCKS.split,
    dropped=BLOCKS.dropped,
)

# Arguments with the same value in all configurations of the authors; no other value is supported here.
HEAD_FIXED = {
    "decode_head": {
        "in_index": [0, 1, 2, 3],
        "pool_scales": [1, 2, 3, 6],
        "dropout_ratio": 0.1,
        "align_corners": False,
    },
    "auxiliary_head": {
        "in_index": 2,
        "num_convs": 1,
        "kernel_size": 3,
        "dilation": 1,
        "concat_input": False,
        "dropout_ratio": 0.1,
        "align_corners": False,
    },
}
# Arguments that do not affect the computation, or repeat others.
HEAD_IRRELEVANT = {"type", "in_channels", "norm_cfg"}
BACKBONE_IRRELEVANT = {*ENCODER_IRRELEVANT, "pretrain_img_size", "frozen_stages", "out_indices"}


def glam_swin_from_official(
    weights: Mapping[str, Tensor],
    arguments: Mapping[str, Any],
    max_image_size: tuple[int, int] | None = None,
) -> GlamSwinBackbone | GlamSwinForSemanticSegmentation:
    """Builds our model with the authors' weights.

    Args:
        weights: The authors' state dict.
        arguments: The authors' constructor arguments, of a backbone or Unet alone or as {"backbone",
            "decode_head", "auxiliary_head"}; or a whole `case.json` of the golden data.
        max_image_size: Height and width of the largest image for the model, in pixels. Rows of the position
            tables that images up to this size do not use are dropped. By default, all rows are kept.

    Raises:
        ValueError: If an argument cannot be converted, or the position tables are too small for
            `max_image_size`.
    """
    arguments = arguments.get("constructor_arguments", arguments)
    options, converted = (converted_unet if is_unet(weights) else converted_pyramid)(weights, arguments)
    if max_image_size is not None:
        converted = shortened_tables(converted, GlamSwinConfig(**options), max_image_size)
    options["global_position_rows"] = stored_rows(converted, GlamSwinConfig(**options))
    model_class = GlamSwinForSemanticSegmentation if "decoder" in options else GlamSwinBackbone
    model = model_class(GlamSwinConfig(**options))
    fill(model, converted)
    return model.eval()


def converted_unet(
    weights: Mapping[str, Tensor], arguments: Mapping[str, Any]
) -> tuple[dict[str, Any], StateDict]:
    """Returns the fields of our configuration and our weights for a Unet."""
    arguments = arguments.get("backbone", arguments)  # a training configuration also has an unused head
    options = unet_options(arguments, weights)
    converted = unet_table(weights, options).apply(weights)
    return options, fitted_nonlocal(converted, arguments.get("cross_attention_weight", 1.0))


def converted_pyramid(
    weights: Mapping[str, Tensor], arguments: Mapping[str, Any]
) -> tuple[dict[str, Any], StateDict]:
    """Returns the fields of our configuration and our weights for a backbone, alone or with UPerNet."""
    is_segmenter = "backbone" in arguments
    options = backbone_options(arguments["backbone"] if is_segmenter else arguments, weights)
    if is_segmenter:
        options.update(segmenter_options(arguments["decode_head"], arguments.get("auxiliary_head")))
    dead = [
        part
        for i, depth in enumerate(options["depths"])
        for part in dead_parts(rf"(?:backbone\.)?layers\.{i}\.", depth)
    ]
    return options, MODEL.with_dropped(dead).apply(weights)


def backbone_options(arguments: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the fields of our configuration for the authors' backbone arguments."""
    check_arguments("backbone", arguments, ENCODER_FIELDS, ENCODER_FIXED, BACKBONE_IRRELEVANT)
    options = {"depths": (2, 2, 6, 2), **encoder_options(arguments, weights)}
    if "out_indices" in arguments:
        options["out_features"] = [f"stage{index + 1}" for index in arguments["out_indices"]]
    return options


def segmenter_options(
    decode_head: Mapping[str, Any], auxiliary_head: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Returns the fields of our configuration for the authors' two heads; the loss, as theirs, is the mean
    over all pixels.
    """
    check_head("decode_head", decode_head)
    options = {
        "decoder": "upernet",
        "decoder_hidden_size": decode_head["channels"],
        "num_labels": decode_head["num_classes"],
        "use_auxiliary_head": auxiliary_head is not None,
        "loss_reduction": "all",
    }
    if auxiliary_head is not None:
        check_head("auxiliary_head", auxiliary_head)
        options["auxiliary_hidden_size"] = auxiliary_head["channels"]
        options["auxiliary_loss_weight"] = auxiliary_head.get("loss_decode", {}).get("loss_weight", 0.4)
    return options


def check_head(part: str, arguments: Mapping[str, Any]) -> None:
    understood = ("channels", "num_classes", "loss_decode")
    check_arguments(part, arguments, understood, HEAD_FIXED[part], HEAD_IRRELEVANT)
