"""Dry run: builds everything that a training run needs, tries it on two samples, and prints the plan."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..processing.data.unreadable import UnreadableImages
from ..processing.plain_text import counted
from . import setup
from .loop import Schedule
from .models import describe
from .recipes import Recipe
from .tasks import task_for

if TYPE_CHECKING:
    from .options import TrainArguments

COUNTS = {1: "one sample", 2: "two samples"}
CLASSES = 2  # if neither data nor recipe give a number
GIGABYTE = 1e9


def plan(arguments: "TrainArguments", recipe: Recipe | None) -> int:
    """Builds a run, tries it on two samples, and prints its plan.

    Args:
        arguments: Options of the run. Without `train`, samples are noise.
        recipe: Recipe of the run, if any; without `train`, its `paper` gives the size of the data.

    Returns:
        The exit code, 0.

    Raises:
        ValueError: If the options do not fit together, or the loss is not finite.
    """
    paper, task = recipe.paper if recipe else {}, task_for(arguments)
    accelerator = setup.new_accelerator(arguments)
    if arguments.train:
        data, val = setup.open_splits(task)
        num_images = len(data)
    else:
        data, val = task.generated(int(paper.get("classes", CLASSES))), None
        num_images = int(paper.get("images", 0))
    print(*task.plan(data, val), sep="\n", end="\n" * bool(task.record()))
    batch = arguments.batch_size * accelerator.num_processes
    schedule = setup.new_schedule(arguments, num_images or batch, accelerator.num_processes)
    model = setup.new_model(task, data)
    samples = task.new_samples(task.new_processor())
    optimizer = setup.new_optimizer(arguments, model)
    tried = samples.collate([samples[0, index] for index in range(task.trial_samples)])
    UnreadableImages(skip=task.skips_unreadable).check(tried)
    trial = try_batch(model, tried)
    print(f"{describe(model)}, {counted(len(data.classes), 'class', 'classes')}")
    print(data_line(tried, num_images, task.sample))
    print(schedule_line(arguments, schedule, num_images, accelerator.num_processes))
    print(optimizer_line(optimizer))
    print(f"forward pass: {trial.multiply_adds / trial.samples / GIGABYTE:.4g} G multiply-adds per sample")
    print(memory_line(model, trial, arguments))
    return 0


@dataclass
class Trial:
    """Result of one forward pass over one or two samples."""

    loss: float
    samples: int
    multiply_adds: int  # of the forward pass
    kept_bytes: int  # saved by autograd for the backward pass


def try_batch(model: nn.Module, batch: dict[str, Any]) -> Trial:
    """Computes the loss of a batch and measures the memory of the saved activations, weights excluded."""
    kept: dict[int, Tensor] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage().data_ptr()
        if storage not in own:
            kept[storage] = tensor  # kept alive, so that its memory is not reused
        return tensor

    inputs = {name: value for name, value in batch.items() if name != "name"}
    model.train()
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, FlopCounterMode(display=False) as counter:
        loss = model(**inputs).loss.item()
    if not math.isfinite(loss):
        raise ValueError(
            f"the loss of the first samples is {loss} before any training. Check --set and the weights that the run starts from."
        )
    samples = len(batch["name"])
    return Trial(
        loss,
        samples,
        counter.get_total_flops() // 2,
        sum(tensor.untyped_storage().nbytes() for tensor in kept.values()),
    )


def data_line(batch: dict[str, Any], num_images: int, sample: str) -> str:
    shapes = [f"{name} {tuple(value.shape)}" for name, value in batch.items() if torch.is_tensor(value)]
    count = f"{num_images} {sample}s" if num_images else "size unknown without --train"
    return f"data: {count}; a batch of {COUNTS[len(batch['name'])]} has {', '.join(shapes)}"


def schedule_line(
    arguments: "TrainArguments", schedule: Schedule, num_images: int, num_processes: int
) -> str:
    images = arguments.batch_size * arguments.accumulation * num_processes
    steps = "unknown steps" if not (arguments.steps or num_images) else f"{schedule.steps} steps"
    samples = num_images * arguments.crops_per_image
    epochs = f" ({schedule.steps * images / samples:.1f} epochs)" if samples else ""
    peak = arguments.learning_rate
    first, last = (peak * schedule.learning_rate_factor(step) for step in (0, schedule.steps - 1))
    return (
        f"schedule: {steps}{epochs} of {images} images ({arguments.batch_size} x {arguments.accumulation} "
        f"accumulated x {num_processes} processes); learning rate {first:.2g} -> {peak:.2g} after "
        f"{schedule.warmup_steps} steps -> {last:.2g}, {schedule.shape}"
    )


def optimizer_line(optimizer: torch.optim.Optimizer) -> str:
    groups = [
        f"{sum(parameter.numel() for parameter in group['params'])} weights at {group['lr']:.2g}, decay {group['weight_decay']:.2g}"
        for group in optimizer.param_groups
    ]
    return f"{type(optimizer).__name__}: {'; '.join(groups)}"


def memory_line(model: nn.Module, trial: Trial, arguments: "TrainArguments") -> str:
    """Memory of weights, gradients, the optimizer's averages and the EMA in float32, and of the activations."""
    weights = sum(parameter.nbytes for parameter in model.parameters())
    copies = 3 + (arguments.optimizer == "adamw") + (arguments.ema is not None)
    fixed = weights * copies / GIGABYTE
    activations = trial.kept_bytes / trial.samples * arguments.batch_size / GIGABYTE
    return (
        f"memory of a process: {fixed:.2f} GB for weights, gradients and averages, about {activations:.2f} GB for the "
        f"activations of {arguments.batch_size} images (float32; about half with --precision bf16)\n"
        f"loss of the {COUNTS[trial.samples]}: {trial.loss:.4f}"
    )
