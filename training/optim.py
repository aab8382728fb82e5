"""Optimizers and their parameter groups, learning-rate schedules, and an exponential moving average of weights."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from ..modeling.blocks import WeightOwner

DECAYED = (nn.Linear, nn.modules.conv._ConvNd, WeightOwner)
# Tables of relative positions, and positions and class tokens of plain vision transformers.
POSITIONS = re.compile(r"position_bias|position_embed|pos_embed|cls_token")


def layer_weights(model: nn.Module) -> set[int]:
    """The ids of the weights of linear layers and convolutions, also of those that own a bare weight."""
    return {id(module.weight) for module in model.modules() if isinstance(module, DECAYED)}


def all_but_norms(model: nn.Module) -> set[int]:
    """The ids of all parameters but those of layer norms and positions: mmsegmentation's usual rule.

    Biases, batch norms and learned tokens are among them.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    left_out = {id(parameter) for norm in norms for parameter in norm.parameters()}
    return {id(value) for name, value in model.named_parameters() if not POSITIONS.search(name)} - left_out


def every_parameter(model: nn.Module) -> set[int]:
    return {id(parameter) for parameter in model.parameters()}


# What --weight-decay-of names.
DECAYS: dict[str, Callable[[nn.Module], set[int]]] = {
    "weights": layer_weights,
    "all-but-norms": all_but_norms,
    "all": every_parameter,
}


def poly(progress: float) -> float:
    """Linear decay to zero; `learning_rate_factor` raises it to a power."""
    return 1.0 - progress


def cosine(progress: float) -> float:
    """Cosine decay to zero."""
    return (1.0 + math.cos(math.pi * progress)) / 2.0


def constant(progress: float) -> float:  # noqa: ARG001
    return 1.0


# "step" is constant between milestones.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "poly": poly,
    "cosine": cosine,
    "constant": constant,
    "step": constant,
}
STEP_FACTOR = 0.1


def learning_rate_factor(
    step: int,
    *,
    steps: int,
    warmup_steps: int,
    schedule: str,
    cooldown_steps: int = 0,
    floor: float = 0.0,
    milestones: Sequence[int] = (),
    power: float = 1.0,
) -> float:
    """Computes the factor of the peak learning rate at an optimizer step.

    Args:
        step: Number of the step, counted from 0.
        steps: Length of the run in steps.
        warmup_steps: Steps of linear warm-up, which multiplies the schedule (as in mmsegmentation) and starts
            at 1 / (warmup_steps + 1).
        schedule: Name of the shape, one of `SCHEDULES`.
        cooldown_steps: Number of last steps that stay at `floor`.
        floor: Factor at the end of the schedule.
        milestones: Steps from which on the factor is a tenth of its previous value.
        power: Exponent of the schedule's shape.

    Returns:
        A factor between 0 and 1.
    """
    warmup = min(1.0, (step + 1) / (warmup_steps + 1))
    course = SCHEDULES[schedule](min(1.0, step / max(1, steps - cooldown_steps))) ** power
    course *= STEP_FACTOR ** sum(step >= milestone for milestone in milestones)
    return warmup * (floor + (1.0 - floor) * course)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def parameter_groups(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    factors: Mapping[str, float] | None = None,
    layer_factors: Mapping[str, float] | None = None,
    decay_of: str = "weights",
) -> list[dict]:
    """Groups trainable parameters for an optimizer by learning rate and weight decay.

    Args:
        model: The model.
        learning_rate: Peak learning rate.
        weight_decay: Weight decay of the decayed parameters.
        factors: Learning-rate factors by part of the parameter name, such as {"global_tokens": 10}; "head"
            means all parameters outside the backbone. If several match, their product applies.
        layer_factors: Further factors by whole parameter name, see `layer_decay.py`; others have factor 1.
        decay_of: What is decayed: "weights" of linear layers and convolutions, not norms, biases, global tokens
            and position tables; "all-but-norms", all but layer norms and positions; or "all".

    Returns:
        Groups with `params`, `lr`, `initial_lr` and `weight_decay`.

    Raises:
        ValueError: If no parameter matches a key of `factors`.
    """
    factors = dict(factors or {})
    decayed = DECAYS[decay_of](model)
    backbone = model.base_model_prefix + "."
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    used = {"head"}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        fitting = {
            key for key in factors if (key in name if key != "head" else not name.startswith(backbone))
        }
        used |= fitting
        rate = learning_rate * math.prod(factors[key] for key in fitting)
        rate *= (layer_factors or {}).get(name, 1.0)
        groups.setdefault((rate, weight_decay if id(parameter) in decayed else 0.0), []).append(parameter)
    if unused := set(factors) - used:
        raise ValueError(
            f"no parameter name contains '{min(unused)}'. Use part of the name of one of the model's parameters."
        )
    return [
        {"params": parameters, "lr": rate, "initial_lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


class ModelEma:
    """Exponential moving average (EMA) of a model's weights, evaluated and published in place of the weights.

    The decay is smaller during the first steps, so that the average forgets the random initialization.
    Buffers, such as the running statistics of batch norm, are copied.

    Args:
        model: The model to average.
        decay: Decay of the average, such as 0.999.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.begin(model)

    def begin(self, model: nn.Module, steps: int = 0) -> None:
        """Sets the average to the model's current weights, as if they were the average of `steps` steps."""
        self.steps = steps
        self.weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Updates the average. Call it after every optimizer step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        parameters = dict(model.named_parameters())
        for name, current in model.state_dict().items():
            if name in parameters:
                self.weights[name].lerp_(current, 1.0 - decay)
            else:
                self.weights[name].copy_(current)

    @contextmanager
    def in_place_of(self, model: nn.Module) -> Iterator[None]:
        """Context manager in which the model has the averaged weights."""
        own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self.weights)
        try:
            yield
        finally:
            model.load_state_dict(own)
