"""Time, memory and multiply-adds of two implementations of the same work, measured in one process."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

SHORT_SECONDS = 2
FUSED_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@dataclass(frozen=True)
class Timing:
    """Seconds of each round, with ours and theirs measured in turn."""

    ours: list[float]
    theirs: list[float]

    @property
    def medians(self) -> tuple[float, float]:
        return statistics.median(self.ours), statistics.median(self.theirs)

    @property
    def ratios(self) -> list[float]:
        """Sorted ratios ours / theirs of each round; a temporary slowdown of the machine cancels out."""
        return sorted(ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True))


def time_in_turn(
    ours: Callable[[], object], theirs: Callable[[], object], repeats: int, device: torch.device
) -> Timing:
    """Times ours, theirs, ours, theirs, ..., after one warm-up call of each.

    Args:
        ours: The first function.
        theirs: The second function.
        repeats: Number of rounds.
        device: Device that is synchronized before and after each call.
    """
    ours(), theirs()
    return Timing(*rounds_in_turn([ours, theirs], device, repeats))


def rounds_in_turn(
    jobs: Sequence[Callable[[], object]], device: torch.device, rounds: int, most_rounds: int = 0
) -> list[list[float]]:
    """Runs all jobs in turn, round after round -> for each job, the seconds of each round.

    Args:
        jobs: Functions without arguments, which ran before.
        device: Device that is synchronized before and after each call.
        rounds: Number of rounds.
        most_rounds: Jobs that take little time run up to so many rounds, within `SHORT_SECONDS`.
    """
    times: list[list[float]] = []
    while len(times) < rounds or (len(times) < most_rounds and sum(map(sum, times)) < SHORT_SECONDS):
        times.append([seconds(job, device) for job in jobs])
    return [list(of_job) for of_job in zip(*times, strict=True)]


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that pass; on a CPU with one thread, seconds of processor time, which other programs hardly change."""
    is_alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if is_alone else time.perf_counter
    synchronize(device)
    start = clock()
    work()
    synchronize(device)
    return clock() - start


def open_device(name: str) -> torch.device:
    """The device of this name. Raises ValueError if it is a GPU and there is none."""
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("PyTorch finds no CUDA device. Use --device cpu, or install PyTorch with CUDA.")
    return device


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(work: Callable[[], object], device: torch.device) -> int:
    """Peak memory of tensors in bytes while `work` runs, beyond those that existed before.

    On CUDA this is the peak of the allocator. On a CPU it is the largest running sum of the allocations and
    releases that the profiler records in PyTorch's allocator. Unlike the size of the process, which depends
    on what the C library keeps for later, it is the same in every run. Scratch space inside math libraries is
    not included.
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
    """Multiply-adds (MACs) in the forward pass and in a training step."""

    forward: float
    training: float


def macs(compute: Callable[[], object]) -> MultiplyAdds:
    """Counts the multiply-adds (MACs) of a forward pass, as `compute` runs it, and of a training step around it.

    The backward pass has two products for each one of the forward pass. Fused attention on a CPU stores no scores and
    recomputes them: its two products become seven in a training step.
    """
    # PyTorch has no formula for this kernel and would count zero.
    formulas = {FUSED_ATTENTION: lambda *shapes, **_: sdpa_flop_count(*shapes[:3])}
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        compute()
    counts = counter.get_flop_counts()["Global"]  # two per multiply-add
    forward, fused = sum(counts.values()) / 2, counts.get(FUSED_ATTENTION, 0) / 2
    return MultiplyAdds(forward, 3 * forward + fused / 2)
