"""Loads Swin and Swin-UPerNet checkpoints of transformers into GLAM-Swin and CASWiT, which have the same blocks.

A checkpoint is a local folder or a name on the Hub. Tensors may have the names that transformers 5 uses in
memory, those that it and older versions write (`microsoft/swin-*`), or those of UPerNet
(`openmmlab/upernet-swin-*`). Global tokens, their attention and their positions, which Swin does not have,
stay newly initialized, and so does CASWiT's fusion; both its branches get the weights. A Unet decoder is initialized from the encoder's stages, as in the GLAM authors' code.
"""

import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import load_state_dict
from transformers.utils import cached_file

from .input_channels import fit_stem
from .label_rows import rows_of_equal_names, with_kept_rows
from .renaming import RenamingTable

logger = logging.getLogger(__name__)

TABLE = RenamingTable(
    renamed=(
        (r"^(?:backbone\.)?(?:swin\.)?", ""),
        (r"^embeddings\.patch_embeddings\.projection\.", "encoder.patch_embed.projection."),
        (r"^embeddings\.norm\.", "encoder.patch_embed.norm."),
        (r"^encoder\.layers\.(\d+)\.downsample\.", r"encoder.merges.\1."),
        (r"^encoder\.layers\.", "encoder.stages."),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"\.attention\.self\.query\.", ".attention.q_proj."),
        (r"\.attention\.self\.key\.", ".attention.k_proj."),
        (r"\.attention\.self\.value\.", ".attention.v_proj."),
        (
            r"\.attention\.(?:self|relative_position_bias)\.relative_position_bias_table$",
            ".position_bias.table",
        ),
        (r"\.attention\.output\.dense\.", ".attention.o_proj."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"\.output\.dense\.", ".mlp.fc2."),
        (r"^layernorm\.", "norm."),
        (r"^hidden_states_norms\.", "norms."),
        (r"^decode_head\.psp_modules\.(\d+)\.1\.", r"decoder.pooling.branches.\1."),
        (r"^decode_head\.bottleneck\.", "decoder.pooling.bottleneck."),
        (r"^decode_head\.lateral_convs\.", "decoder.laterals."),
        (r"^decode_head\.fpn_convs\.", "decoder.fpn_convs."),
        (r"^decode_head\.fpn_bottleneck\.", "decoder.fusion."),
        (r"^decode_head\.classifier\.", "classifier."),
        (r"^auxiliary_head\.convs\.0\.", "auxiliary_head.conv."),
        (r"\.conv\.weight$", ".convolution.weight"),
        (r"\.batch_norm\.", ".norm."),
    ),
    dropped=(
        r"\.relative_position_index$",  # recomputed here
        r"\.mask_token$|^decoder\.0\.",  # head and token of masked image modeling
    ),
)
BACKBONE = ("encoder.", "norm.", "norms.")
HEADS = ("decoder.", "classifier.", "auxiliary_head.")
STEM = "patch_embed.projection.weight"
ENCODER_STAGE = re.compile(r"^(?:backbone\.)?encoder\.stages\.(\d+)\.(.+)")
ENCODER_MODULE = re.compile(r"\bencoder\.(stages\.\d+|merges\.\d+|patch_embed)\.")
ONLY_OURS = re.compile(r"\.(global_(tokens|position|attention|norm\d|mlp)|fusions)\.")

SWIN_FIELDS = (
    "num_channels",
    "patch_size",
    "embed_dim",
    "depths",
    "num_heads",
    "window_size",
    "mlp_ratio",
    "layer_norm_eps",
)
UPERNET_FIELDS = {
    "hidden_size": "decoder_hidden_size",
    "use_auxiliary_head": "use_auxiliary_head",
    "auxiliary_channels": "auxiliary_hidden_size",
    "auxiliary_loss_weight": "auxiliary_loss_weight",
    "loss_ignore_index": "semantic_loss_ignore_index",
}
# Values of all published checkpoints; others are not implemented.
SWIN_FIXED = {"qkv_bias": True, "use_absolute_embeddings": False, "hidden_act": "gelu"}
UPERNET_FIXED = {"pool_scales": [1, 2, 3, 6], "auxiliary_num_convs": 1, "auxiliary_concat_input": False}


def model_from_swin(
    model_class: type[PreTrainedModel],
    checkpoint: str | os.PathLike,
    revision: str = "main",
    **overrides: Any,
) -> PreTrainedModel:
    """Builds a GLAM-Swin or CASWiT with the sizes and weights of a Swin checkpoint.

    Args:
        model_class: Class of the model.
        checkpoint: Local folder, or name on the Hub, of a Swin (bare, backbone or classifier) or a
            Swin-UPerNet.
        revision: Branch, tag or commit on the Hub.
        **overrides: Fields of our configuration, such as `num_global_tokens` or `id2label`; all others are
            taken from the checkpoint where it has them.

    Raises:
        ValueError: If the checkpoint is not a Swin or Swin-UPerNet, or its tensors do not fit the model.
        FileNotFoundError: If the checkpoint has no weights.
    """
    source = AutoConfig.from_pretrained(checkpoint, revision=revision)
    decoder = overrides.get("decoder", "upernet")
    options = {**swin_options(source), **upernet_options(source, decoder), **overrides}
    if not {"id2label", "label2id", "num_labels"} & overrides.keys() and source.id2label is not None:
        options.update(id2label=source.id2label, label2id=source.label2id)
    model = model_class(model_class.config_class(**options))
    weights = convert_swin_state_dict(read_checkpoint(checkpoint, revision))
    load_converted(model, weights, source)
    return model.eval()


def swin_options(source: PreTrainedConfig) -> dict[str, Any]:
    """Returns our configuration fields for the sizes of the Swin encoder."""
    swin = getattr(source, "backbone_config", source)
    if swin.model_type != "swin":
        raise ValueError(f"the checkpoint is a '{swin.model_type}'. Pass a Swin or Swin-UPerNet checkpoint.")
    check_fixed(swin, SWIN_FIXED)
    return {name: getattr(swin, name) for name in SWIN_FIELDS}


def upernet_options(source: PreTrainedConfig, decoder: str) -> dict[str, Any]:
    """Returns our configuration fields for the sizes of the heads; none without UPerNet on both sides."""
    if source.model_type != "upernet" or decoder != "upernet":
        return {}
    check_fixed(source, UPERNET_FIXED)
    return {"decoder": "upernet"} | {ours: getattr(source, theirs) for theirs, ours in UPERNET_FIELDS.items()}


def check_fixed(source: PreTrainedConfig, fixed: Mapping[str, Any]) -> None:
    for name, required in fixed.items():
        value = getattr(source, name)
        if (list(value) if isinstance(value, tuple) else value) != required:
            raise ValueError(f"the checkpoint has {name}={value}; only {name}={required} can be loaded.")


def read_checkpoint(checkpoint: str | os.PathLike, revision: str = "main") -> dict[str, Tensor]:
    """Reads the tensors of a folder or Hub repository: safetensors, or else pickle; one file or shards."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if path := find_file(checkpoint, name, revision):
            return load_state_dict(path, weights_only=True)
        if index := find_file(checkpoint, f"{name}.index.json", revision):
            shards = sorted(set(json.loads(Path(index).read_text())["weight_map"].values()))
            paths = [cached_file(checkpoint, shard, revision=revision) for shard in shards]
            return {
                key: tensor
                for path in paths
                for key, tensor in load_state_dict(path, weights_only=True).items()
            }
    raise FileNotFoundError(
        f"'{checkpoint}' has neither model.safetensors nor pytorch_model.bin, nor shards of them. "
        "Check the path."
    )


def find_file(checkpoint: str | os.PathLike, name: str, revision: str) -> str | None:
    return cached_file(checkpoint, name, revision=revision, _raise_exceptions_for_missing_entries=False)


def convert_swin_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the tensors of a Swin or Swin-UPerNet to ours; those of the backbone get no prefix."""
    converted = TABLE.apply(state_dict)
    unknown = [name for name in converted if not name.startswith((*BACKBONE, *HEADS))]
    if unknown:
        raise ValueError(
            f"the checkpoint has tensors that Swin does not have: {', '.join(unknown[:5])}. Check its type."
        )
    return converted


def load_converted(model: PreTrainedModel, weights: Mapping[str, Tensor], source: PreTrainedConfig) -> None:
    """Loads converted weights into the model and logs what was loaded and what is newly initialized."""
    all_fresh = model.state_dict()
    fresh = of_one_scale(all_fresh)
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    weights = {
        prefix + name if name.startswith(BACKBONE) else name: tensor for name, tensor in weights.items()
    }
    if is_unet(fresh):  # its encoder has a single norm, after the last stage
        last = f"{prefix}norms.stage{len(model.config.depths)}."
        renamed = {re.sub(rf"^{prefix}norm\.", last, name): tensor for name, tensor in weights.items()}
        weights = renamed | weights
    weights = for_unet(wanted(weights, fresh), fresh)
    stem = {name: tensor for name, tensor in weights.items() if name.endswith(STEM)}
    weights |= fit_stem(stem, fresh)
    fitted = {name: fit(name, tensor, fresh[name], source, model.config) for name, tensor in weights.items()}
    fitted = for_all_scales(fitted, all_fresh)
    new = [name for name in all_fresh if name not in fitted]
    missing = [name for name in new if "encoder." in name and not ONLY_OURS.search(name)]
    if missing:
        raise ValueError(
            f"the checkpoint has no {', '.join(missing[:5])}. Check that its config.json and weights match."
        )
    model.load_state_dict(fitted, strict=False)
    logger.warning(
        "loaded %d of %d tensors from a %s checkpoint; newly initialized: %s",
        len(fitted), len(all_fresh), source.model_type, ", ".join(summary(new, fitted, source, model.config)) or "nothing",
    )  # fmt: skip


def wanted(weights: Mapping[str, Tensor], fresh: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors that the model has, without heads of another kind and stages that are not built."""
    same_heads = kind_of_heads(weights) == kind_of_heads(fresh)
    chosen = {}
    for name, tensor in weights.items():
        if name in fresh and (same_heads or not name.startswith(HEADS)):
            chosen[name] = tensor
        elif (module := ENCODER_MODULE.search(name)) and any(module[0] in other for other in fresh):
            raise ValueError(f"the checkpoint has '{name}', the model does not. Check the checkpoint's type.")
    return chosen


def of_one_scale(fresh: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors of a model of two scales that a model of one has, under its names; others unchanged."""
    only_two = ("context_head.", "encoder.context.", "encoder.fusions.")
    return {
        name.replace("encoder.local.", "encoder."): tensor
        for name, tensor in fresh.items()
        if not name.removeprefix("backbone.").startswith(only_two)
    }


def for_all_scales(weights: Mapping[str, Tensor], fresh: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gives the weights of a model of one scale to both branches of a model of two; others unchanged."""
    branches = {}
    for name, tensor in weights.items():
        local, context = (
            name.replace("encoder.", f"encoder.{branch}.", 1) for branch in ("local", "context")
        )
        head = f"context_head.{name.removeprefix('backbone.')}"
        branches |= {branch: tensor for branch in (name, local, context, head) if branch in fresh}
    return branches


def is_unet(tensors: Iterable[str]) -> bool:
    return any(name.startswith("decoder.steps.") for name in tensors)


def for_unet(weights: Mapping[str, Tensor], fresh: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Adds a copy of each encoder stage's weights for the stage of a Unet decoder that mirrors it."""
    doubled = dict(weights)
    steps = {name.split(".")[2] for name in fresh if name.startswith("decoder.steps.")}
    for name, tensor in weights.items():
        if stage := ENCODER_STAGE.match(name):
            mirrored = f"decoder.steps.{len(steps) - 1 - int(stage[1])}.stage.{stage[2]}"
            if mirrored in fresh:
                doubled[mirrored] = tensor
    return doubled


def kind_of_heads(tensors: Mapping[str, Tensor]) -> tuple[bool, int]:
    """Whether there is a UPerNet, and the number of axes of the classifier's weight, 0 if there is none."""
    return "decoder.fusion.norm.weight" in tensors, tensors.get("classifier.weight", torch.tensor(0)).ndim


def fit(
    name: str, tensor: Tensor, fresh: Tensor, source: PreTrainedConfig, config: PreTrainedConfig
) -> Tensor:
    """Adapts a tensor to the model's window size or classes; raises ValueError if it still does not fit."""
    if re.search(r"classifier\.(weight|bias)$", name) and tensor.shape[1:] == fresh.shape[1:]:
        return with_kept_rows(tensor, fresh, rows_of_equal_names(source.id2label, config.id2label))
    if name.endswith("position_bias.table") and tensor.shape[1] == fresh.shape[1]:
        return resize_bias_table(tensor, fresh.shape[0])
    if tensor.shape != fresh.shape:
        raise ValueError(
            f"'{name}' has shape {tuple(tensor.shape)} in the checkpoint and {tuple(fresh.shape)} in the "
            "model. Leave out the options that change its size."
        )
    return tensor


def resize_bias_table(table: Tensor, rows: int) -> Tensor:
    """((2w-1)^2, heads) -> (rows, heads), the table of another window size by bicubic interpolation."""
    if table.shape[0] == rows:
        return table
    old, new = round(table.shape[0] ** 0.5), round(rows**0.5)
    image = table.float().T.unflatten(1, (old, old))[None]
    return F.interpolate(image, (new, new), mode="bicubic", align_corners=False)[0].flatten(1).T


def summary(
    new: Iterable[str], loaded: Iterable[str], source: PreTrainedConfig, config: PreTrainedConfig
) -> list[str]:
    """Lists what is newly initialized: modules, and the number of classes that the checkpoint lacks."""
    parts = [
        match[1] if (match := ONLY_OURS.search(name)) else name.removeprefix("backbone.") for name in new
    ]
    classes = set(config.id2label.values()) - set(source.id2label.values())
    if classes and "classifier.weight" in loaded:
        parts.append(f"{len(classes)} of {config.num_labels} classes")
    return sorted({part.split(".")[0] for part in parts})
