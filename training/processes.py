"""What several processes need that train one model, beyond what accelerate does."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator
from accelerate.utils import broadcast, set_seed
from torch import nn
from torch.distributed.fsdp import FSDPModule

from .command_line import CommandError

PEER_IS_GONE = (  # in the words of gloo and NCCL
    "closed by peer",
    "reset by peer",
    "broken pipe",
    "timed out",
    "remote process exited",
    "ncclremoteerror",
)


class PeerError(CommandError):
    """Another process of the run has ended or does not answer."""


def num_processes() -> int:
    """Of this run, as torchrun and accelerate tell it, before torch is asked."""
    return int(os.environ.get("WORLD_SIZE", 1))


def quiet_unless_first(accelerator: Accelerator) -> None:
    """A warning is printed by one process, not by each of 64."""
    if not accelerator.is_main_process:
        logging.disable(logging.WARNING)


def spread_random_numbers(accelerator: Accelerator, seed: int) -> None:
    """From here on processes draw different dropout masks. Call it when the model has its first weights."""
    if accelerator.process_index:
        set_seed(seed + accelerator.process_index)


def with_synchronised_batch_norm(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    """Batch statistics over all GPUs, as the papers' configurations have them; torch has that on GPUs only."""
    on_several_gpus = accelerator.num_processes > 1 and accelerator.device.type == "cuda"
    return nn.SyncBatchNorm.convert_sync_batchnorm(model) if on_several_gpus else model


def share_buffers(accelerator: Accelerator, model: nn.Module) -> None:
    """All processes take the first one's: running statistics are each process's own, and the first one's are saved."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            broadcast(buffer)


@contextmanager
def whole_weights(accelerator: Accelerator, model: nn.Module) -> Iterator[None]:
    """Inside the block, each process holds all weights, so that it may call the model more often than others do."""
    shards = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in shards:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in shards:
            module.reshard()
            if module is not model:  # the root keeps its weights between forward and backward
                reshard = accelerator.state.fsdp_plugin.reshard_after_forward
                module.set_reshard_after_forward(reshard, recurse=False)


@contextmanager
def explained_loss_of_a_peer(accelerator: Accelerator, run: str) -> Iterator[None]:
    """Inside the block, a collective that fails because another process is gone says so in one sentence."""
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        if accelerator.num_processes == 1 or not any(words in text for words in PEER_IS_GONE):
            raise
        raise PeerError(
            f"process {accelerator.process_index} stops because another process of this run has ended or does not answer. "
            f"The message of that one says why. Continue from the last checkpoint with --output {run} --resume."
        ) from error
