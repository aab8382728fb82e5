"""Memory and wall time of contextseg-predict on files that are made for it, with a small untrained model."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..configuration.configuration_glam_swin import GlamSwinConfig
from ..modeling.modeling_glam_swin import GlamSwinForSemanticSegmentation
from ..processing.file_pipeline import run_files
from ..processing.image_processing_segmentation import SegmentationImageProcessor
from ..processing.inference import Inference
from ..processing.prediction import Predictor
from ..processing.prediction_files import find_jobs
from ..processing.rasters.files import load_rasterio
from ..training.command_line import CommandLine
from ..training.prediction_options import PredictArguments
from ..training.predictions import predict
from .raster_memory import MadeRaster, forget_peak, in_own_process, resident

PREDICT = ("-m", "contextseg.scripts.predict")
SMALL = {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 1), "window_size": 4, "num_global_tokens": 1}
DECODER = {"decoder": "semantic_fpn", "decoder_hidden_size": 8, "use_auxiliary_head": False}
IMAGE_SIDE, WORKERS = 512, 2


def saved_model(folder: Path, **sizes: object) -> Path:
    """Saves an untrained GLAM-Swin nano for 8 classes, or one of other sizes, with its image processor."""
    torch.manual_seed(0)
    model = GlamSwinForSemanticSegmentation(GlamSwinConfig.preset("nano", num_labels=8, **sizes))
    for saved in (model.eval(), SegmentationImageProcessor(do_resize=False)):
        saved.save_pretrained(folder)
    return folder


def saved_raster(path: Path, width: int, height: int) -> Path:
    """Saves a tiled, compressed GeoTIFF of three bands with a place on Earth, row of tiles by row of tiles."""
    rasterio, raster = load_rasterio(), MadeRaster(width, height)
    layout = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate", "zlevel": 1}
    place = {"crs": "EPSG:25832", "transform": rasterio.Affine(0.2, 0, 690000, 0, -0.2, 5336000)}
    size = {"width": width, "height": height, "count": 3, "dtype": "uint8"}
    with rasterio.open(path, "w", driver="GTiff", **size, **layout, **place) as dataset:
        for top in range(0, height, 256):
            rows = top, min(top + 256, height)
            dataset.write(raster.read(rows, (0, width)), window=(rows, (0, width)))
    return path


def wall_time(arguments: Sequence[object]) -> float:
    """Runs a Python command with one thread; returns its wall time in seconds."""
    command, environment = [sys.executable, *map(str, arguments)], {**os.environ, "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def digest(path: Path) -> str:
    """A checksum of the pixels of a raster file."""
    with load_rasterio().open(path) as dataset:
        return sha256(dataset.read(1).tobytes()).hexdigest()[:8]


def command_memory(folder: Path, width: int, height: int) -> None:
    """The peak of the whole command for a raster of one window and a large one, with and without polygons.

    Each runs in a copy of this process; its peak is what it takes beyond the size of the copy, with the model.
    """
    names = "raster", "setting", "options", "peak, MiB", "processor seconds", "checksum of the mask"
    print(f"| {' | '.join(names)} |\n{'|---' * len(names)}|", flush=True)
    model = saved_model(folder / "model", **SMALL, **DECODER)
    small = saved_raster(folder / "512x512.tif", 512, 512)
    large = saved_raster(folder / f"{width}x{height}.tif", width, height)
    for raster, memory, options in (
        (small, "2GB", []),
        (large, "2GB", []),
        (large, "300MB", []),
        (large, "300MB", ["--confidence", "--polygons"]),
    ):
        output = folder / f"{raster.stem}_{memory}_{len(options)}"
        window = ["--window", "512", "--overlap", "0", "--memory", memory, "--cpu", *options]
        words = [str(model), str(raster), "--output", str(output), *window]
        in_own_process(predict_once, words, (raster.stem, memory, " ".join(options)), output / raster.name)


def predict_once(words: list[str], cells: tuple[str, ...], mask: Path) -> None:
    """Does the work of contextseg-predict in this process, and prints a row of the table."""
    forget_peak()
    before, start = resident("VmRSS"), time.process_time()
    predict(CommandLine(PredictArguments, "contextseg-predict", "").arguments(words))
    peak, seconds = (resident("VmHWM") - before) / 1024, time.process_time() - start
    print(f"| {' | '.join(cells)} | {peak:.0f} | {seconds:.0f} | {digest(mask)} |", flush=True)


def overlap_of_files(folder: Path, number: int, repeats: int) -> None:
    """The pipeline over a folder of images against the model alone, and against reading and writing alone."""
    model, images = saved_model(folder / "nano"), folder / "images"
    images.mkdir()
    noise = np.random.default_rng(0).integers(0, 40, (IMAGE_SIDE, IMAGE_SIDE, 3), dtype=np.uint8)
    for index in range(number):
        pixels = np.moveaxis(
            MadeRaster(4096, 4096).read((0, IMAGE_SIDE), (20 * index, 20 * index + IMAGE_SIDE)), 0, -1
        )
        Image.fromarray(pixels // 2 + noise).save(images / f"{index:03d}.png")
    processor = SegmentationImageProcessor.from_pretrained(model)
    predictor = Predictor(
        GlamSwinForSemanticSegmentation.from_pretrained(model).eval(), processor, Inference()
    )
    jobs = find_jobs([str(images)], str(folder / "masks"))
    loaded = predictor.load(jobs[0])
    predicted = predictor.predict(jobs[0], loaded)
    works: dict[str, Callable[[], object]] = {
        "pipeline": lambda: run_files(predictor, jobs, raise_error, WORKERS),
        "model": lambda: [predictor.predict(job, loaded) for job in jobs],
        "files": lambda: [(predictor.load(job), predictor.write(job, predicted)) for job in jobs],
    }
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - start)
    rounds = zip(*times.values(), strict=True)
    ratios = sorted(pipeline / max(model, files / WORKERS) for pipeline, model, files in rounds)
    medians = {name: f"{statistics.median(seconds):.1f}" for name, seconds in times.items()}
    print(
        f"{number} images: seconds {medians}; pipeline / larger: {[f'{ratio:.2f}' for ratio in ratios]}",
        flush=True,
    )


def raise_error(outcome: object) -> None:
    if outcome.error is not None:
        raise outcome.error


def several_processes(folder: Path, side: int, repeats: int) -> None:
    """Two processes against one, over one raster and over a folder of rasters."""
    model = saved_model(folder / "processes")
    scenes = folder / "scenes"
    scenes.mkdir()
    for index in range(8):
        saved_raster(scenes / f"{index}.tif", 512 + 32 * index, 512)
    inputs = {"one raster": saved_raster(folder / "one.tif", side, side), "folder": scenes}
    launch = [
        "-m",
        "accelerate.commands.launch",
        "--num_processes",
        2,
        "--num_machines",
        1,
        "--cpu",
        "--module",
    ]
    for name, source in inputs.items():
        ratios, outputs = [], [folder / f"{source.stem}_{count}" for count in (1, 2)]
        for _ in range(repeats):
            options = ["--window", 256, "--cpu"]
            one = wall_time([*PREDICT, model, source, "--output", outputs[0], *options])
            two = wall_time([*launch, PREDICT[1], model, source, "--output", outputs[1], *options])
            ratios.append(two / one)
        masks = [sorted(path.relative_to(output) for path in output.rglob("*.tif")) for output in outputs]
        same = masks[0] == masks[1] and all(
            digest(outputs[0] / m) == digest(outputs[1] / m) for m in masks[0]
        )
        print(
            f"{name}: same pixels {same}, {len(masks[0])} masks, two / one: {[f'{r:.2f}' for r in ratios]}",
            flush=True,
        )
