"""contextseg-train: trains a segmenter on pairs of images and masks.

    contextseg-train --model glam_swin --preset tiny --train data/train --val data/val --output runs/streets

Heavy imports come after the command line is read, so that `--help` answers at once.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .training.arguments import given_options, short_errors

PROGRAM = "contextseg-train"
DESCRIPTION = """Train a semantic segmenter on pairs of images and masks. The output folder receives best/ and last/
(both load with from_pretrained), run.json, log.jsonl and TensorBoard curves. Stop it with Ctrl-C or SIGTERM: it saves, and
--resume continues exactly there."""


@dataclass
class TrainArguments:
    """What a run is made of; the comments are the help of the command line."""

    # Data
    train: str = ""  # folder with images/ and masks/, or the name of a `datasets` data set
    val: str = ""  # the same, to evaluate on; without it there is no best/
    crop_size: str = "512"  # pixels of a training sample: a number, or HEIGHTxWIDTH
    min_scale: float = 0.5  # smallest factor of the random resizing before the crop
    max_scale: float = 2.0  # largest factor
    augmentation: bool = True  # random crops alone: no resizing, flips or colour distortion
    workers: int | None = None  # processes that load data (default: one fewer than cores, at most 8)
    # Model
    model: str = "glam_swin"  # glam_swin, or any model type of transformers that segments
    preset: str | None = None  # size by name: nano, tiny, small, base (default: the model's own, tiny)
    set: list[str] = field(default_factory=list)  # NAME=VALUE: an option of its configuration; repeatable
    weights: str | None = None  # fine-tune this: a run, a folder of save_pretrained, or a Hub name
    swin: str | None = None  # start from this Swin checkpoint of transformers: folder or Hub name
    # Optimisation
    steps: int | None = None  # steps of the optimizer; or give --epochs
    epochs: float | None = None  # passes over the training images (default: 100)
    batch_size: int = 8  # images of one forward pass of one process
    accumulation: int = 1  # forward passes for one step of the optimizer
    learning_rate: float = 6e-5  # of AdamW, at its highest
    head_lr_factor: float = 1.0  # factor of the learning rate outside the backbone
    lr_factor: list[str] = field(default_factory=list)  # PART=FACTOR: where names have PART; repeatable
    weight_decay: float = 0.01  # of the weights of linear layers and convolutions; nothing else decays
    schedule: Literal["poly", "cosine", "constant"] = "poly"  # course of the learning rate after warm-up
    warmup_steps: int | None = None  # linear warm-up (default: a tenth of the steps, at most 1500)
    clip_norm: float | None = None  # largest norm of the gradient (default: not clipped)
    ema: float | None = None  # decay of an average of the weights, such as 0.999, that takes their place
    seed: int = 0  # of the initial weights, the order of images, augmentation and dropout
    # Machine
    precision: Literal["no", "bf16", "fp16"] | None = None  # mixed; default: as accelerate is configured
    compile: bool = False  # torch.compile the model: slow to start, faster afterwards on a GPU
    cpu: bool = False  # leave GPUs alone
    # Run
    output: str = ""  # folder of this run
    resume: bool = False  # continue the run in --output; its options are known, give only those to change
    eval_interval: int | None = None  # steps between evaluations and checkpoints (default: a tenth of all)
    log_interval: int = 10  # steps between reports on a GPU; a CPU reports every step
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"  # where curves go beside log.jsonl
    traceback: bool = False  # show where in the code an error came from


def main(argv: list[str] | None = None) -> int:
    given = given_options(TrainArguments, argv, PROGRAM, DESCRIPTION)
    from .training.setup import resolve  # torch is imported from here on

    with short_errors(PROGRAM, given.get("traceback", False)):
        return train(resolve(TrainArguments, given))


def train(arguments: TrainArguments) -> int:
    """A whole run; returns the exit code: 0 when it came to its end, 128 + the signal's number when it was stopped."""
    from .training import setup
    from .training.checkpoints import load_state
    from .training.loop import Meter, StopSignal, Training, train_loop
    from .training.models import describe
    from .training.optim import WeightAverage
    from .training.run_folder import RunFolder

    stop = StopSignal()
    with stop.listening():
        accelerator = setup.new_accelerator(arguments)
        train_data, val_data = setup.open_splits(arguments)
        schedule = setup.new_schedule(arguments, len(train_data), accelerator.num_processes)
        model = setup.new_model(arguments, train_data)
        processor = setup.new_processor(train_data)
        accelerator.print(f"{describe(model)}, {len(train_data.classes)} classes, {len(train_data)} images")
        model, optimizer = accelerator.prepare(model, setup.new_optimizer(arguments, model))
        training = Training(accelerator, model, optimizer)
        training.average = WeightAverage(training.plain_model, arguments.ema) if arguments.ema else None
        if arguments.resume:
            training.restore(load_state(Path(arguments.output) / "last"))
        batches = setup.new_batches(arguments, schedule, train_data, processor, training)
        run = RunFolder(arguments, training, processor, val_data)

        meter = Meter(training, schedule, run.log)
        finished = train_loop(training, batches, schedule, meter, stop, checkpoint=run.checkpoint)
        return run.close(meter, None if finished else stop.number)


if __name__ == "__main__":
    sys.exit(main())
