"""Optimizer state under DeepSpeed ZeRO, which only its engine can write: a folder beside `last/`.

    runs/streets/engine/step-1200/    written first, by all processes
    runs/streets/last/                then this, atomically; its state names the folder, and older ones are removed

If a run dies between the two, the folder that `last/` names still exists.
"""

import shutil
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

FOLDER = "engine"


def uses_deepspeed(accelerator: Accelerator) -> bool:
    return accelerator.distributed_type == DistributedType.DEEPSPEED


def configure_deepspeed(
    accelerator: Accelerator, *, batch_size: int, accumulation: int, clip_norm: float | None, averages: bool
) -> None:
    """Sets the run's batch size, accumulation and clipping in the engine's configuration.

    Raises ValueError for ZeRO 3 or --ema.
    """
    if not uses_deepspeed(accelerator):
        return
    config = accelerator.state.deepspeed_plugin.deepspeed_config
    if config["zero_optimization"]["stage"] == 3 or averages:
        what = "--ema" if averages else "ZeRO stage 3"
        raise ValueError(
            f"{what} is not supported with DeepSpeed. Use ZeRO stage 2 without --ema, or FSDP, which shards weights like "
            "stage 3: accelerate launch --config_file scripts/accelerate/fsdp2.yaml."
        )
    config["train_micro_batch_size_per_gpu"] = batch_size
    config["gradient_accumulation_steps"] = accelerator.gradient_accumulation_steps = accumulation
    config["gradient_clipping"] = clip_norm or 0.0


def save_engine(engine: nn.Module, run: Path, step: int) -> str:
    """Writes the shards of all processes and returns the name for `restore_engine`.

    Call it on every process.
    """
    name = f"step-{step}"
    engine.save_checkpoint(run / FOLDER, tag=name, save_latest=False)
    return name


def restore_engine(engine: nn.Module, run: Path, name: str) -> None:
    engine.load_checkpoint(run / FOLDER, tag=name)


def remove_other_engines(run: Path, name: str) -> None:
    """Removes all engine folders but `name`. Call it on one process, once `last/` refers to `name`."""
    for folder in (run / FOLDER).glob("step-*"):
        if folder.name != name:
            shutil.rmtree(folder)
