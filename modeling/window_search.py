"""Finds the windowed blocks of an encoder, stage by stage, and exchanges them for blocks with global tokens."""

from functools import partial

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from .windowed_blocks import PassedBy, TokenBlock
from .windowed_hosts import host_of


def windowed_stages(encoder: nn.Module) -> list[list[str]]:
    """Names of the windowed blocks of each stage, fine to coarse, with and without global tokens."""
    stages: dict[str, list[str]] = {}
    for name, module in encoder.named_modules():
        if isinstance(module, TokenBlock) or host_of(module) is not None:
            stages.setdefault(name.rpartition(".")[0], []).append(name)
    return list(stages.values())


def stage_strides(encoder: PreTrainedModel, num_stages: int) -> list[int]:
    """Strides of all stages of a windowed encoder of transformers or timm, fine to coarse."""
    timm_model = getattr(encoder, "_backbone", None)
    if timm_model is None:
        return [encoder.config.patch_size * 2**stage for stage in range(num_stages)]
    return [stage["reduction"] for stage in timm_model.feature_info.info][-num_stages:]


def exchange_blocks(
    encoder: nn.Module,
    config: PreTrainedConfig,
    num_global_tokens: int,
    global_block: str,
    stages: str | list[int] | tuple[int, ...],
) -> None:
    """Puts global tokens into the windows of an encoder, in place.

    Args:
        encoder: An encoder of transformers or timm.
        config: Read only for its attention implementation.
        num_global_tokens: Global tokens per window.
        global_block: The path of the tokens, "bare", "half" or "transformer".
        stages: "all", or the indices of the stages with tokens, 0 for the finest.

    Raises:
        ValueError: If the encoder has no windows that we know, or a stage does not exist.
    """
    found = windowed_stages(encoder)
    if not found:
        raise ValueError(
            f"the encoder '{encoder.config.model_type}' has no attention windows that global tokens could join. Take "
            "Swin or Swin V2 of transformers, twins_svt_*, maxvit_* or nest_* of timm, or GlamSwinConfig; where attention "
            "is global already, class tokens or relay tokens (RelayConfig) are the counterpart."
        )
    chosen = range(len(found)) if stages == "all" else stages
    if max(chosen) >= len(found):
        raise ValueError(
            f"stages is {list(chosen)}, but the encoder has {len(found)}. Use 0 to {len(found) - 1}."
        )
    for stage in chosen:
        if any(
            True for _ in encoder.get_submodule(found[stage][-1]).parameters()
        ):  # else no used map needs it
            exchange_stage(encoder, found[stage], config, num_global_tokens, global_block)
    for module in encoder.modules():
        if isinstance(module, PreTrainedModel):
            module._init_weights = partial(initialize, module)


def exchange_stage(
    encoder: nn.Module, names: list[str], config: PreTrainedConfig, num_global_tokens: int, global_block: str
) -> None:
    """Exchanges the blocks of one stage, and what lies between them."""
    host = host_of(encoder.get_submodule(names[0]))
    for name in between(encoder, names):
        put(encoder, name, PassedBy(encoder.get_submodule(name)))
    for name in names:
        block, is_last = encoder.get_submodule(name), name == names[-1]
        new_tokens = num_global_tokens if name == names[0] else 0
        put(encoder, name, TokenBlock(config, block, host, global_block, new_tokens, is_last))


def between(encoder: nn.Module, names: list[str]) -> list[str]:
    """Names of the modules that the encoder calls between the first and the last of these blocks."""
    blocks, _, first = names[0].rpartition(".")
    last = names[-1].rpartition(".")[2]
    others = [f"{blocks}.{number}" for number in range(int(first), int(last))]
    beside = host_of(encoder.get_submodule(names[0])).beside
    if beside is not None and len(names) > 1:
        others.append(blocks.replace(*beside))
    return [name for name in others if name not in names]


def put(encoder: nn.Module, name: str, module: nn.Module) -> None:
    path, _, last = name.rpartition(".")
    encoder.get_submodule(path)._modules[last] = module


@torch.no_grad()
def initialize(model: PreTrainedModel, module: nn.Module) -> None:
    """Initializes a module of an encoder as the encoder does, and what is GLAM's in it as we do."""
    type(model)._init_weights(model, module)
    if hasattr(module, "reset_own_weights"):
        module.reset_own_weights(getattr(model.config, "initializer_range", 0.02))


__all__ = ["exchange_blocks", "stage_strides", "windowed_stages"]
