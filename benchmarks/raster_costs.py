"""Costs of a second scale, and of prediction by command: time, memory, and the share of reading and writing.

    python -m contextseg.benchmarks.raster_costs shared branches command files processes

Two works are compared in turn. `shared` and `branches` give processor times of one thread, on which other programs
have little influence; the others run the command and give wall times.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ..configuration.configuration_caswit import CaswitConfig
from ..configuration.configuration_glam_swin import GlamSwinConfig
from ..configuration.configuration_relay import RelayConfig
from ..modeling.modeling_caswit import CaswitForSemanticSegmentation
from ..modeling.modeling_glam_swin import GlamSwinForSemanticSegmentation
from ..modeling.modeling_relay import RelayForSemanticSegmentation
from ..modeling.relay_tokens import TwoScales
from ..processing.image_processing_segmentation import SegmentationImageProcessor
from ..processing.inference import Inference
from ..processing.rasters.raster import ArrayRaster
from ..training.command_line import CommandLine, CommandOptions, option, positional, short_errors
from .command_costs import command_memory, overlap_of_files, several_processes
from .raster_memory import MadeRaster

PROGRAM = "python -m contextseg.benchmarks.raster_costs"
DESCRIPTION = "Measure the costs of a second scale, and of prediction by command."
RELAY_SIDE, CASWIT_SIDE = 256, 512


@dataclass
class CostArguments(CommandOptions):
    parts: list[str] = positional("what to measure: shared, branches, command, files, processes")
    repeats: int = option(3, "rounds, in each of which every work runs once")
    side: int = option(1024, "side of the raster of `shared` and `processes`, in pixels")
    width: int = option(10000, "width of the raster of `command`")
    height: int = option(10000, "height of the raster of `command`")
    images: int = option(100, "images of `files`")


def processor_times(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Processor seconds of each work in each round, after one that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats + 1):
        for name, work in works.items():
            start = time.process_time()
            work()
            times[name].append(time.process_time() - start)
    return {name: seconds[1:] for name, seconds in times.items()}


def ratio(times: dict[str, list[float]], ours: str, theirs: str) -> str:
    """The median of ours / theirs over the rounds, and the range."""
    ratios = sorted(a / b for a, b in zip(times[ours], times[theirs], strict=True))
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


class Uncached(nn.Module):
    """A CASWiT whose context features are computed again for each window."""

    shares_context = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.config, self.device, self.dtype = model, model.config, model.device, model.dtype

    def context_features(self, context_values: Tensor) -> tuple[Tensor, ...]:
        """The context itself, as the only feature."""
        return (context_values,)

    def forward(self, pixel_values: Tensor, context_features: tuple[Tensor, ...]) -> object:
        """As the model, one context at a time, as they are computed where they are shared."""
        features = [self.model.context_features(context) for context in context_features[0].split(1)]
        joined = tuple(map(torch.cat, zip(*features, strict=True)))
        return self.model(pixel_values=pixel_values, context_features=joined)


@torch.no_grad()
def shared(arguments: CostArguments) -> None:
    """Contexts on a fixed grid, computed once, against the same ones computed for each window, and centered ones."""
    print(
        "| CASWiT | overlap | shared / same contexts uncached | shared / centered | same bits |\n|---|---|---|---|---|"
    )
    span, processor = (0, arguments.side), SegmentationImageProcessor()
    raster = ArrayRaster(MadeRaster(arguments.side, arguments.side).read(span, span))
    torch.manual_seed(0)
    model = CaswitForSemanticSegmentation(CaswitConfig.preset("nano", num_labels=8)).eval()
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.02)  # gates that are not 0

    def logits(model: nn.Module, inference: Inference) -> Tensor:
        bands = inference.raster_scores(model, processor, raster, probabilities=False)
        return torch.cat([scores for _, scores in bands], 1)

    for overlap in (0.0, 0.5):
        settings = Inference(window=256, overlap=overlap, share_context=True)
        works = {
            "shared": partial(logits, model, settings),
            "uncached": partial(logits, Uncached(model), settings),
            "centered": partial(logits, model, replace(settings, share_context=False)),
        }
        times = processor_times(works, arguments.repeats)
        columns = ratio(times, "shared", "uncached"), ratio(times, "shared", "centered")
        same = torch.equal(works["shared"](), works["uncached"]())
        print(f"| nano | {overlap} | {' | '.join(columns)} | {same} |", flush=True)


def local_only(local_branch: Callable, _: Callable, scales: TwoScales) -> TwoScales:
    """An update of relay tokens that leaves out the context crop."""
    local, relay_tokens = local_branch(scales.local, scales.relay_tokens)
    return TwoScales(local, scales.context, relay_tokens)


def relay_pair(name: str) -> tuple[nn.Module, nn.Module]:
    """A relay model, and the same without the context crop in its blocks."""
    both, alone = (
        RelayForSemanticSegmentation(RelayConfig.preset(name, num_labels=8, num_relay_tokens=number)).eval()
        for number in (4, 0)
    )
    for module in alone.modules():
        if hasattr(module, "update"):
            module.update = local_only
    return both, alone


@torch.no_grad()
def branches(arguments: CostArguments) -> None:
    """A model with both branches against its local branch alone, per tile."""
    print("| model | tile | both branches / local branch alone |\n|---|---|---|")
    for name in ("vit_small", "swinv2_small"):
        both, alone = relay_pair(name)
        local, context = torch.randn(2, 1, 3, RELAY_SIDE, RELAY_SIDE)
        works = {
            "both": lambda: both(pixel_values=local, context_values=context),  # noqa: B023 - run in this round
            "alone": lambda: alone(pixel_values=local, context_values=context),  # noqa: B023
        }
        print(
            f"| relay {name} | {RELAY_SIDE} | {ratio(processor_times(works, arguments.repeats), 'both', 'alone')} |"
        )
    caswit = CaswitForSemanticSegmentation(CaswitConfig.preset("tiny", num_labels=8)).eval()
    config = GlamSwinConfig.preset("tiny", num_labels=8, num_global_tokens=0)
    swin = GlamSwinForSemanticSegmentation(config).eval()
    local, context = torch.randn(2, 1, 3, CASWIT_SIDE, CASWIT_SIDE)
    features = caswit.context_features(context)
    works = {
        "both": lambda: caswit(pixel_values=local, context_values=context),
        "known": lambda: caswit(pixel_values=local, context_features=features),
        "alone": lambda: swin(pixel_values=local),
    }
    times = processor_times(works, arguments.repeats)
    print(f"| CASWiT tiny | {CASWIT_SIDE} | {ratio(times, 'both', 'alone')} |")
    print(
        f"| CASWiT tiny, context features known | {CASWIT_SIDE} | {ratio(times, 'known', 'alone')} |",
        flush=True,
    )


@short_errors(PROGRAM)
def main() -> None:
    arguments = CommandLine(CostArguments, PROGRAM, DESCRIPTION).arguments()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        known = {
            "shared": lambda: shared(arguments),
            "branches": lambda: branches(arguments),
            "command": lambda: command_memory(folder, arguments.width, arguments.height),
            "files": lambda: overlap_of_files(folder, arguments.images, arguments.repeats),
            "processes": lambda: several_processes(folder, arguments.side, arguments.repeats),
        }
        for part in arguments.parts:
            if part not in known:
                raise ValueError(f"unknown part '{part}'. Known: {', '.join(known)}.")
            known[part]()


if __name__ == "__main__":
    main()
