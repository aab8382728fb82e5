"""Time, memory and multiply-adds of two ways to do the same work, in one process."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

MIB = 2**20
FUSED_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@dataclass(frozen=True)
class Timing:
    """Seconds of each round, ours and theirs, measured in turn."""

    ours: list[float]
    theirs: list[float]

    @property
    def medians(self) -> tuple[float, float]:
        return statistics.median(self.ours), statistics.median(self.theirs)

    @property
    def ratios(self) -> list[float]:
        """Ours over theirs, round by round and sorted: what slows the whole machine for a while cancels out."""
        return sorted(ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True))


def time_in_turn(
    ours: Callable[[], object], theirs: Callable[[], object], repeats: int, device: torch.device
) -> Timing:
    """After one warm-up of each: ours, theirs, ours, theirs, ..."""
    ours(), theirs()
    rounds = [(seconds(ours, device), seconds(theirs, device)) for _ in range(repeats)]
    return Timing(*map(list, zip(*rounds, strict=True)))


def seconds(work: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(work: Callable[[], object], device: torch.device) -> int:
    """The most bytes in tensors at any moment of `work`, beyond those that existed before it.

    On CUDA that is the allocator's own maximum. On a CPU it is the highest sum of the allocations and releases that the
    profiler records in PyTorch's allocator: the same number in every run, unlike the size of the process, which also
    depends on what the C library keeps for later. Only scratch space inside math libraries is not seen.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    peak = held = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


class MultiplyAdds(NamedTuple):
    """Those of one image in the forward pass and in a training step."""

    forward: float
    training: float


def multiply_adds(model: nn.Module, size: int) -> MultiplyAdds:
    """Counts those of an image (1, 3, size, size) on the CPU.

    Backward, each product becomes two. Fused attention keeps no scores and makes them again: seven products for its two.
    """
    # PyTorch has no formula for this kernel, and would count nothing.
    formulas = {FUSED_ATTENTION: lambda *shapes, **_: sdpa_flop_count(*shapes[:3])}
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        model.train()(torch.randn(1, 3, size, size))
    counts = counter.get_flop_counts()["Global"]  # two for each multiply-add
    forward, fused = sum(counts.values()) / 2, counts.get(FUSED_ATTENTION, 0) / 2
    return MultiplyAdds(forward, 3 * forward + fused / 2)
