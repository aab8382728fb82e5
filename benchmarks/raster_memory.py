"""Peak memory of inference over rasters of any size, with a model of one layer and pixels made on the fly.

    python -m contextseg.benchmarks.raster_memory --rasters 10000x10000,40000x30000,80000x15000 --classes 8,150

Each case runs in its own process. Its peak is the largest resident size that the kernel saw from the first window
on, less the size of the process before. Prints a Markdown table. Linux only.
"""

import hashlib
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
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
    overlap: float = option(0.5, "fraction of a window that its neighbor covers too")
    rows: str | None = option(
        None,
        "first row of the result to compute, and the one behind the last (default: all); the peak is reached where a second row of windows begins",
        metavar="N,N",
    )


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
        down, across = (
            (np.arange(*span) // step).astype(np.uint8) for span, step in ((rows, 37), (columns, 23))
        )
        return np.stack([one.outer(down, across) for one in (np.multiply, np.add, np.bitwise_xor)])


def resident(kind: str) -> int:
    """The size of this process in KiB: "VmRSS" now, "VmHWM" at its largest since `forget_peak`."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind))


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def in_own_process(work: Callable[..., None], *arguments: object) -> None:
    """Calls a function in a copy of this process. Raises ValueError if it fails there."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise ValueError(f"a measurement ended with status {process.exitcode}. See the message above.")


def measure(size: str, num_labels: int, memory: int, arguments: MemoryArguments) -> None:
    """Runs one case and prints its row of the table."""
    width, height = map(int, size.split("x"))
    window, stride = arguments.side, arguments.stride
    torch.manual_seed(0)
    model, raster = OneLayer(num_labels, stride).eval(), MadeRaster(width, height)
    inference = Inference(window=window, overlap=arguments.overlap)
    processor = SegmentationImageProcessor()
    rows = tuple(map(int, arguments.rows.split(","))) if arguments.rows else (0, height)
    inference(model, processor, np.zeros((8, 8, 3), np.uint8))
    forget_peak()
    before, start, digest = resident("VmRSS"), time.process_time(), hashlib.sha256()
    for _, scores in inference.raster_scores(
        model, processor, raster, rows, memory << 20, probabilities=False
    ):
        digest.update(scores.max(0).indices.to(torch.uint8).numpy().tobytes())
    peak, seconds = (resident("VmHWM") - before) / 1024, time.process_time() - start
    ids = digest.hexdigest()[:8]
    row = f"| {width} x {height} | {rows[0]} to {rows[1]} | {num_labels} | {memory} | {peak:.0f} | {seconds:.0f} | {ids} |"
    print(row, flush=True)


@short_errors(PROGRAM)
def main() -> None:
    arguments = CommandLine(MemoryArguments, PROGRAM, DESCRIPTION).arguments()
    sizes, settings = arguments.rasters.split(","), integers(arguments.settings, "--settings")
    names = (
        "raster",
        "rows",
        "classes",
        "setting, MiB",
        "peak, MiB",
        "processor seconds",
        "checksum of the ids",
    )
    print(f"| {' | '.join(names)} |\n{'|---' * len(names)}|", flush=True)
    torch.set_num_threads(1)
    for case in product(sizes, integers(arguments.classes, "--classes"), settings):
        in_own_process(measure, *case, arguments)


if __name__ == "__main__":
    main()
