"""Checkpoints of the relay tokens' authors: ViT and SwinV2 segmenters.

The tensors have the same meaning as ours, except that queries, keys and values are one projection there, and that
the position tables of ViT have rows for the relay tokens: those of the context are added to the tokens, those of
the local crop are never read. The classifier for ImageNet and its norm affect nothing and are dropped.
"""

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any

from torch import Tensor

from ...configuration.checked_config import did_you_mean
from ...configuration.configuration_relay import RelayConfig
from ...modeling.modeling_relay import RelayForSemanticSegmentation
from ...modeling.renaming import RenamingTable, StateDict, fill

QKV = (r"\battn\.qkv\b", ("attention.q_proj", "attention.k_proj", "attention.v_proj"))

# BLOCK: the names inside one block. In ViT, tensors carry the index of the crop, unless both share them.
VIT_BLOCK = RenamingTable(
    renamed=(
        (r"\bblocks\.(\d+)\.(attn|mlp|norm1|norm2)\.1\.", r"context_blocks.\1.\2."),
        (r"\bblocks\.(\d+)\.(attn|mlp|norm1|norm2)\.0\.", r"blocks.\1.\2."),
        (r"\battn\.proj\.", "attention.o_proj."),
    ),
    split=(QKV,),
)
SWINV2_BLOCK = RenamingTable(
    renamed=(
        (r"\battn\.proj\.", "attention.o_proj."),
        (r"\battn\.([qv])_bias$", r"attention.\1_proj.bias"),
        (r"\battn\.logit_scale$", "attention.log_scale"),
        (r"\battn\.cpb_mlp\.0\.", "position_bias.fc1."),
        (r"\battn\.cpb_mlp\.2\.", "position_bias.fc2."),
    ),
    split=(QKV,),
)

# ENCODER: a whole encoder. MODEL: a segmenter, with its decoder of transposed convolutions.
VIT_ENCODER = RenamingTable(
    renamed=(
        (r"^patch_embed\.0\.proj\.", "local_embed.patch_embed.projection."),
        (r"^patch_embed\.1\.proj\.", "context_embed.patch_embed.projection."),
        (r"^pos_embed\.0$", "local_embed.position.table"),
        (r"^pos_embed\.1$", "context_embed.position.table"),
        (r"^reg_token$", "relay_tokens.initial"),
        *VIT_BLOCK.renamed,
    ),
    split=VIT_BLOCK.split,
    dropped=(r"^fc_norm\.", r"^head\."),
)
SWINV2_STAGE = RenamingTable(
    renamed=(
        (r"\bdownsample\.", "merge.patches."),
        (r"\bdownsample_token\.", "merge.relay_tokens."),
        *SWINV2_BLOCK.renamed,
    ),
    split=SWINV2_BLOCK.split,
)
SWINV2_ENCODER = RenamingTable(
    renamed=(
        (r"^patch_embed\.0\.", "local_embed."),
        (r"^patch_embed\.1\.", "context_embed."),
        (r"^(local|context)_embed\.proj\.", r"\1_embed.projection."),
        (r"^register_token$", "relay_tokens.initial"),
        *SWINV2_STAGE.renamed,
        (r"^layers\.(\d+)\.merge\.", lambda match: f"merges.{int(match[1]) - 1}."),
        (r"^layers\.", "stages."),
    ),
    split=SWINV2_STAGE.split,
    dropped=(r"^head\.",),
)
HEAD_STEP = {"0": "upsample", "1": "upsample_norm", "3": "convolution", "4": "norm"}
HEAD = RenamingTable(
    renamed=(
        (r"^layers\.\d+\.(weight|bias)$", r"classifier.\1"),
        (r"^layers\.(\d+)\.(\d)\.", lambda match: f"decoder.steps.{match[1]}.{HEAD_STEP[match[2]]}."),
    )
)
ENCODERS = {"vit": VIT_ENCODER, "swinv2": SWINV2_ENCODER}

# Arguments with one value in all models of the authors; others cannot be converted.
FIXED = {"class_token": False, "final_norm": False, "qkv_bias": True, "layer_scale": None}
# Arguments that the tensors determine, or that do not affect the computation.
IRRELEVANT = {
    "depth", "depths", "embed_dim", "num_classes", "num_relay_tokens", "patch_size", "decoder_stride", "head", "activation",
}  # fmt: skip
UNDERSTOOD = {
    "extent_ratio", "img_size", "layer_norm_eps", "mlp_ratio", "num_channels", "num_heads", "pretrained_window_sizes",
    "relay_update", "share_block_weights", "share_patch_embed", "window_size",
}  # fmt: skip


def relay_from_official(
    weights: Mapping[str, Tensor], arguments: Mapping[str, Any]
) -> RelayForSemanticSegmentation:
    """Builds our model with the authors' weights.

    Args:
        weights: The authors' state dict, also with a prefix before all names.
        arguments: The authors' constructor arguments, of which `num_heads`, and for SwinV2 `window_size` and
            `img_size`, are required; `relay_update`, "sequential" by default, or the authors' "zigzag" or "merge"; or a
            whole `case.json` of the golden data.

    Raises:
        ValueError: If an argument is missing, or cannot be converted.
    """
    arguments = arguments.get("constructor", arguments)
    weights = without_prefix(weights)
    encoder = {name: tensor for name, tensor in weights.items() if not name.startswith("seg_head.")}
    kind = "vit" if any(name.startswith("pos_embed") for name in encoder) else "swinv2"
    check_arguments(arguments, kind)
    config = RelayConfig(**config_options(weights, encoder, kind, arguments))
    model = RelayForSemanticSegmentation(config)
    check_steps(weights)
    head = {name.removeprefix("seg_head."): weights[name] for name in weights.keys() - encoder.keys()}
    fill(model, {**backbone_weights(encoder, config), **HEAD.apply(head)})
    return model.eval()


def without_prefix(weights: Mapping[str, Tensor]) -> StateDict:
    """The tensors of encoder and decoder, without what a training program puts before their names, and `model.`.

    A ViT whose crops share the patch embedding numbers it not at all there, and by 0 here.

    Raises ValueError if there is no patch embedding of the authors' code.
    """
    stem = re.compile(r"(.*?)model\.patch_embed\.(?:0\.)?proj\.weight$")
    found = next(filter(None, map(stem.match, weights)), None)
    if found is None:
        raise ValueError(
            "the weights have no 'model.patch_embed.0.proj.weight', so they are not those of a segmenter with relay "
            "tokens. Give the checkpoint of one, with its decoder."
        )
    names = {name: name.removeprefix(found[1]) for name in weights if name.startswith(found[1])}
    return {
        own.removeprefix("model.").replace("patch_embed.proj.", "patch_embed.0.proj."): weights[name]
        for name, own in names.items()
    }


def backbone_weights(encoder: Mapping[str, Tensor], config: RelayConfig) -> StateDict:
    """Returns the authors' tensors of an encoder, with the names and shapes in our segmenter."""
    weights = encoder_weights(encoder, config)
    return {
        name.replace("norm.", f"backbone.pyramid.stage{config.num_layers}.")
        if name.startswith("norm.")
        else f"backbone.encoder.{name}": tensor
        for name, tensor in weights.items()
    }


def encoder_weights(encoder: Mapping[str, Tensor], config: RelayConfig) -> StateDict:
    """Returns the authors' tensors of an encoder, with the names and shapes in ours."""
    table = ENCODERS[config.encoder_type]
    if config.share_patch_embedding:
        table = table.with_dropped([r"^patch_embed\.1\.", r"^pos_embed\.1$"])
    weights = flat_scales(table.apply(encoder))
    tokens = config.num_relay_tokens
    initial = weights.pop("relay_tokens.initial", None)
    if tokens:
        weights["relay_tokens.initial"] = initial[0]
    tables = [
        name for name in ("local_embed.position.table", "context_embed.position.table") if name in weights
    ]
    for name in tables:
        rows, weights[name] = weights[name][0, :tokens], weights[name][0, tokens:]
        if tokens and name == tables[-1]:
            weights["relay_tokens.initial"] = weights["relay_tokens.initial"] + rows
    return weights


def flat_scales(weights: StateDict) -> StateDict:
    """The same tensors, with one number a head for the temperatures of attention instead of (heads, 1, 1)."""
    return {
        name: tensor.flatten() if name.endswith("log_scale") else tensor for name, tensor in weights.items()
    }


def config_options(
    weights: Mapping[str, Tensor], encoder: Mapping[str, Tensor], kind: str, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the fields of our configuration for the sizes of the authors' tensors and their arguments."""
    stem = encoder["patch_embed.0.proj.weight"]
    tokens = encoder.get("reg_token", encoder.get("register_token"))
    biases = [
        tensor for name, tensor in weights.items() if re.fullmatch(r"seg_head\.layers\.\d+\.bias", name)
    ]
    options = {
        "encoder_type": kind,
        "num_channels": stem.shape[1],
        "embed_dim": stem.shape[0],
        "patch_size": stem.shape[-1],
        "num_relay_tokens": 0 if tokens is None else tokens.shape[1],
        "num_labels": len(biases[0]) if biases else 2,
        "decoder": "progressive" if "seg_head.layers.0.0.weight" in weights else "one_step",
        "share_patch_embedding": arguments.get(
            "share_patch_embed", "patch_embed.1.proj.weight" not in encoder
        ),
        "share_blocks": arguments.get("share_block_weights", "blocks.0.norm1.1.weight" not in encoder),
        "context_ratio": arguments.get("extent_ratio", 4),
        **{name: arguments[name] for name in ("mlp_ratio", "relay_update") if name in arguments},
    }
    return options | (vit_options if kind == "vit" else swinv2_options)(encoder, options, arguments)


def vit_options(
    encoder: Mapping[str, Tensor], options: Mapping[str, Any], arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields of ViT only. Raises ValueError if the crops are not square."""
    rows = encoder["pos_embed.0"].shape[1] - options["num_relay_tokens"]
    side = isqrt(rows)
    if side**2 != rows:
        raise ValueError(
            f"the position table has {rows} rows for patches, which is not a square number. Only models for square crops "
            "can be converted."
        )
    return {
        "depths": [count_of(encoder, r"blocks\.(\d+)\.")],
        "num_heads": [arguments["num_heads"]],
        "crop_size": side * options["patch_size"],
        "drop_path_rate": 0.0,
        "layer_norm_eps": arguments.get("layer_norm_eps", 1e-6),
    }


def swinv2_options(
    encoder: Mapping[str, Tensor], _options: Mapping[str, Any], arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields of SwinV2 only; crops that are not square count by their longer side."""
    stages = count_of(encoder, r"layers\.(\d+)\.")
    size, pretrained = arguments["img_size"], arguments.get("pretrained_window_sizes")
    return {
        "depths": [count_of(encoder, rf"layers\.{stage}\.blocks\.(\d+)\.") for stage in range(stages)],
        "num_heads": arguments["num_heads"],
        "window_size": arguments["window_size"],
        "pretrained_window_sizes": pretrained if pretrained and any(pretrained) else None,
        "crop_size": size if isinstance(size, int) else max(size),
        "layer_norm_eps": arguments.get("layer_norm_eps", 1e-5),
    }


def check_steps(weights: Mapping[str, Tensor]) -> None:
    """Raises ValueError for a decoder in steps of another size than two."""
    first = weights.get("seg_head.layers.0.0.weight")
    if first is not None and first.shape[-1] != 2:
        raise ValueError(
            f"the decoder upsamples in steps of {first.shape[-1]} (decoder_stride), but only steps of 2, or one step of the "
            "whole stride, can be converted."
        )


def count_of(encoder: Mapping[str, Tensor], pattern: str) -> int:
    """How many different numbers the pattern finds at the beginning of names."""
    return len({match[1] for match in map(re.compile(pattern).match, encoder) if match})


def check_arguments(arguments: Mapping[str, Any], kind: str) -> None:
    """Raises ValueError for an argument that is missing, or that would be ignored although it has an effect."""
    for name in ("num_heads", "window_size", "img_size")[: 1 if kind == "vit" else 3]:
        if name not in arguments:
            raise ValueError(
                f"the arguments lack '{name}', which no tensor of a {kind} determines. Give the authors' value."
            )
    known = {*FIXED, *IRRELEVANT, *UNDERSTOOD}
    for name, value in arguments.items():
        if name not in known:
            raise ValueError(f"the conversion does not know the argument '{name}'{did_you_mean(name, known)}")
        if name in FIXED and value != FIXED[name]:
            raise ValueError(f"{name} is {value}; only {name}={FIXED[name]} can be converted.")
    channels = arguments.get("num_channels", [])
    if isinstance(channels, list | tuple) and len(set(channels)) > 1:
        raise ValueError(
            f"num_channels is {channels}, but both crops come from one image here. Only equal numbers can be converted."
        )
