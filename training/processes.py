"""Support for training in several processes, beyond what accelerate provides."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator
from accelerate.utils import broadcast, set_seed
from torch import nn
from torch.distributed.fsdp import FSDPModule

from ..processing.progress import hide_progress
from .command_line import CommandError

PEER_IS_GONE = (  # parts of error messages of gloo and NCCL
    "closed by peer",
    "reset by peer",
    "broken pipe",
    "timed out",
    "remote process exited",
    "ncclremoteerror",
)


class PeerError(CommandError):
    """Another process of the run has ended or does not respond."""


def num_processes() -> int:
    """Number of processes, from the environment that torchrun and accelerate set."""
    return int(os.environ.get("WORLD_SIZE", 1))


def quiet_unless_first(accelerator: Accelerator) -> None:
    """Disables warnings and progress on all processes but the first, so that each is printed once."""
    if not accelerator.is_main_process:
        logging.disable(logging.WARNING)
        hide_progress()


def spread_random_numbers(accelerator: Accelerator, seed: int) -> None:
    """Seeds each process differently, for different dropout masks.

    Call it after the weights are initialized.
    """
    if accelerator.process_index:
        set_seed(seed + accelerator.process_index)


def with_synchronized_batch_norm(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    """Converts batch norm to SyncBatchNorm, as in the papers' configurations; for GPUs only."""
    on_several_gpus = accelerator.num_processes > 1 and accelerator.device.type == "cuda"
    return nn.SyncBatchNorm.convert_sync_batchnorm(model) if on_several_gpus else model


def share_buffers(accelerator: Accelerator, model: nn.Module) -> None:
    """Broadcasts the buffers of the first process, which are saved: running statistics differ."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            broadcast(buffer)


@contextmanager
def whole_weights(accelerator: Accelerator, model: nn.Module) -> Iterator[None]:
    """Context manager without FSDP sharding, so that processes may call the model unequally often."""
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


def is_loss_of_a_peer(error: Exception) -> bool:
    """Whether an error of a collective means that another process has ended or does not respond."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in PEER_IS_GONE)


@contextmanager
def explained_loss_of_a_peer(accelerator: Accelerator, advice: str) -> Iterator[None]:
    """Context manager that explains a collective that fails because another process is gone.

    Args:
        accelerator: The processes.
        advice: What to do, in a sentence that ends the message.

    Raises:
        PeerError: If another process has ended or does not respond.
    """
    try:
        yield
    except RuntimeError as error:
        if accelerator.num_processes == 1 or not is_loss_of_a_peer(error):
            raise
        raise PeerError(
            f"process {accelerator.process_index} stops because another process of this run has ended or does not respond. "
            f"See the message of that process. {advice}"
        ) from error
