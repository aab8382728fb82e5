"""Peak memory of segmenting the file of a volume, from reading to writing, with a model of one layer.

    python -m contextseg.benchmarks.volume_files --files 148x512x512 --classes 14

Makes an int16 .nii.gz file of random blocks, then reads, prepares, segments and writes it as `contextseg-predict` does.
Each case runs in its own process. Its peak is the largest resident size that the kernel saw, less the size of
the process before, in which the model already is. Prints a Markdown table. Linux only.
"""

import hashlib
import time
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel
import numpy as np
import torch

from ..processing.image_processing_volume import VolumeImageProcessor
from ..processing.inference import Inference
from ..processing.volumes.volume_jobs import find_volume_jobs
from ..processing.volumes.volume_prediction import VolumePredictor
from ..training.command_line import CommandLine, CommandOptions, option, short_errors
from ..training.option_texts import integers, window_sides
from .raster_memory import forget_peak, in_own_process, resident
from .volume_memory import OneLayer

PROGRAM = "python -m contextseg.benchmarks.volume_files"
DESCRIPTION = "Measure the peak memory of segmenting the file of a volume."
SPACING = (0.8, 0.8, 3.0)  # millimeters along x, y, z of the files


@dataclass
class VolumeFileArguments(CommandOptions):
    files: str = option("148x512x512", "slices, rows and columns of the file", metavar="DxHxW,DxHxW")
    classes: str = option("14", "numbers of classes", metavar="K,K")
    targets: str = option("0,1.2", "target spacings in the slices; 0: that of the file", metavar="MM,MM")
    window: str = option("64x128x128", "slices, rows and columns of the windows", metavar="DxHxW")
    flip: bool = option(False, "average over the 8 mirrored views")


def write_volume(path: Path, size: tuple[int, int, int]) -> None:
    """Writes blocks of 8 voxels with noise, int16."""
    random = np.random.default_rng(0)
    blocks = random.integers(-400, 600, [side // 8 + 1 for side in size], dtype=np.int16)
    values = np.kron(blocks, np.ones((8, 8, 8), dtype=np.int16))[tuple(map(slice, size))]
    values += random.integers(0, 30, size, dtype=np.int16)
    nibabel.save(nibabel.Nifti1Image(values.T, np.diag([*SPACING, 1])), path)


def predictor(num_labels: int, target: float, arguments: VolumeFileArguments) -> VolumePredictor:
    """The model, its processor and the windows."""
    torch.manual_seed(0)
    model = OneLayer(num_labels).eval()
    model.config.num_channels = 1
    processor = VolumeImageProcessor(target_spacing=(SPACING[2], target, target) if target else None)
    window = window_sides(arguments.window, "--window")
    return VolumePredictor(model, processor, Inference(window, flip=arguments.flip))


def measure(folder: str, size: str, num_labels: int, target: str, arguments: VolumeFileArguments) -> None:
    """Runs one case and prints its row of the table."""
    work = predictor(num_labels, float(target), arguments)
    warm_up, job = (
        find_volume_jobs([f"{folder}/{name}.nii.gz"], f"{folder}/out")[0] for name in ("small", size)
    )
    work.run(warm_up)
    peaks, start = [], time.process_time()
    before = resident("VmRSS")
    result: object = None
    for step in (lambda _: work.load(job), lambda loaded: work.predict(job, loaded)):
        forget_peak()
        result = step(result)
        peaks.append((resident("VmHWM") - before) * 1024)
    forget_peak()
    work.write(job, result)
    peaks.append((resident("VmHWM") - before) * 1024)
    seconds = time.process_time() - start
    score_map = 4 * num_labels * prod(window_sides(size, "--files"))
    ids = hashlib.sha256(np.asarray(nibabel.load(job.target()).dataobj).tobytes()).hexdigest()[:8]
    shown = [f"{value / 1e9:.2f}" for value in (*peaks, score_map)]
    spacing = f"{target} mm" if float(target) else "as the file"
    print(f"| {size} | {num_labels} | {spacing} | {' | '.join(shown)} | {seconds:.0f} | {ids} |", flush=True)


@short_errors(PROGRAM)
def main() -> None:
    arguments = CommandLine(VolumeFileArguments, PROGRAM, DESCRIPTION).arguments()
    names = (
        *(
            "file",
            "classes",
            "spacing in the slices",
            "peak of reading, GB",
            "of segmenting, GB",
            "of writing, GB",
        ),
        *("score map, GB", "processor seconds", "checksum"),
    )
    print(f"| {' | '.join(names)} |\n{'|---' * len(names)}|", flush=True)
    torch.set_num_threads(1)
    sizes = arguments.files.split(",")
    with TemporaryDirectory() as folder:
        for size in ("small", *sizes):
            sides = (4, 8, 8) if size == "small" else window_sides(size, "--files")
            in_own_process(write_volume, Path(folder, f"{size}.nii.gz"), sides)
        classes = integers(arguments.classes, "--classes")
        for case in product(sizes, classes, arguments.targets.split(",")):
            in_own_process(measure, folder, *case, arguments)


if __name__ == "__main__":
    main()
