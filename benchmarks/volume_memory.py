"""Peak memory of inference on a volume, with a model of one layer and random values.

    python -m contextseg.benchmarks.volume_memory --volumes 148x512x512,100x400x440 --classes 14

Each case runs in its own process. Its peak is the largest resident size that the kernel saw from the first window
on, less the size of the process before, in which model and values already are. The mask counts. Cases whose volume
has another size than the file are resized to it, in bands. Prints a Markdown table. Linux only.
"""

import hashlib
import time
from dataclasses import dataclass
from itertools import product
from math import prod
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from ..processing.inference import Inference
from ..processing.volumes.volume_inference import part_of, volume_probabilities
from ..training.command_line import CommandLine, CommandOptions, option, short_errors
from ..training.option_texts import integers, window_sides
from .raster_memory import forget_peak, in_own_process, resident

PROGRAM = "python -m contextseg.benchmarks.volume_memory"
DESCRIPTION = "Measure the peak memory of inference on a volume."


@dataclass
class VolumeMemoryArguments(CommandOptions):
    volumes: str = option(
        "148x512x512,100x400x440",
        "slices, rows and columns at the spacing of the model",
        metavar="DxHxW,DxHxW",
    )
    file: str = option("148x512x512", "slices, rows and columns of the file", metavar="DxHxW")
    classes: str = option("14", "numbers of classes", metavar="K,K")
    window: str = option("64x128x128", "slices, rows and columns of the windows", metavar="DxHxW")
    overlap: float = option(0.5, "fraction of a window that its neighbor covers too")
    flip: bool = option(False, "average over the 8 mirrored views")


class OneLayer(nn.Module):
    """A convolution of single voxels: (B, 1, D, H, W) -> logits (B, K, D, H, W)."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, num_labels: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_labels=num_labels, num_axes=3)
        self.layer = nn.Conv3d(1, num_labels, 1)

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        """(B, 1, D, H, W) -> logits (B, K, D, H, W)."""
        return SimpleNamespace(logits=self.layer(pixel_values))


def measure(volume: str, num_labels: int, arguments: VolumeMemoryArguments) -> None:
    """Runs one case and prints its row of the table."""
    sides, size = window_sides(volume, "--volumes"), window_sides(arguments.file, "--file")
    torch.manual_seed(0)
    model, values = OneLayer(num_labels).eval(), torch.randn(1, *sides)
    inference = Inference(
        window_sides(arguments.window, "--window"), overlap=arguments.overlap, flip=arguments.flip
    )
    list(volume_probabilities(model, values[:, :2, :2, :2], Inference((2, 2, 2))))
    forget_peak()
    before, start = resident("VmRSS"), time.process_time()
    mask = torch.zeros(size, dtype=torch.uint8)
    for band in volume_probabilities(model, values, inference, size):
        part_of(mask, band).copy_(band.probabilities.max(0).indices)
    peak, seconds = (resident("VmHWM") - before) * 1024, time.process_time() - start
    score_map = 4 * num_labels * prod(size)
    ids = hashlib.sha256(mask.numpy().tobytes()).hexdigest()[:8]
    cells = (volume, arguments.file, num_labels, f"{score_map / 1e9:.2f}", f"{peak / 1e9:.2f}")
    print(f"| {' | '.join(map(str, cells))} | {peak / score_map:.2f} | {seconds:.0f} | {ids} |", flush=True)


@short_errors(PROGRAM)
def main() -> None:
    arguments = CommandLine(VolumeMemoryArguments, PROGRAM, DESCRIPTION).arguments()
    names = (
        "volume",
        "file",
        "classes",
        "score map, GB",
        "peak, GB",
        "share",
        "processor seconds",
        "checksum",
    )
    print(f"| {' | '.join(names)} |\n{'|---' * len(names)}|", flush=True)
    torch.set_num_threads(1)
    for case in product(arguments.volumes.split(","), integers(arguments.classes, "--classes")):
        in_own_process(measure, *case, arguments)


if __name__ == "__main__":
    main()
