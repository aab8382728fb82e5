"""Weights and the optimizer's state as one file holds them, whether a process has all of them (DDP) or a part (FSDP).

Names of parameters are the keys, so that a run may go on with another number of processes or another way of sharding.
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
    """Weights and the optimizer's state, on the CPU of the first process, else nothing. Call it on every process."""
    return copied(get_state_dict(model, plain(optimizer), options=GATHERED))


def gathered_weights(model: nn.Module) -> State:
    """The weights alone."""
    return copied(get_model_state_dict(model, options=GATHERED))


def restore_state(model: nn.Module, optimizer: torch.optim.Optimizer, weights: State, state: State) -> None:
    """Gives this process its part of what `gathered_state` returned on the first."""
    set_state_dict(
        model, plain(optimizer), model_state_dict=weights, optim_state_dict=state, options=COMPLETE
    )


def restore_weights(model: nn.Module, weights: State) -> None:
    """Gives this process its part of what `gathered_weights` returned on the first."""
    set_model_state_dict(model, weights, options=COMPLETE)


def copied(state: Any) -> Any:
    """Tensors of their own: on a CPU they would be the model's, or promises of a collective, which no file can hold."""
    return tree_map_only(Tensor, torch.clone, state)


def plain(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """torch's own, out of accelerate's wrapper."""
    return optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
