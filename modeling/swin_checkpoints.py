"""Weights of transformers' Swin, and of Swin with UPerNet, for GLAM-Swin: the same blocks under other names.

Checkpoints come as a folder or a name on the Hub, in the names that transformers 5 keeps in memory, in those that it
and older versions write (`microsoft/swin-*`), and with a UPerNet around them (`openmmlab/upernet-swin-*`). What plain
Swin does not have (global tokens, their attention and positions) keeps its fresh initialisation. A Unet's decoder
starts from the encoder's stages, as in the GLAM authors' code.
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
        r"\.mask_token$|^decoder\.0\.",  # the pretext task of masked image modelling
    ),
)
BACKBONE = ("encoder.", "norm.", "norms.")
HEADS = ("decoder.", "classifier.", "auxiliary_head.")
ENCODER_STAGE = re.compile(r"^(?:backbone\.)?encoder\.stages\.(\d+)\.(.+)")
ENCODER_MODULE = re.compile(r"\bencoder\.(stages\.\d+|merges\.\d+|patch_embed)\.")
ONLY_GLAM = re.compile(r"\.(global_tokens|global_position|global_attention)\.")

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
# What every published checkpoint has, and the only thing that is built here.
SWIN_FIXED = {"qkv_bias": True, "use_absolute_embeddings": False, "hidden_act": "gelu"}
UPERNET_FIXED = {"pool_scales": [1, 2, 3, 6], "auxiliary_num_convs": 1, "auxiliary_concat_input": False}


def model_from_swin(
    model_class: type[PreTrainedModel],
    checkpoint: str | os.PathLike,
    revision: str = "main",
    **overrides: Any,
) -> PreTrainedModel:
    """A GLAM-Swin of the checkpoint's size with its weights.

    checkpoint: folder, or name on the Hub, of a Swin (bare, backbone or classifier) or of a UPerNet with Swin.
    revision: branch, tag or commit on the Hub.
    overrides: fields of our configuration, such as `num_global_tokens` or `id2label`; the rest is the checkpoint's.
    """
    source = AutoConfig.from_pretrained(checkpoint, revision=revision)
    decoder = overrides.get("decoder", "upernet")
    options = {**swin_options(source), **upernet_options(source, decoder), **overrides}
    if not {"id2label", "num_labels"} & overrides.keys() and source.id2label is not None:
        options.update(id2label=source.id2label, label2id=source.label2id)
    model = model_class(model_class.config_class(**options))
    weights = convert_swin_state_dict(read_checkpoint(checkpoint, revision))
    load_converted(model, weights, source)
    return model.eval()


def swin_options(source: PreTrainedConfig) -> dict[str, Any]:
    """The fields of our configuration that say how large the Swin is."""
    swin = getattr(source, "backbone_config", source)
    if swin.model_type != "swin":
        raise ValueError(
            f"the checkpoint holds a '{swin.model_type}'. Give one of Swin, or of UPerNet with Swin."
        )
    check_fixed(swin, SWIN_FIXED)
    return {name: getattr(swin, name) for name in SWIN_FIELDS}


def upernet_options(source: PreTrainedConfig, decoder: str) -> dict[str, Any]:
    """The fields of our configuration that say how large the heads are; none for a Swin alone or another decoder."""
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
    """The tensors of a folder or a Hub repository: safetensors or, failing that, pickled; whole or in shards."""
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
        f"'{checkpoint}' has neither model.safetensors nor pytorch_model.bin, nor shards of them."
    )


def find_file(checkpoint: str | os.PathLike, name: str, revision: str) -> str | None:
    return cached_file(checkpoint, name, revision=revision, _raise_exceptions_for_missing_entries=False)


def convert_swin_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names for the tensors of a Swin or UPerNet-Swin, those of the backbone without a prefix."""
    converted = TABLE.apply(state_dict)
    unknown = [name for name in converted if not name.startswith((*BACKBONE, *HEADS))]
    if unknown:
        raise ValueError(
            f"the checkpoint has tensors that no Swin has: {', '.join(unknown[:5])}. Check its type."
        )
    return converted


def load_converted(model: PreTrainedModel, weights: Mapping[str, Tensor], source: PreTrainedConfig) -> None:
    """Fills the model in place, and says in one line what was loaded and what starts afresh."""
    fresh = model.state_dict()
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    weights = {
        prefix + name if name.startswith(BACKBONE) else name: tensor for name, tensor in weights.items()
    }
    if is_unet(fresh):  # which has one norm in the encoder, where Swin's last one is
        last = f"{prefix}norms.stage{len(model.config.depths)}."
        renamed = {re.sub(rf"^{prefix}norm\.", last, name): tensor for name, tensor in weights.items()}
        weights = renamed | weights
    weights = for_unet(wanted(weights, fresh), fresh)
    fitted = {name: fit(name, tensor, fresh[name], source, model.config) for name, tensor in weights.items()}
    new = [name for name in fresh if name not in fitted]
    missing = [name for name in new if "encoder." in name and not ONLY_GLAM.search(name)]
    if missing:
        raise ValueError(
            f"the checkpoint lacks {', '.join(missing[:5])}. Check that config.json and weights belong together."
        )
    model.load_state_dict(fitted, strict=False)
    logger.warning(
        "loaded %d of %d tensors from a %s checkpoint; newly initialised: %s",
        len(fitted), len(fresh), source.model_type, ", ".join(summary(new, fitted, source, model.config)) or "nothing",
    )  # fmt: skip


def wanted(weights: Mapping[str, Tensor], fresh: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that the model has a place for. Heads of another kind stay out, and stages that were not built."""
    same_heads = kind_of_heads(weights) == kind_of_heads(fresh)
    chosen = {}
    for name, tensor in weights.items():
        if name in fresh and (same_heads or not name.startswith(HEADS)):
            chosen[name] = tensor
        elif (module := ENCODER_MODULE.search(name)) and any(module[0] in other for other in fresh):
            raise ValueError(
                f"the checkpoint has '{name}', which the model has not. Check the checkpoint's type."
            )
    return chosen


def is_unet(tensors: Iterable[str]) -> bool:
    return any(name.startswith("decoder.steps.") for name in tensors)


def for_unet(weights: Mapping[str, Tensor], fresh: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights, and those of an encoder's stages once more for the stages that mirror them in a Unet's decoder."""
    doubled = dict(weights)
    steps = {name.split(".")[2] for name in fresh if name.startswith("decoder.steps.")}
    for name, tensor in weights.items():
        if stage := ENCODER_STAGE.match(name):
            mirrored = f"decoder.steps.{len(steps) - 1 - int(stage[1])}.stage.{stage[2]}"
            if mirrored in fresh:
                doubled[mirrored] = tensor
    return doubled


def kind_of_heads(tensors: Mapping[str, Tensor]) -> tuple[bool, int]:
    """Whether there is a UPerNet, and the axes of the classifier: four for pixels, two for images, none without."""
    return "decoder.fusion.norm.weight" in tensors, tensors.get("classifier.weight", torch.tensor(0)).ndim


def fit(
    name: str, tensor: Tensor, fresh: Tensor, source: PreTrainedConfig, config: PreTrainedConfig
) -> Tensor:
    """The tensor in the shape that the model needs: for another window, or for other classes."""
    if re.search(r"classifier\.(weight|bias)$", name) and tensor.shape[1:] == fresh.shape[1:]:
        return with_kept_rows(tensor, fresh, rows_of_equal_names(source.id2label, config.id2label))
    if name.endswith("position_bias.table") and tensor.shape[1] == fresh.shape[1]:
        return resize_bias_table(tensor, fresh.shape[0])
    if tensor.shape != fresh.shape:
        raise ValueError(
            f"'{name}' is {tuple(tensor.shape)} in the checkpoint and {tuple(fresh.shape)} in the model. "
            "Leave out the options that change its size."
        )
    return tensor


def resize_bias_table(table: Tensor, rows: int) -> Tensor:
    """((2w-1)^2, heads) -> (rows, heads): the table of another window, resized bicubically as a picture."""
    if table.shape[0] == rows:
        return table
    old, new = round(table.shape[0] ** 0.5), round(rows**0.5)
    picture = table.float().T.unflatten(1, (old, old))[None]
    return F.interpolate(picture, (new, new), mode="bicubic", align_corners=False)[0].flatten(1).T


def summary(
    new: Iterable[str], loaded: Iterable[str], source: PreTrainedConfig, config: PreTrainedConfig
) -> list[str]:
    """What starts afresh: the modules that hold these tensors, and classes that the loaded classifier did not know."""
    parts = [
        match[1] if (match := ONLY_GLAM.search(name)) else name.removeprefix("backbone.") for name in new
    ]
    classes = set(config.id2label.values()) - set(source.id2label.values())
    if classes and "classifier.weight" in loaded:
        parts.append(f"{len(classes)} of {config.num_labels} classes")
    return sorted({part.split(".")[0] for part in parts})
