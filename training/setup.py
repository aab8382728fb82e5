"""Builds the parts of a run from its arguments; `run.py` puts them together."""

import logging
import math
from collections.abc import Iterator
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs, set_seed
from huggingface_hub.utils import validate_repo_id
from torch.utils.data import Dataset
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from ..processing.data.batches import SampleStream, training_loader
from .checkpoints import STATE_FILE, has_checkpoint, load_state
from .deepspeed_state import configure_deepspeed
from .determinism import use_deterministic_kernels
from .layer_decay import layer_factors
from .loop import Schedule, Training
from .loss_fields import check_loss_is_ours
from .optim import parameter_groups
from .option_texts import milestone, parse_overrides, part_and_factor
from .options import ARGUMENTS, TrainArguments, fields_of, train_arguments
from .processes import num_processes, quiet_unless_first
from .records import read_json
from .starting_points import build_model
from .state_checks import check_state, explained_restoring
from .tasks import Task, task_of
from .trained_part import select_trained

logger = logging.getLogger(__name__)

# Options that a resumed run may change, because the trained weights do not depend on them.
CHANGEABLE = {
    *("val", "workers", "unreadable", "output", "resume", "eval_interval", "log_interval", "tracker"),
    *("push", "license", "traceback", "timeout", "pixel_limit", "early_stopping"),
}
DEFAULT_EPOCHS = 100
SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)
CHECKED_SAMPLES = 32  # pairs of each split


def resolve(given: dict[str, Any]) -> TrainArguments:
    """Returns the arguments of a new or resumed run.

    Args:
        given: Values of options by name. With `resume`, they override the stored ones, if they may change.

    Raises:
        ValueError: If required options are missing, the output folder does not fit `resume`, or a resumed run
            cannot change an option.
    """
    if not given.get("output"):
        raise ValueError(
            "--output is missing. Name the folder that this run writes to, such as runs/streets."
        )
    if given.get("resume"):
        return resumed(given, Path(given["output"]) / "run.json")
    arguments = train_arguments(given)
    if has_checkpoint(Path(arguments.output)):
        raise ValueError(
            f"{arguments.output} already holds a run. Continue it with --resume, or choose another --output."
        )
    if not arguments.train:
        raise ValueError(f"--train is missing. Give {task_of(arguments.task).data_example}.")
    if arguments.early_stopping is not None and not arguments.val:
        raise ValueError("--early-stopping compares validation scores. Give --val, or leave it out.")
    if arguments.push:
        validate_repo_id(arguments.push)  # fail now rather than after training
    return arguments


def resumed(given: dict[str, Any], record: Path) -> TrainArguments:
    """Returns the arguments stored in a `run.json`, updated with `given`.

    Raises ValueError for options that must not change.
    """
    if not record.exists() or not has_checkpoint(record.parent):
        raise ValueError(
            f"there is no checkpoint in {record.parent} to resume from. Leave out --resume to start a new run."
        )
    stored, processes = stored_arguments(record)
    task = stored["task"]
    arguments = train_arguments({**stored, **given, "task": task})
    changeable = CHANGEABLE | changeable_batches({**stored, **given}, stored, processes)
    for name, value in given.items():
        if name not in changeable and value != stored.get(name):
            raise ValueError(
                f"Cannot resume with {name}={value}: the run was started with {name}={stored.get(name)}. "
                f"Leave the option out, or start a new run with --init-from {record.parent}."
            )
    return arguments


def stored_arguments(record: Path) -> tuple[dict[str, Any], int]:
    """Returns the arguments in a `run.json`, `task` among them, and the number of processes.

    Raises ValueError if the file is damaged or not of a run of contextseg-train.
    """
    content = read_json(record)
    arguments, processes = content.get("arguments"), content.get("processes")
    task = arguments.get("task") if isinstance(arguments, dict) else None
    if not (isinstance(task, str) and task in ARGUMENTS and isinstance(processes, int)):
        raise ValueError(
            f"{record} lacks the arguments of a run of contextseg-train. Copy it again, or start a new run with "
            f"--init-from {record.parent}."
        )
    known = {"task", *fields_of(task)}
    stored = {name: value for name, value in arguments.items() if name in known}
    try:
        train_arguments(stored)
    except ValueError as error:
        raise ValueError(f"{record} is damaged: {error}") from error
    return stored, processes


def changeable_batches(now: dict[str, Any], before: dict[str, Any], processes: int) -> set[str]:
    """Options that may change with the number of processes; images per step must stay the same."""
    if num_processes() == processes:
        return set()
    images = {
        "was": before["batch_size"] * before["accumulation"] * processes,
        "is": now["batch_size"] * now["accumulation"] * num_processes(),
    }
    if images["is"] != images["was"]:
        raise ValueError(
            f"Cannot resume with {images['is']} images per step on {num_processes()} processes: the run was started with "
            f"{images['was']} ({before['batch_size']} x accumulation {before['accumulation']} x {processes} processes). "
            f"Choose --batch-size and --accumulation such that it stays {images['was']}."
        )
    return {"batch_size", "accumulation"}


def new_accelerator(arguments: TrainArguments) -> Accelerator:
    """Creates the accelerator and seeds all random number generators."""
    if arguments.tracker == "wandb" and find_spec("wandb") is None:
        raise ValueError("--tracker wandb needs the package wandb. Install it with: pip install wandb")
    if arguments.deterministic:
        use_deterministic_kernels()
    accelerator = Accelerator(
        cpu=arguments.cpu,
        mixed_precision=arguments.precision,
        gradient_accumulation_steps=arguments.accumulation,
        log_with=None if arguments.tracker == "none" else arguments.tracker,
        project_dir=arguments.output,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(minutes=arguments.timeout))],
    )
    configure_deepspeed(
        accelerator,
        batch_size=arguments.batch_size,
        accumulation=arguments.accumulation,
        clip_norm=arguments.clip_norm,
        averages=arguments.ema is not None,
    )
    if arguments.lora and accelerator.distributed_type in SHARDED:
        raise ValueError(
            "--lora is merged into the saved model, which does not work on weights sharded by FSDP or DeepSpeed. Start the run "
            "without them; LoRA needs little memory."
        )
    set_seed(arguments.seed)
    quiet_unless_first(accelerator)
    disable_progress_bar()  # that of transformers, which would overwrite ours at every checkpoint
    return accelerator


def open_splits(task: Task) -> tuple[Dataset, Dataset | None]:
    """Opens training and validation data and checks a sample of each.

    Raises ValueError if they cannot be used together.
    """
    train = task.open("train")
    val = task.open("val") if task.arguments.val else None
    if val is not None:
        if not len(val):
            raise ValueError(
                f"{task.arguments.val} has no images to validate on. Add some, or leave out --val."
            )
        task.check_same_classes(train, val)
    return train, val


def new_model(task: Task, data: Dataset) -> PreTrainedModel:
    """Builds the model for the classes of `data`, and prepares the task for both."""
    arguments, overrides, fields = (
        task.arguments,
        parse_overrides(task.arguments.set),
        task.model_fields(data),
    )
    if twice := sorted(overrides.keys() & fields.keys()):
        option = f"--{twice[0].replace('_', '-')}"
        raise ValueError(f"{option} and --set {twice[0]}=... set the same field. Give only {option}.")
    model = build_model(
        task.models,
        arguments.model or (None if arguments.init_from else arguments.default_model),
        arguments.preset,
        class_names=list(data.classes),
        options={**overrides, **fields},
        init_from=arguments.init_from,
    )
    check_loss_is_ours(model, fields)
    task.prepare(model, data)
    model = select_trained(model, arguments.freeze, arguments.lora)
    if arguments.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if arguments.compile:
        model.compile()
    return model


def new_schedule(arguments: TrainArguments, num_images: int, num_processes: int) -> Schedule:
    """Computes the length of a run and its intervals, in optimizer steps.

    Args:
        arguments: Options of the run.
        num_images: Number of training images.
        num_processes: Number of processes, each with its own batches.

    Raises:
        ValueError: If options contradict each other.
    """
    batch, samples = arguments.batch_size * num_processes, num_images * arguments.crops_per_image
    epochs = arguments.epochs or DEFAULT_EPOCHS
    length = arguments.steps or epochs
    steps = arguments.steps or math.ceil(epochs * samples / (batch * arguments.accumulation))
    warmup = min(1500, steps // 10) if arguments.warmup_steps is None else arguments.warmup_steps
    if max(arguments.cooldown_steps, warmup) >= steps > 1:
        logger.warning(
            "the learning rate never reaches its peak: %d steps of warm-up and %d of cool-down in a run of %d steps",
            *(warmup, arguments.cooldown_steps, steps),
        )
    return Schedule(
        steps,
        warmup,
        arguments.schedule,
        accumulation=arguments.accumulation,
        clip_norm=arguments.clip_norm,
        eval_interval=arguments.eval_interval or math.ceil(steps / 10),
        log_interval=arguments.log_interval,
        cooldown_steps=arguments.cooldown_steps,
        floor=learning_rate_floor(arguments),
        patience=arguments.early_stopping,
        power=arguments.poly_power if arguments.schedule == "poly" else 1.0,
        milestones=tuple(round(steps * place / length) for place in milestones(arguments, length)),
    )


def milestones(arguments: TrainArguments, length: float) -> list[float]:
    """Parses --milestones, in the unit in which the length of the run is given: epochs or steps."""
    if (arguments.schedule == "step") != bool(arguments.milestones):
        raise ValueError(
            "--schedule step and --milestones must be given together. Write for example "
            "--schedule step --milestones 8 --milestones 11, or leave both out."
        )
    places = [milestone(place) for place in arguments.milestones]
    if places != sorted(set(places)):
        raise ValueError(f"--milestones {' '.join(arguments.milestones)} do not increase. Sort them.")
    if not all(0 < place < length for place in places):
        raise ValueError(
            f"--milestones {places} are not all within the length of the run, {length:g}. Give earlier ones."
        )
    return places


def learning_rate_floor(arguments: TrainArguments) -> float:
    """Returns the lowest learning rate as a fraction of the peak."""
    return arguments.min_learning_rate / arguments.learning_rate if arguments.min_learning_rate else 0.0


def new_optimizer(arguments: TrainArguments, model: PreTrainedModel) -> torch.optim.Optimizer:
    """Builds the optimizer with the parameter groups that the arguments describe."""
    factors = {"head": arguments.head_lr_factor}
    factors |= dict(map(part_and_factor, arguments.lr_factor))
    groups = parameter_groups(
        model,
        learning_rate=arguments.learning_rate,
        weight_decay=arguments.weight_decay,
        decay_of=arguments.weight_decay_of,
        factors=factors,
        layer_factors=arguments.layer_decay and layer_factors(model, arguments.layer_decay),
    )
    if arguments.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=arguments.momentum, nesterov=arguments.momentum > 0)
    return torch.optim.AdamW(groups)


def restore(training: Training, checkpoint: Path, schedule: Schedule) -> None:
    """Restores the state of a checkpoint. Raises CheckpointError if it is damaged or of another run."""
    state, path = load_state(checkpoint), checkpoint / STATE_FILE
    check_state(state, training.plain_model, schedule.steps, path)
    with explained_restoring(path):
        training.restore(state)


def new_batches(
    arguments: TrainArguments, schedule: Schedule, samples: Dataset, training: Training
) -> Iterator[dict[str, Any]]:
    """Returns this process's micro-batches, from the current step of `training` to the end of the run."""
    accelerator = training.accelerator
    stream = SampleStream(
        len(samples),
        arguments.batch_size,
        seed=arguments.seed,
        start=training.step * schedule.accumulation,
        stop=schedule.steps * schedule.accumulation,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        crops=arguments.crops_per_image,
    )
    on_gpu = accelerator.device.type == "cuda"
    return iter(training_loader(samples, stream, workers=arguments.workers, pin_memory=on_gpu))
