"""What `gpu_check.py` measures: the matrix rate of the device, and training steps of a family in bf16."""

import re
import time
from collections.abc import Callable
from math import prod
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from ..modeling.attention import warn_of_blocks
from .family_models import Family
from .measuring import macs, peak_memory, rounds_in_turn, seconds

FUSED_KERNELS = re.compile(r"flash|fmha|efficient|cudnn.*sdpa", re.IGNORECASE)
WARM_UP, ROUNDS = 3, 10


def matrix_rate(side: int, device: torch.device) -> dict[str, Any]:
    """Operations per second of a product of two bf16 matrices, two for each multiply-add: what a model can reach at most."""
    one, other = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = lambda: one @ other  # noqa: E731
    for _ in range(WARM_UP):
        product()
    (times,) = rounds_in_turn([product], device, ROUNDS)
    return {"side": side, "rate": 2 * side**3 / median(times)}


def training_step(
    model: nn.Module, inputs: dict[str, torch.Tensor], device: torch.device, learning_rate: float = 1e-5
) -> Callable[[], None]:
    """A step in bf16: forward under autocast, loss, backward, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, fused=device.type == "cuda")

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def step_numbers(
    family: Family,
    size: tuple[int, ...],
    batch: int,
    device: torch.device,
    rate: float,
    backend: str | None = None,
) -> dict[str, Any]:
    """Measures training steps of our model of a family.

    Args:
        family: The family.
        size: Size of images or volumes.
        batch: Batch size.
        device: Where to run.
        rate: Operations per second of `matrix_rate`.
        backend: Backend of torch.compile; None does not compile.

    Returns:
        Seconds of a step and of the first one, samples and tokens of the first stage per second, the share of `rate`
        (three times the operations of the forward pass, without those that are repeated in the backward pass), bytes, and
        for a model that is not compiled, calls of attention by kernel.
    """
    model = family.build().to(device).train()
    one, inputs = (family.inputs(size, count, device) for count in (1, batch))
    operations = 2 * 3 * batch * macs(lambda: model(**one)).forward
    step = training_step(torch.compile(model, backend=backend) if backend else model, inputs, device)
    warn_of_blocks.cache_clear()
    first = seconds(step, device)
    for _ in range(WARM_UP):
        step()
    (times,) = rounds_in_turn([step], device, ROUNDS)
    taken = median(times)
    tokens = (
        batch * family.crops * prod(-(-side // cell) for side, cell in zip(size, family.stride, strict=True))
    )
    return {
        "size": "x".join(map(str, size)),
        "batch": batch,
        "first_seconds": first,
        "seconds": taken,
        "samples_per_second": batch / taken,
        "tokens_per_second": tokens / taken,
        "share": operations / taken / rate,
        "memory": peak_memory(step, device),
        **({} if backend else {"attention": attention_calls(step, device)}),
    }


def attention_calls(step: Callable[[], None], device: torch.device) -> dict[str, Any]:
    """Calls of PyTorch's attention in a step, by operator; names of fused GPU kernels; whether all were fused."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as recorded:
        step()
    events = recorded.key_averages()
    calls = {event.key: event.count for event in events}
    operators = {
        name.removeprefix("aten::_scaled_dot_product_"): count
        for name, count in calls.items()
        if name.startswith("aten::_scaled_dot_product_") and not name.endswith("backward")
    }
    in_blocks = warn_of_blocks.cache_info().currsize > 0
    return {
        "operators": operators,
        "kernels": sorted(
            event.key[:80]
            for event in events
            if event.device_type != torch.autograd.DeviceType.CPU and FUSED_KERNELS.search(event.key)
        ),
        "all_fused": not in_blocks and "attention_math" not in operators,
    }


def families_in_time(
    chosen: dict[str, tuple[Family, tuple[int, ...], int]],
    device: torch.device,
    rate: float,
    limit: float,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """`step_numbers` of each family, as long as the limit in seconds is not over; one that fails has its error."""
    end, results = clock() + limit, {}
    for name, (family, size, batch) in chosen.items():
        if clock() >= end:
            results[name] = {"not run": "no time was left"}
            continue
        try:
            results[name] = step_numbers(family, size, batch, device, rate)
        except RuntimeError as error:  # such as too little memory
            results[name] = {"failed": " ".join(str(error).split())[:300]}
    return results
