"""Checks of a run's weights while it trains, and of a stored training state before it is restored."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..configuration.ranges import Range, whole
from .checkpoints import CheckpointError, newest
from .command_line import CommandError
from .model_files import first_not_finite, floating_tensors
from .processes import is_loss_of_a_peer


class NonFiniteWeightsError(CommandError):
    """Weights became infinite or NaN; the message names the step and a weight."""


def largest_weight(model: nn.Module) -> Tensor:
    """-> scalar on the model's device: the largest magnitude among this process's weights and buffers.

    It is infinite or NaN if one of them is.
    """
    own = [tensor for _, tensor in floating_tensors(model)]
    return torch.nn.utils.get_total_norm(own, norm_type=math.inf)


def check_weights_to_save(
    weights: Mapping[str, Tensor], optimizer: Mapping[str, Any], step: int, run: Path
) -> None:
    """Raises NonFiniteWeightsError if weights or the optimizer's averages are not finite.

    Args:
        weights: Weights and buffers by name.
        optimizer: The optimizer's state, by name of the weight; may be empty.
        step: Number of the last step.
        run: Folder of the run.
    """
    if name := first_not_finite({**weights, **averages_by_name(optimizer)}):
        raise NonFiniteWeightsError(not_finite(f"after step {step}, {name}", run))


def averages_by_name(optimizer: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns the tensors in an optimizer's state, by name of the weight and of the average."""
    return {
        f"{name} ({what} of the optimizer)": value
        for name, values in optimizer.items()
        for what, value in values.items()
        if isinstance(value, Tensor)
    }


def not_finite(what: str, run: Path) -> str:
    """Returns the message for weights that are not finite although the losses were."""
    return (
        f"{what} is not finite, although the loss was: a gradient or the step was too large. Lower --learning-rate, set "
        f"--clip-norm 1, or use --precision bf16 instead of fp16. {intact_checkpoint(run)}"
    )


def intact_checkpoint(run: Path) -> str:
    """Returns a sentence that says whether the run has a checkpoint from before the present step."""
    folder = newest(run / "last")
    return (
        f"The checkpoint in {folder} is from before and intact."
        if folder.exists()
        else "No checkpoint was saved."
    )


def check_state(state: Any, model: nn.Module, steps: int, path: Path) -> None:
    """Checks a stored training state against the model and the length of the run.

    Raises CheckpointError if it lacks a weight, has one of another shape or type or that is not finite, or claims
    an impossible step.
    """
    problem = problem_of_progress(state.get("progress") if isinstance(state, dict) else None, steps)
    if problem is None and "engine" not in state:  # DeepSpeed checks its own files
        weights, optimizer = state.get("model"), state.get("optimizer")
        problem = problem_of_weights(weights, model) or problem_of_averages(optimizer, weights)
    if problem is not None:
        raise CheckpointError(refusal(path, problem))


def problem_of_progress(progress: Any, steps: int) -> str | None:
    """Returns what is impossible about the progress in a state, if anything."""
    if not isinstance(progress, dict) or not {"step", "seconds", "scores", "best"} <= progress.keys():
        return "it lacks the progress of the run"
    if progress["step"] not in whole(0, steps):
        return f"it claims step {progress['step']} of a run of {steps} steps"
    if progress.get("evaluations_since_best", 0) not in whole(0, steps):
        return f"it claims {progress['evaluations_since_best']} evaluations without a better score"
    if progress["seconds"] not in Range(minimum=0):
        return f"it claims a training of {progress['seconds']} seconds"
    if not all(are_scores(progress[name], progress["step"]) for name in ("scores", "best")):
        return "it has damaged scores"
    return None


def are_scores(scores: Any, step: int) -> bool:
    """Whether these can be the scores of an evaluation up to a step; without validation data they are empty."""
    return isinstance(scores, dict) and (
        not scores
        or scores.get("step") in whole(0, step)
        and not any(value is None or isinstance(value, str) for value in scores.values())
    )


def problem_of_weights(weights: Any, model: nn.Module) -> str | None:
    """Returns which of a model's weights a state lacks or has in another shape, if any."""
    if not isinstance(weights, dict):
        return "it lacks the weights"
    for name, tensor in model.state_dict().items():
        found = weights.get(name)
        if not isinstance(found, Tensor):
            return f"it lacks the weight {name}"
        if found.shape != tensor.shape or found.dtype != tensor.dtype:
            return f"it has another shape or type of the weight {name}"
    name = first_not_finite(weights)
    return f"it has values of {name} that are not finite" if name else None


def problem_of_averages(optimizer: Any, weights: Mapping[str, Tensor]) -> str | None:
    """Returns what is wrong with an optimizer's state, if anything: it has the same averages for each weight."""
    averages = optimizer.get("state") if isinstance(optimizer, dict) else None
    if not isinstance(averages, dict) or not all(isinstance(values, dict) for values in averages.values()):
        return "it lacks the state of the optimizer"
    kinds = set().union(*averages.values())
    for name, values in averages.items():
        if missing := kinds - values.keys():
            return f"it lacks {min(missing)} of the optimizer for {name}"
        for what, value in values.items():
            if isinstance(value, Tensor) and value.dim() and value.shape != weights[name].shape:
                return f"it has another shape of {what} of the optimizer for {name}"
    name = first_not_finite(averages_by_name(averages))
    return f"it has values of {name} that are not finite" if name else None


@contextmanager
def explained_restoring(path: Path) -> Iterator[None]:
    """Context manager that raises CheckpointError for a state that cannot be restored."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if is_loss_of_a_peer(error):
            raise
        raise CheckpointError(refusal(path, f"{type(error).__name__}: {error}")) from error


def refusal(path: Path, problem: str) -> str:
    """Returns the message for a state that does not belong to the run."""
    return (
        f"{path} does not fit this run: {problem}. Copy it again from where it was intact, or start a new run with "
        f"--init-from {path.parent}."
    )
