"""Checkpoints of the GLAM authors' repository: GLAM-Swin and plain Swin, as backbones or with UPerNet.

The tensors' meaning is the same as ours, except that
- queries, keys and values are one projection there, three here;
- the global attention of each stage's last block is left out here: nothing reads its result. A stage of one block
  therefore has no global attention at all, and no use for its position table;
- of the position tables, whose rows are mostly never read, the centre suffices for images up to a chosen size.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...configuration.configuration_glam_swin import GlamSwinConfig
from ...modeling.modeling_glam_swin import GlamSwinBackbone, GlamSwinForSemanticSegmentation
from .engine import RenamingTable, StateDict, fill

# A block or a stage on its own; with a prefix, the blocks of a whole model.
BLOCKS = RenamingTable(
    renamed=(
        (r"\battn\.relative_position_bias_table$", "position_bias.table"),
        (r"\battn\.proj\.", "attention.o_proj."),
        (r"\battn\.qkv\.", "attention.qkv."),
        (r"\bgt_attn\.proj\.", "global_attention.o_proj."),
        (r"\bgt_attn\.qkv\.", "global_attention.qkv."),
        (r"\bglobal_token$", "global_tokens.initial"),
        (r"\bpe(\.used_slice)?$", "global_position.table"),
    ),
    split=((r"\bqkv\b", ("q_proj", "k_proj", "v_proj")),),
    dropped=(r"\brelative_position_index$", r"\battn_mask$"),  # recomputed here
)

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

BACKBONE_FIELDS = {
    "patch_size": "patch_size",
    "in_chans": "num_channels",
    "embed_dim": "embed_dim",
    "depths": "depths",
    "num_heads": "num_heads",
    "window_size": "window_size",
    "mlp_ratio": "mlp_ratio",
    "drop_path_rate": "drop_path_rate",
    "gt_num": "num_global_tokens",
}
# Arguments that have one value in all of the authors' configurations, the only one that is built here.
FIXED = {
    "backbone": {
        "ape": False,
        "qkv_bias": True,
        "qk_scale": None,
        "patch_norm": True,
        "drop_rate": 0.0,
        "attn_drop_rate": 0.0,
    },
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
# Arguments that leave the computation as it is, or repeat what another one says.
IRRELEVANT = {
    "backbone": {"type", "pretrain_img_size", "frozen_stages", "use_checkpoint", "out_indices", "norm_layer"},
    "decode_head": {"type", "in_channels", "norm_cfg"},
    "auxiliary_head": {"type", "in_channels", "norm_cfg"},
}


def glam_swin_from_official(
    weights: Mapping[str, Tensor],
    arguments: Mapping[str, Any],
    max_image_size: tuple[int, int] | None = None,
) -> GlamSwinBackbone | GlamSwinForSemanticSegmentation:
    """Our model with the authors' weights.

    arguments: the authors' constructor arguments, of the backbone alone or as {"backbone", "decode_head",
        "auxiliary_head"}; a whole `case.json` of the golden data is understood too.
    max_image_size: height and width of the largest image that the model will see. Position rows that such images
        and smaller ones never read are left out. All rows are kept by default.
    """
    arguments = arguments.get("constructor_arguments", arguments)
    is_segmenter = "backbone" in arguments
    backbone = arguments["backbone"] if is_segmenter else arguments
    options = backbone_options(backbone, weights)
    if is_segmenter:
        options.update(segmenter_options(arguments["decode_head"], arguments.get("auxiliary_head")))
    dead = [
        part
        for i, depth in enumerate(options["depths"])
        for part in dead_parts(rf"(?:backbone\.)?layers\.{i}\.", depth)
    ]
    converted = MODEL.with_dropped(dead).apply(weights)
    if max_image_size is not None:
        converted = shortened_tables(converted, GlamSwinConfig(**options), max_image_size)
    options["global_position_rows"] = stored_rows(converted, GlamSwinConfig(**options))
    model_class = GlamSwinForSemanticSegmentation if is_segmenter else GlamSwinBackbone
    model = model_class(GlamSwinConfig(**options))
    fill(model, converted)
    return model.eval()


def backbone_options(arguments: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Our configuration's fields for the authors' backbone arguments."""
    check_arguments("backbone", arguments, BACKBONE_FIELDS)
    options = {ours: arguments[theirs] for theirs, ours in BACKBONE_FIELDS.items() if theirs in arguments}
    options.setdefault("depths", (2, 2, 6, 2))
    options.setdefault("num_global_tokens", 0)
    if "out_indices" in arguments:
        options["out_features"] = [f"stage{index + 1}" for index in arguments["out_indices"]]
    options["use_global_attention"] = any(".gt_attn." in name for name in weights)
    options["global_position_embedding"] = "table" if options["use_global_attention"] else "none"
    return options


def segmenter_options(
    decode_head: Mapping[str, Any], auxiliary_head: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Our configuration's fields for the authors' two heads; the loss is theirs: the mean over all pixels."""
    check_arguments("decode_head", decode_head, ("channels", "num_classes", "loss_decode"))
    options = {
        "decoder": "upernet",
        "decoder_hidden_size": decode_head["channels"],
        "num_labels": decode_head["num_classes"],
        "use_auxiliary_head": auxiliary_head is not None,
        "loss_reduction": "all",
    }
    if auxiliary_head is not None:
        check_arguments("auxiliary_head", auxiliary_head, ("channels", "num_classes", "loss_decode"))
        options["auxiliary_hidden_size"] = auxiliary_head["channels"]
        options["auxiliary_loss_weight"] = auxiliary_head.get("loss_decode", {}).get("loss_weight", 0.4)
    return options


def check_arguments(part: str, arguments: Mapping[str, Any], understood: Mapping | tuple) -> None:
    """Raises for an argument that would be lost."""
    for name, value in arguments.items():
        if name in FIXED[part]:
            required = FIXED[part][name]
            if (list(value) if isinstance(value, tuple) else value) != required:
                raise ValueError(f"{part} has {name}={value}; only {name}={required} can be converted.")
        elif name not in understood and name not in IRRELEVANT[part]:
            raise ValueError(
                f"{part} has an argument '{name}' that the conversion does not know. Remove it if it changes nothing."
            )


def dead_parts(stage: str, depth: int) -> list[str]:
    """Patterns of the tensors on which no output depends, in a stage of this depth whose names start with `stage`."""
    last_attention = rf"^{stage}blocks\.{depth - 1}\.gt_attn\."
    return [last_attention, rf"^{stage}pe\b"] if depth == 1 else [last_attention]


def table_name(converted: Mapping[str, Tensor], stage: int) -> str | None:
    """The position table of a stage, by its name among the converted weights."""
    pattern = rf"\bencoder\.stages\.{stage}\.global_position\.table$"
    return next((name for name in converted if re.search(pattern, name)), None)


def stored_rows(converted: Mapping[str, Tensor], config: GlamSwinConfig) -> list[int] | None:
    """Rows of each stage's table, where there are tables (0 where there is none)."""
    names = [table_name(converted, stage) for stage in range(len(config.depths))]
    if not any(names):
        return None
    return [0 if name is None else converted[name].shape[0] for name in names]


def shortened_tables(
    converted: StateDict, config: GlamSwinConfig, max_image_size: tuple[int, int]
) -> StateDict:
    """The weights with every position table cut to the rows that images up to `max_image_size` read."""
    shortened = dict(converted)
    for stage in range(len(config.depths)):
        name = table_name(converted, stage)
        if name is not None:
            needed = num_global_positions(config, stage, max_image_size)
            shortened[name] = centre_rows(converted[name], needed)
    return shortened


def num_global_positions(config: GlamSwinConfig, stage: int, image_size: tuple[int, int]) -> int:
    """Global tokens of one image at one stage: windows of the padded grid times tokens per window."""
    count = config.num_global_tokens
    for side in image_size:
        cells = -(-side // config.patch_size)
        for _ in range(stage):
            cells = -(-cells // 2)
        count *= -(-cells // config.window_size)
    return count


def centre_rows(table: Tensor, needed: int) -> Tensor:
    """(rows, C) -> (needed, C), from which every request for n <= needed rows reads the same rows as from the whole.

    A request reads the rows from `rows // 2 - n // 2` on. Whatever the parities, the cut therefore has to begin at
    `rows // 2 - needed // 2`.
    """
    rows = table.shape[0]
    if needed > rows:
        raise ValueError(
            f"the largest image needs {needed} global positions and the table has {rows} rows. "
            "Choose a smaller --max-image-size."
        )
    return table.narrow(0, rows // 2 - needed // 2, needed).clone()
