"""Starts relay tokens from a Swin V2 or ViT checkpoint of transformers: both crops get its patch embedding.

The authors start from such weights too. Relay tokens and the decoder, which these models do not have, are newly
initialized. The class token of ViT and its final norm are left out; its position table is resampled to the crop.
"""

import logging
import os
from math import isqrt
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from .input_channels import fit_stem
from .renaming import RenamingTable, StateDict
from .swin_checkpoints import check_fixed, read_checkpoint

logger = logging.getLogger(__name__)

LAYER = (
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(?:attention\.|self\.)?(q|k|v)(?:uery|ey|alue|_proj)\.", r".attention.\1_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
)
DROPPED = (r"^classifier\.", r"^(?:vit\.|swinv2\.)?pooler\.", r"\bmask_token$")
VIT = RenamingTable(
    renamed=(
        (r"^vit\.", ""),
        (r"^embeddings\.patch_embeddings\.", "local_embed.patch_embed."),
        (r"^embeddings\.position_embeddings$", "local_embed.position.table"),
        (r"^(?:encoder\.)?layers?\.(\d+)\.", r"blocks.\1."),
        *LAYER,
    ),
    dropped=(*DROPPED, r"\bcls_token$", r"^(?:vit\.)?layernorm\."),
)
SWINV2 = RenamingTable(
    renamed=(
        (r"^swinv2\.", ""),
        (r"^embeddings\.patch_embeddings\.", "local_embed."),
        (r"^embeddings\.norm\.", "local_embed.norm."),
        (r"^encoder\.layers\.(\d+)\.downsample\.", r"merges.\1.patches."),
        (r"^encoder\.layers\.", "stages."),
        (r"\.attention\.self\.logit_scale$", ".attention.log_scale"),
        (r"\.attention\.self\.continuous_position_bias_mlp\.0\.", ".position_bias.fc1."),
        (r"\.attention\.self\.continuous_position_bias_mlp\.2\.", ".position_bias.fc2."),
        *LAYER,
    ),
    dropped=(*DROPPED, r"\.relative_(position_index|coords_table)$"),
)
TABLES = {"vit": VIT, "swinv2": SWINV2}
FIXED = {"qkv_bias": True, "hidden_act": "gelu"}


def model_from_encoder(
    model_class: type[PreTrainedModel],
    checkpoint: str | os.PathLike,
    revision: str = "main",
    **overrides: Any,
) -> PreTrainedModel:
    """Builds a segmenter with relay tokens that has the sizes and weights of a Swin V2 or ViT.

    Args:
        model_class: Class of the model.
        checkpoint: Local folder, or name on the Hub.
        revision: Branch, tag or commit on the Hub.
        **overrides: Fields of our configuration; all others are taken from the checkpoint where it has them.

    Raises:
        ValueError: If the checkpoint is another model, or its tensors do not fit.
        FileNotFoundError: If the checkpoint has no weights.
    """
    source = AutoConfig.from_pretrained(checkpoint, revision=revision)
    if source.model_type not in TABLES:
        raise ValueError(
            f"the checkpoint is a '{source.model_type}'. Relay tokens start from a Swin V2 ('swinv2') or ViT ('vit')."
        )
    check_fixed(source, FIXED)
    model = model_class(model_class.config_class(**{**encoder_options(source), **overrides}))
    weights = TABLES[source.model_type].apply(read_checkpoint(checkpoint, revision))
    load_encoder(model, weights, source)
    return model.eval()


def encoder_options(source: PreTrainedConfig) -> dict[str, Any]:
    """Returns our configuration fields for the sizes of the encoder."""
    shared = {name: getattr(source, name) for name in ("num_channels", "patch_size", "layer_norm_eps")}
    if source.model_type == "vit":
        return shared | {
            "encoder_type": "vit",
            "embed_dim": source.hidden_size,
            "depths": (source.num_hidden_layers,),
            "num_heads": (source.num_attention_heads,),
            "mlp_ratio": source.intermediate_size / source.hidden_size,
            "drop_path_rate": 0.0,
        }
    check_fixed(source, {"use_absolute_embeddings": False})
    trained = source.pretrained_window_sizes
    names = ("embed_dim", "depths", "num_heads", "window_size", "mlp_ratio", "drop_path_rate")
    return (
        shared
        | {name: getattr(source, name) for name in names}
        | {
            "encoder_type": "swinv2",
            "pretrained_window_sizes": trained if trained and any(trained) else None,
        }
    )


def load_encoder(model: PreTrainedModel, weights: StateDict, source: PreTrainedConfig) -> None:
    """Loads the tensors of an encoder of one image for both crops, and logs what is newly initialized."""
    fresh = model.state_dict()
    last_norm = f"backbone.pyramid.stage{model.config.num_layers}."
    named = {
        f"backbone.encoder.{name}".replace("backbone.encoder.layernorm.", last_norm): tensor
        for name, tensor in weights.items()
    }
    found = {
        name: fitted_tensor(name, tensor, fresh[name]) if name in fresh else tensor
        for name, tensor in named.items()
    }
    for name, tensor in list(found.items()):
        for ours, theirs in (
            ("local_embed.", "context_embed."),
            (".encoder.blocks.", ".encoder.context_blocks."),
        ):
            copy = name.replace(ours, theirs)
            if copy in fresh:
                found[copy] = tensor
    stems = [name for name in found if name.endswith("projection.weight")]
    found |= fit_stem({name: found[name] for name in stems}, fresh)
    new = [name for name in fresh if name not in found]
    missing = [name for name in new if ".encoder." in name and "relay_tokens" not in name]
    unknown = [name for name in found if name not in fresh]
    if missing or unknown:
        raise ValueError(
            f"the checkpoint does not fit the model: {', '.join([*missing, *unknown][:5])}. Leave out the options that "
            "change the sizes of the encoder."
        )
    model.load_state_dict(found, strict=False)
    logger.warning("loaded %d of %d tensors from a %s checkpoint", len(found), len(fresh), source.model_type)


def fitted_tensor(name: str, tensor: Tensor, fresh: Tensor) -> Tensor:
    """Gives a tensor the shape that it has here; a position table is resampled, without the class token."""
    if name.endswith("log_scale"):
        return tensor.flatten()
    if not name.endswith("position.table"):
        return tensor
    side, wanted = isqrt(tensor.shape[1] - 1), isqrt(fresh.shape[0])
    grid = tensor[:, 1:].unflatten(1, (side, side)).movedim(-1, 1)
    if side != wanted:
        grid = F.interpolate(grid, (wanted, wanted), mode="bicubic")
    return grid[0].flatten(1).transpose(0, 1).contiguous()
