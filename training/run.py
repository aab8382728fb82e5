"""A training run, from its options to its exit code."""

from pathlib import Path

from . import setup
from .determinism import explained_missing_kernel
from .loop import Meter, Training, train_loop
from .models import describe_with_data
from .optim import ModelEma
from .options import TrainArguments
from .processes import explained_loss_of_a_peer, spread_random_numbers, with_synchronized_batch_norm
from .run_folder import RunFolder
from .stopping import StopSignal
from .tasks import task_for


def train(arguments: TrainArguments) -> int:
    """Trains a model; returns 0 if the run finished, 128 + the signal number if a signal stopped it."""
    stop, task = StopSignal(), task_for(arguments)
    accelerator = setup.new_accelerator(arguments)
    with (
        stop.listening(),
        explained_loss_of_a_peer(
            accelerator, f"Continue from the last checkpoint with --output {arguments.output} --resume."
        ),
        explained_missing_kernel(),
    ):
        train_data, val_data = setup.open_splits(task)
        accelerator.print(*task.plan(train_data, val_data), sep="\n", end="\n" * bool(task.record()))
        schedule = setup.new_schedule(arguments, len(train_data), accelerator.num_processes)
        model = setup.new_model(task, train_data)
        processor = task.new_processor()
        samples = task.new_samples(processor)
        accelerator.print(describe_with_data(model, len(train_data.classes), len(train_data)))
        if arguments.sync_batch_norm:
            model = with_synchronized_batch_norm(accelerator, model)
        model, optimizer = accelerator.prepare(model, setup.new_optimizer(arguments, model))
        spread_random_numbers(accelerator, arguments.seed)
        training = Training(accelerator, model, optimizer, Path(arguments.output), task.count)
        training.average = ModelEma(training.plain_model, arguments.ema) if arguments.ema else None
        if arguments.resume:
            setup.restore(training, Path(arguments.output) / "last", schedule)
        batches = setup.new_batches(arguments, schedule, samples, training)
        training.unreadable.skip = arguments.unreadable == "skip"
        run = RunFolder(arguments, task, training, processor, val_data, stop)

        meter = Meter(training, schedule, run.log)
        is_stopped = run.catch_up(meter, schedule)
        finished = not is_stopped and train_loop(
            training, batches, schedule, meter, stop, checkpoint=run.checkpoint
        )
        return run.close(meter, schedule, None if finished else stop.number)
