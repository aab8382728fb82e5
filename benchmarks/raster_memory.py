"""Peak memory of inference over rasters of any size, with a model of one layer and pixels made on the fly.

    python -m contextseg.benchmarks.raster_memory --rasters 10000x10000,40000x30000,80000x15000 --classes 8,150

Each case runs in its own process. Its peak is the largest resident size that the kernel saw, less the size of the
process before the first window. Prints a Markdown table.
"""

import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import product
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from ..processing.image_processing_segmentation import SegmentationImageProcessor
from ..processing.inference import Inference
from ..training.command_line import CommandLine, CommandOptions, option, short_errors
from ..training.option_texts import integers

PROGRAM = "python -m contextseg.benchmarks.raster_memory"
DESCRIPTION = "Measure the peak memory of inference over rasters of any size."


@dataclass
class MemoryArguments(CommandOptions):
    rasters: str = option(
        "10000x10000,40000x30000,80000x15000", "widths and heights of the rasters", metavar="WxH,WxH"
    )
    classes: str = option("8,150", "numbers of classes", metavar="K,K")
    settings: str = option("2048", "settings in MiB", metavar="N,N")
    side: int = option(512, "side of the windows")
    stride: int = option(4, "pixels of a cell of the logits along each axis")


class OneLayer(nn.Module):
    """A convolution without overlap: (B, 3, H, W) -> logits (B, K, H / stride, W / stride)."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, num_labels: int, stride: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_labels=num_labels, logits_stride=stride)
        self.layer = nn.Conv2d(3, num_labels, stride, stride)

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        """(B, 3, H, W) -> logits (B, K, H / stride, W / stride)."""
        return SimpleNamespace(logits=self.layer(pixel_values))


class MadeRaster:
    """A raster (3, height, width) whose pixels are a function of their place."""

    def __init__(self, width: int, height: int) -> None:
        self.shape = (3, height, width)

    def read(self, rows: tuple[int, int], columns: tuple[int, int], scale: float = 1.0) -> np.ndarray:
        """The pixels (3, h, w) of a window, uint8."""
        if scale != 1:
            raise ValueError("this raster has no other scales")
        down, across = np.arange(*rows)[:, None] // 37, np.arange(*columns)[None] // 23
        return np.stack([down * across, down + across, down ^ across]).astype(np.uint8)


def measure(size: str, num_labels: int, memory: int, window: int, stride: int) -> str:
    """Runs one case in this process; returns a row of the table."""
    width, height = integers(size.replace("x", ","), "--rasters")
    model, raster = OneLayer(num_labels, stride).eval(), MadeRaster(width, height)
    inference, processor = Inference(window=window), SegmentationImageProcessor()
    inference(model, processor, np.zeros((8, 8, 3), np.uint8))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    counts = torch.zeros(num_labels, dtype=torch.long)
    for _, scores in inference.raster_scores(model, processor, raster, memory=memory << 20):
        counts += scores.max(0).indices.flatten().bincount(minlength=num_labels)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    seconds = time.perf_counter() - start
    return f"| {width} x {height} | {num_labels} | {memory} | {peak:.0f} | {seconds:.0f} | {int(counts.argmax())} |"


@short_errors(PROGRAM)
def main() -> None:
    arguments = CommandLine(MemoryArguments, PROGRAM, DESCRIPTION).arguments()
    sizes, settings = arguments.rasters.split(","), integers(arguments.settings, "--settings")
    cases = list(product(sizes, integers(arguments.classes, "--classes"), settings))
    if len(cases) == 1:
        print(measure(*cases[0], arguments.side, arguments.stride), flush=True)
        return
    print(
        "| raster | classes | setting, MiB | peak above the model, MiB | seconds | most frequent class |\n|---|---|---|---|---|---|"
    )
    for size, classes, memory in cases:
        case = ["--rasters", size, "--classes", classes, "--settings", memory]
        shared = ["--side", arguments.side, "--stride", arguments.stride]
        command = [sys.executable, "-m", "contextseg.benchmarks.raster_memory", *map(str, case + shared)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
