"""AdamW's parameter groups as the papers have them, learning-rate schedules, and an average of the weights."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from ..modeling.blocks import WeightOwner

DECAYED = (nn.Linear, nn.modules.conv._ConvNd, WeightOwner)


def poly(progress: float) -> float:
    """Falls on a straight line to zero: the papers' polynomial schedule of power 1."""
    return 1.0 - progress


def cosine(progress: float) -> float:
    """Falls along half a cosine to zero."""
    return (1.0 + math.cos(math.pi * progress)) / 2.0


def constant(progress: float) -> float:  # noqa: ARG001
    return 1.0


# "step" is constant between its milestones.
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
) -> float:
    """What the learning rate of optimizer step `step` (0 is the first) is multiplied with.

    The warm-up multiplies the schedule, as mmsegmentation's does: it starts at 1 / (warmup_steps + 1) of it.
    The schedule falls to `floor`, and stays there for the last `cooldown_steps` of the steps. From each of the `milestones`
    on, which are numbers of steps, the factor is a tenth of what it was.
    """
    warmup = min(1.0, (step + 1) / (warmup_steps + 1))
    course = SCHEDULES[schedule](min(1.0, step / max(1, steps - cooldown_steps)))
    course *= STEP_FACTOR ** sum(step >= milestone for milestone in milestones)
    return warmup * (floor + (1.0 - floor) * course)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def parameter_groups(
    model: nn.Module, *, learning_rate: float, weight_decay: float, factors: Mapping[str, float] | None = None
) -> list[dict]:
    """Groups for AdamW: one for each pair of learning rate and weight decay that occurs.

    Weight decay is for the weights of linear layers and convolutions; norms, biases, global tokens, position tables
    and codes have none.

    Args:
        factors: Learning-rate factors by a part of the parameter's name, such as {"global_tokens": 10}; "head" stands
            for all parameters outside the backbone. A parameter takes the product of those that fit.
    """
    factors = dict(factors or {})
    decayed = {id(module.weight) for module in model.modules() if isinstance(module, DECAYED)}
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
        groups.setdefault((rate, weight_decay if id(parameter) in decayed else 0.0), []).append(parameter)
    if unused := set(factors) - used:
        raise ValueError(
            f"no parameter's name contains '{min(unused)}'. Give a part of a name that the model has."
        )
    return [
        {"params": parameters, "lr": rate, "initial_lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


class WeightAverage:
    """An exponential moving average of a model's weights, to be evaluated and published in their place.

    Early on the average forgets faster, so that the random start does not stay in it. Counters are copied, and so are
    the running statistics of normalisation, which are averages already.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.begin(model)

    def begin(self, model: nn.Module, steps: int = 0) -> None:
        """Takes the model's weights for the average of that many steps."""
        self.steps = steps
        self.weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Call after every optimizer step."""
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
        """Inside the block, the model has the averaged weights."""
        own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self.weights)
        try:
            yield
        finally:
            model.load_state_dict(own)
