"""Common parts of the GLAM authors' checkpoints: blocks, encoder arguments, and tensors without effect.

The tensors have the same meaning as ours, except that
- queries, keys and values are one projection there and three here;
- the global attention of each stage's last block is left out here, because its result is not used. A stage
  with one block therefore has no global attention, and its position table is not used.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from ...modeling.renaming import RenamingTable

# A block or a stage, or, with a prefix, the blocks of a model.
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

ENCODER_FIELDS = {
    "patch_size": "patch_size",
    "in_chans": "num_channels",
    "embed_dim": "embed_dim",
    "depths": "depths",
    "num_heads": "num_heads",
    "window_size": "window_size",
    "mlp_ratio": "mlp_ratio",
    "drop_path_rate": "drop_path_rate",
}
# Arguments with the same value in all configurations of the authors; no other value is supported here.
ENCODER_FIXED = {
    "ape": False,
    "qkv_bias": True,
    "qk_scale": None,
    "patch_norm": True,
    "drop_rate": 0.0,
    "attn_drop_rate": 0.0,
}
# Arguments that do not affect the computation, or that the weights determine.
ENCODER_IRRELEVANT = {"type", "use_checkpoint", "norm_layer", "gt_num"}


def encoder_options(arguments: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the fields of our configuration for the authors' arguments of an encoder."""
    options = {ours: arguments[theirs] for theirs, ours in ENCODER_FIELDS.items() if theirs in arguments}
    tokens = next((tensor for name, tensor in weights.items() if name.endswith("global_token")), ())
    options["num_global_tokens"] = len(tokens)
    options["use_global_attention"] = any(".gt_attn." in name for name in weights)
    options["global_position_embedding"] = "table" if options["use_global_attention"] else "none"
    return options


def check_arguments(
    part: str,
    arguments: Mapping[str, Any],
    understood: Iterable[str],
    fixed: Mapping[str, Any],
    irrelevant: Iterable[str],
) -> None:
    """Raises ValueError for an argument that would be ignored although it has an effect."""
    for name, value in arguments.items():
        if name in fixed:
            required = fixed[name]
            if (list(value) if isinstance(value, tuple) else value) != required:
                raise ValueError(f"{part} has {name}={value}; only {name}={required} can be converted.")
        elif name not in understood and name not in irrelevant:
            raise ValueError(
                f"{part} has an argument '{name}' that the conversion does not know. Remove it if it has no effect."
            )


def dead_parts(stage: str, depth: int) -> list[str]:
    """Returns patterns of the tensors without effect in a stage whose names start with `stage`."""
    last_attention = rf"^{stage}blocks\.{depth - 1}\.gt_attn\."
    return [last_attention, rf"^{stage}pe\b"] if depth == 1 else [last_attention]
