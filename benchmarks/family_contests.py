"""One size and mode of a family: ours and the others do the same work in turn, in one process."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from statistics import median

import torch
from torch import Tensor, nn

from ..training.records import processor_name
from .comparisons import masks
from .family_models import Family
from .measuring import MultiplyAdds, macs, peak_memory, rounds_in_turn
from .recorded_ratios import Row

CPU = torch.device("cpu")
QUICK_SIZES = {2: (32, 32), 3: (32, 32, 64)}  # by number of axes
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Contest:
    """What `rows` measures.

    Args:
        name: Name of our model.
        is_training: Whether to measure a training step (forward, loss, backward) or inference up to the masks.
        models: Ours, under "ours", and the others by name.
        inputs: Keyword arguments of the models: a batch of one.
        counts: Multiply-adds of each model.
    """

    name: str
    is_training: bool
    models: dict[str, nn.Module]
    inputs: Inputs
    counts: dict[str, MultiplyAdds]

    def rows(self, rounds: int) -> list[Row]:
        """Our model beside each of the others: medians of so many rounds, or of more where they are short."""
        build_job = training_job if self.is_training else inference_job
        jobs = [build_job(model, self.inputs) for model in self.models.values()]
        memory = [peak_memory(job, CPU) for job in jobs]  # also warms up
        times = rounds_in_turn(jobs, CPU, rounds, most_rounds=3 * rounds if rounds > 1 else 1)
        measures = zip(self.models, self.models.values(), times, memory, strict=True)
        ours, *others = [(name, self.numbers(name, model, *rest)) for name, model, *rest in measures]
        ratios = [
            [mine / other for mine, other in zip(times[0], theirs, strict=True)] for theirs in times[1:]
        ]
        return [self.row(ours[1], *other, of_rounds) for other, of_rounds in zip(others, ratios, strict=True)]

    def numbers(self, name: str, model: nn.Module, times: list[float], memory: int) -> list[float]:
        """Seconds, bytes, parameters and multiply-adds of one model."""
        count = self.counts[name]
        parameters = sum(parameter.numel() for parameter in model.parameters())
        return [median(times), memory, parameters, count.training if self.is_training else count.forward]

    def row(self, ours: list[float], beside: str, theirs: list[float], ratios: list[float]) -> Row:
        return Row(
            model=self.name,
            beside=beside,
            size="x".join(map(str, self.inputs["pixel_values"].shape[2:])),
            mode="training step" if self.is_training else "inference",
            time_ratio=median(ratios),
            time_range=(min(ratios), max(ratios)),
            **dict(
                zip(("seconds", "memory", "parameters", "macs"), zip(ours, theirs, strict=True), strict=True)
            ),
            measured=machine(),
        )


def contests(name: str, family: Family, is_quick: bool) -> Iterator[Contest]:
    """Every size and mode of a family; none if the libraries of all others are missing."""
    others = family.available()
    if not others:
        return
    models = {"ours": family.build(), **{other: build() for other, build in others.items()}}
    for size in [QUICK_SIZES[len(family.stride)]] if is_quick else family.sizes:
        inputs = family.inputs(size, 1, CPU)
        counts = {
            other: macs(lambda model=model, inputs=inputs: model.train()(**inputs))
            for other, model in models.items()
        }
        for is_training in (False, True):
            for model in models.values():
                model.train(is_training)
            yield Contest(name, is_training, models, inputs, counts)


def training_job(model: nn.Module, inputs: Inputs) -> Callable[[], None]:
    def train() -> None:
        model(**inputs).loss.backward()
        model.zero_grad()

    return train


def inference_job(model: nn.Module, inputs: Inputs) -> Callable[[], None]:
    """From images to masks at image size; encoders without a decoder end with their feature maps."""
    images = {name: values for name, values in inputs.items() if "labels" not in name}
    size = tuple(inputs["labels"].shape[1:])

    def infer() -> None:
        with torch.inference_mode():
            logits = model(**images).logits
            if logits is not None:
                masks(logits, size)

    return infer


def machine() -> str:
    """Date, processor, threads and versions."""
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    threads = torch.get_num_threads()
    return f"{date.today()}, {processor_name()}, {threads} thread{'s' * (threads > 1)}, float32, {libraries}"
