"""Checkpoints of the nnFormer authors' repository, current and first version, with or without GLAM's global tokens.

The tensors have the same meaning as ours, except that
- queries, keys and values are one projection there and three here, in the skip attention keys and values;
- heads have the labels on the second axis of their weights there, on the first here;
- what never reaches an output is left out here: in the first version the downsampling after the last stage and the
  heads after the second, with global tokens what a stage's last block does to them.

Most sizes are read from the tensors. Windows and their shifts follow from the crop for which a network was built.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...configuration.configuration_nnformer import NnFormerConfig
from ...modeling.modeling_nnformer import NnFormerForSemanticSegmentation
from ...modeling.renaming import RenamingTable, fill
from .glam_blocks import BLOCKS

# Parts, which are also tables for modules of their own.
EMBEDDING = RenamingTable(
    renamed=(
        (r"\bproj1\.(conv|norm)1\.", r"steps.0.\g<1>."),
        (r"\bproj1\.(conv|norm)2\.", r"steps.1.\g<1>."),
        (r"\bproj2\.(conv|norm)1\.", r"steps.2.\g<1>."),
        (r"\bproj2\.conv2\.", "conv."),
        (r"\bconv\.", "convolution."),
    )
)
RESAMPLING = RenamingTable(renamed=((r"\b(reduction|up)\.", "convolution."),))
VOLUME_BLOCKS = RenamingTable(
    renamed=(
        (r"\battn\.kv\.", "attention.kv."),
        (r"\bnorm3\.", "global_norm1."),
        (r"\bnorm4\.", "global_norm2."),
        (r"\bmlp2\.", "global_mlp."),
        *BLOCKS.renamed,
    ),
    split=((r"\bkv\b", ("k_proj", "v_proj")), *BLOCKS.split),
    dropped=BLOCKS.dropped,
)
ENCODER, DECODERS = r"^model_down\.", {"2022": r"^decoder\.", "2021": r"^encoder\."}
# Names of the same argument in the authors' files, and those that the tensors determine.
CROP, WINDOW = ("crop_size", "imsize", "img_size"), ("window_size",)
DETERMINED = {
    "embedding_dim", "embed_dim", "input_channels", "num_classes", "depths", "depths_hard_coded", "num_heads", "patch_size",
    "down_stride", "deep_supervision", "gt_num", "token_path", "cfg", "conv_op",
}  # fmt: skip
UNDERSTOOD = {*CROP, *WINDOW, "clamp"}


def nnformer_from_official(
    weights: Mapping[str, Tensor], arguments: Mapping[str, Any]
) -> NnFormerForSemanticSegmentation:
    """Builds our model with the authors' weights.

    Args:
        weights: The authors' state dict.
        arguments: The authors' constructor arguments, of which `crop_size` and `window_size` are required; or a whole
            `case.json` of the golden data.

    Raises:
        ValueError: If an argument is missing or unknown, or the weights are not those of an nnFormer.
    """
    weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    options = nnformer_options(weights, flat_arguments(arguments))
    model = NnFormerForSemanticSegmentation(NnFormerConfig(**options))
    fill(model, nnformer_table(weights, model.config).apply(weights))
    return model.eval()


def glam_nnformer_from_official(
    weights: Mapping[str, Tensor], arguments: Mapping[str, Any]
) -> NnFormerForSemanticSegmentation:
    """As `nnformer_from_official`, for weights with global tokens; the others raise ValueError.

    The latest code with position tables bounds the tokens: `"clamp": false` in the arguments is for older weights.
    """
    if not any_name(weights, r"\bglobal_token$"):
        raise ValueError(
            "the weights have no global tokens, so they are not those of a GLAM-nnFormer. Use --source nnformer-official."
        )
    return nnformer_from_official(weights, arguments)


def flat_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor arguments, with those in a `cfg`. Raises ValueError for an unknown one."""
    arguments = arguments.get("constructor", arguments)
    flat = {**arguments, **arguments.get("cfg", {})}
    for name in flat:
        if name not in UNDERSTOOD | DETERMINED:
            raise ValueError(
                f"the conversion does not know the argument '{name}'. Remove it if it has no effect."
            )
    return flat


def required(arguments: Mapping[str, Any], names: tuple[str, ...]) -> list[Any]:
    """The value of an argument under any of its names. Raises ValueError without it."""
    for name in names:
        if name in arguments:
            return arguments[name]
    raise ValueError(
        f"the arguments lack '{names[0]}', which no tensor determines. Give the value with which the network was built."
    )


def nnformer_options(weights: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of our configuration for the sizes of the tensors and the authors' arguments."""
    variant = next((version for version, prefix in DECODERS.items() if any_name(weights, prefix)), None)
    if variant is None or not any_name(weights, ENCODER):
        raise ValueError(
            "the weights have no 'model_down.' and 'decoder.' or 'encoder.', so they are not those of an nnFormer."
        )
    depths = [len(blocks) for blocks in stage_blocks(weights, ENCODER)]
    windows = required(arguments, WINDOW)
    windows = [windows] * len(depths) if isinstance(windows, int) else windows
    has_triples = any(isinstance(window, list | tuple) for window in windows)  # the network for ACDC
    embedding = weights["model_down.patch_embed.proj1.conv1.weight"]
    return {
        "variant": variant,
        "num_channels": embedding.shape[1],
        "num_labels": len(weights["final.0.up.bias"]),
        "crop_size": required(arguments, CROP),
        "patch_size": list(weights["final.0.up.weight"].shape[2:]),
        "embed_dim": 2 * embedding.shape[0],
        "depths": depths,
        "num_heads": table_heads(weights, ENCODER),
        "decoder_num_heads": table_heads(weights, DECODERS[variant]),
        "window_size": windows,
        "downsample_strides": [
            [(side + 1) // 2 if variant == "2022" else side for side in reduction(weights, stage)]
            for stage in range(len(depths) - 1)
        ],
        "deep_supervision": "final.1.up.weight" in weights,
        "relative_positions": "official",
        "fixed_grid": True,
        "mask_shifted_windows": not has_triples,
        "pad_last_downsample": not has_triples,
        **token_options(weights, arguments, len(depths)),
    }


def token_options(weights: Mapping[str, Tensor], arguments: Mapping[str, Any], stages: int) -> dict[str, Any]:
    """Returns the fields of the global tokens; `clamp` is that of the latest code without layer norms of tokens."""
    tokens = weights.get("model_down.layers.0.global_token", ())
    options = {"num_global_tokens": len(tokens)}
    if not len(tokens):
        return options
    if any_name(weights, r"\bblocks\.\d+\.norm3\."):
        return {**options, "global_block": "transformer"}
    rows = [len(weights[f"model_down.layers.{stage}.pe"]) for stage in range(stages)]
    return {
        **options,
        "global_block": arguments.get("token_path", "half"),
        "global_clamp": 1.0 if arguments.get("clamp", True) else None,
        "global_position_embedding": "table",
        "global_position_rows": rows,
    }


def nnformer_table(weights: Mapping[str, Tensor], config: NnFormerConfig) -> RenamingTable:
    """Returns the table that renames, splits and drops the tensors of a network."""
    last, decoder = config.num_layers - 1, DECODERS[config.variant]
    heads = len(config.head_kernels)
    dropped = [rf"{ENCODER}layers\.{last}\.downsample\.", *VOLUME_BLOCKS.dropped]
    dropped += [rf"^final\.{head}\." for head in range(heads, last)]
    for side, stages in (
        (ENCODER, stage_blocks(weights, ENCODER)),
        (decoder, stage_blocks(weights, decoder)),
    ):
        for stage, blocks in enumerate(stages):
            dropped.append(rf"{side}layers\.{stage}\.blocks\.{max(blocks)}\.(gt_attn|norm3|norm4|mlp2)\.")
            if config.global_block == "transformer" or len(blocks) == 1:
                dropped.append(rf"{side}layers\.{stage}\.pe$")
    return RenamingTable(
        (*outside_blocks(last, decoder), *decoder_blocks(config.variant), *VOLUME_BLOCKS.renamed),
        VOLUME_BLOCKS.split,
        tuple(dropped),
        transposed=(r"^(classifier|decoder\.heads\.\d+)\.weight$",),
    )


def outside_blocks(last: int, decoder: str) -> tuple:
    """Renames everything but blocks, in a network whose last stage has this index."""
    return (
        (rf"{ENCODER}patch_embed\.", "backbone.encoder.embeds.0."),
        *EMBEDDING.renamed,
        (
            rf"{ENCODER}layers\.(\d+)\.downsample\.",
            lambda match: f"backbone.encoder.embeds.{int(match[1]) + 1}.",
        ),
        (rf"{ENCODER}norm(\d+)\.", lambda match: f"backbone.norms.stage{int(match[1]) + 1}."),
        (rf"{ENCODER}layers\.", "backbone.encoder.stages."),
        (rf"{decoder}layers\.(\d+)\.", lambda match: f"steps.{last - 1 - int(match[1])}."),
        (r"^final\.0\.up\.", "classifier."),
        (r"^final\.(\d+)\.up\.", lambda match: f"decoder.heads.{int(match[1]) - 1}."),
        (r"\bUpsample\.", "upsample."),
        *RESAMPLING.renamed,
    )


def decoder_blocks(variant: str) -> tuple:
    """Renames the stages of the decoder; in the current version their first block is the skip attention."""
    first = () if variant == "2021" else (
        (r"^(steps\.\d+)\.blocks\.0\.", r"\1.skip."),
        (r"^(steps\.\d+)\.blocks\.(\d+)\.", lambda match: f"{match[1]}.stage.blocks.{int(match[2]) - 1}."),
    )  # fmt: skip
    return (
        *first,
        (r"^(steps\.\d+)\.(blocks|global_token|pe)\b", r"\1.stage.\2"),
        (r"^steps\.", "decoder.steps."),
    )


def any_name(weights: Mapping[str, Tensor], pattern: str) -> bool:
    return any(re.search(pattern, name) for name in weights)


def stage_blocks(weights: Mapping[str, Tensor], side: str) -> list[set[int]]:
    """The indices of the blocks of each stage of encoder or decoder, fine to coarse."""
    found: dict[int, set[int]] = {}
    for name in weights:
        if match := re.match(rf"{side}layers\.(\d+)\.blocks\.(\d+)\.", name):
            found.setdefault(int(match[1]), set()).add(int(match[2]))
    return [found[stage] for stage in sorted(found)]


def table_heads(weights: Mapping[str, Tensor], side: str) -> list[int]:
    """The number of heads of each stage of encoder or decoder: the columns of its relative positions."""
    pattern = rf"{side}layers\.(\d+)\.blocks\.0\.attn\.relative_position_bias_table$"
    heads = {
        int(match[1]): tensor.shape[1]
        for name, tensor in weights.items()
        if (match := re.match(pattern, name))
    }
    return [heads[stage] for stage in sorted(heads)]


def reduction(weights: Mapping[str, Tensor], stage: int) -> list[int]:
    """The kernel of the downsampling after a stage, along each axis."""
    return list(weights[f"model_down.layers.{stage}.downsample.reduction.weight"].shape[2:])
