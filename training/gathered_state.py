"""Full weights and optimizer state in one file, whether processes hold all (DDP) or shards (FSDP).

Parameter names are the keys, so a run can resume with another number of processes or another kind of
sharding.
"""

from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.utils._pytree import tree_map_only

State = dict[str, Any]
GATHERED = StateDictOptions(full_state_dict=True, cpu_offload=True)
COMPLETE = StateDictOptions(full_state_dict=True)


def gathered_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[State, State]:
    """Returns weights and optimizer state on the CPU, complete on the first process only.

    Call it on every process.
    """
    return copied(get_state_dict(model, plain(optimizer), options=GATHERED))


def gathered_weights(model: nn.Module) -> State:
    """Returns the weights on the CPU, complete on the first process only. Call it on every process."""
    return copied(get_model_state_dict(model, options=GATHERED))


def restore_state(model: nn.Module, optimizer: torch.optim.Optimizer, weights: State, state: State) -> None:
    """Loads this process's part of what `gathered_state` returned on the first process."""
    set_state_dict(
        model, plain(optimizer), model_state_dict=weights, optim_state_dict=state, options=COMPLETE
    )


def restore_weights(model: nn.Module, weights: State) -> None:
    """Loads this process's part of what `gathered_weights` returned on the first process."""
    set_model_state_dict(model, weights, options=COMPLETE)


def copied(state: Any) -> Any:
    """Clones all tensors, which on a CPU may share the model's memory or be unfinished collectives."""
    return tree_map_only(Tensor, torch.clone, state)


def plain(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Unwraps accelerate's optimizer."""
    return optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
