"""Options of the optimizer and its schedule, of `contextseg-train`."""

from dataclasses import dataclass
from typing import Literal

from .command_line import option

LEARNING_RATE = 6e-5  # that of the papers for pretrained weights


@dataclass(kw_only=True)
class OptimizationOptions:
    _argument_group_name = "Optimization"

    steps: int | None = option(None, "optimizer steps; or give --epochs")
    epochs: float | None = option(None, "passes over the training data (default: 100)")
    batch_size: int | None = option(
        None, "images in one forward pass of one process (default: 8; volumes: planned, 2 to 8)"
    )
    accumulation: int = option(1, "forward passes whose gradients are accumulated for one optimizer step")
    optimizer: Literal["adamw", "sgd"] = option("adamw", "AdamW, or SGD with Nesterov momentum")
    momentum: float = option(0.99, "momentum of SGD")
    learning_rate: float | None = option(
        None, "peak learning rate (default: 6e-5; volumes without --init-from: 1e-3)"
    )
    head_lr_factor: float = option(1.0, "factor of the learning rate for all weights outside the backbone")
    lr_factor: list[str] = option(
        [],
        "factor of the learning rate for weights whose names contain PART; takes several values, and may be repeated",
        metavar="PART=FACTOR",
    )
    weight_decay: float = option(0.01, "weight decay")
    weight_decay_of: Literal["weights", "all-but-norms", "all"] = option(
        "weights",
        "what is decayed: the weights of linear layers and convolutions; all but layer norms and positions, as in "
        "mmsegmentation, so also biases, batch norms and tokens; or all, as in nnU-Net",
    )
    schedule: Literal["poly", "cosine", "constant", "step"] = option(
        "poly", "shape of the learning rate schedule after the warm-up"
    )
    poly_power: float = option(1.0, "exponent of the poly schedule")
    milestones: list[str] = option(
        [],
        "epoch (or step, if --steps is given) at which the step schedule drops to a tenth; takes several values, "
        "and may be repeated",
        metavar="N",
    )
    min_learning_rate: float = option(0.0, "learning rate at the end of the schedule")
    cooldown_steps: int = option(0, "number of last steps at the lowest learning rate")
    warmup_steps: int | None = option(
        None, "steps of linear warm-up (default: a tenth of all steps, at most 1500)"
    )
    clip_norm: float | None = option(None, "clip the gradient to this norm (default: no clipping)")
    ema: float | None = option(
        None, "evaluate and save an exponential moving average of the weights, with this decay, such as 0.999"
    )
    seed: int = option(0, "seed of the initial weights, the order of images, augmentation and dropout")
