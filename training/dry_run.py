"""A dry run: builds all that a training has, tries it on two samples, and prints what the training would be."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..processing.data.unreadable import UnreadableImages
from . import setup
from .loop import Schedule
from .models import describe
from .recipes import Recipe
from .tasks import task_of

if TYPE_CHECKING:
    from .options import TrainArguments

SAMPLES = 2
CLASSES = 2  # where neither data nor recipe tell
GIGABYTE = 1e9


def plan(arguments: "TrainArguments", recipe: Recipe | None) -> int:
    """Without --train, the samples are noise and the size of the data is what the recipe's `paper` says."""
    paper, task = recipe.paper if recipe else {}, task_of(arguments.task)(arguments)
    accelerator = setup.new_accelerator(arguments)
    if arguments.train:
        data, _ = setup.open_splits(task)
        num_images = len(data)
    else:
        data = task.generated(int(paper.get("classes", CLASSES)))
        num_images = int(paper.get("images", 0))
    batch = arguments.batch_size * accelerator.num_processes
    schedule = setup.new_schedule(arguments, num_images or batch, accelerator.num_processes)
    model = setup.new_model(task, data)
    samples = task.new_samples(task.new_processor())
    optimizer = setup.new_optimizer(arguments, model)
    batch_of_two = samples.collate([samples[0, index] for index in range(SAMPLES)])
    UnreadableImages(skip=task.skips_unreadable).check(batch_of_two)
    trial = try_batch(model, batch_of_two)
    print(f"{describe(model)}, {len(data.classes)} classes")
    print(data_line(batch_of_two, num_images))
    print(schedule_line(arguments, schedule, num_images, accelerator.num_processes))
    print(optimizer_line(optimizer))
    print(memory_line(model, trial, arguments))
    return 0


@dataclass
class Trial:
    """What one forward pass over two samples came to."""

    loss: float
    kept_bytes: int  # by autograd, for the backward pass


def try_batch(model: nn.Module, batch: dict[str, Any]) -> Trial:
    """The loss of a batch, and how much the backward pass would need to remember; weights are not counted."""
    kept: dict[int, Tensor] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage().data_ptr()
        if storage not in own:
            kept[storage] = tensor  # alive, so that its memory is not given to another
        return tensor

    inputs = {name: value for name, value in batch.items() if name != "name"}
    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(**inputs).loss.item()
    if not math.isfinite(loss):
        raise ValueError(
            f"the loss of two samples is {loss} before any training. Check --set and the weights it starts from."
        )
    return Trial(loss, sum(tensor.untyped_storage().nbytes() for tensor in kept.values()))


def data_line(batch: dict[str, Any], num_images: int) -> str:
    shapes = [f"{name} {tuple(value.shape)}" for name, value in batch.items() if torch.is_tensor(value)]
    count = f"{num_images} images" if num_images else "size unknown without --train"
    return f"data: {count}; two samples give {', '.join(shapes)}"


def schedule_line(
    arguments: "TrainArguments", schedule: Schedule, num_images: int, num_processes: int
) -> str:
    images = arguments.batch_size * arguments.accumulation * num_processes
    steps = "unknown steps" if not (arguments.steps or num_images) else f"{schedule.steps} steps"
    epochs = f" ({schedule.steps * images / num_images:.1f} epochs)" if num_images else ""
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
    return f"AdamW: {'; '.join(groups)}"


def memory_line(model: nn.Module, trial: Trial, arguments: "TrainArguments") -> str:
    """Weights, gradients, AdamW's two averages and that of the weights, all in float32; and the activations of a batch."""
    weights = sum(parameter.nbytes for parameter in model.parameters())
    fixed = weights * (5 if arguments.ema else 4) / GIGABYTE
    activations = trial.kept_bytes / SAMPLES * arguments.batch_size / GIGABYTE
    return (
        f"memory of a process: {fixed:.2f} GB for weights, gradients and averages, about {activations:.2f} GB for the "
        f"activations of {arguments.batch_size} images (float32; about half with --precision bf16)\n"
        f"loss of the two samples: {trial.loss:.4f}"
    )
