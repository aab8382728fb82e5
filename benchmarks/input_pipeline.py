"""Time from files of an image and a mask to a training sample, beside albumentations doing the same work.

    python -m contextseg.benchmarks.input_pipeline                                  # a generated street-like scene
    python -m contextseg.benchmarks.input_pipeline --image a.png --mask a_ids.png   # files of your own, ids 0 to 18 and 255

Processor time on one thread, in turn in one process. albumentations 2.0 and opencv-python-headless are needed;
`benchmarks/input.md` tells the results.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from PIL import Image

from ..processing.data.augmentation import JointAugmentation
from ..processing.data.batches import TrainingSamples
from ..processing.data.datasets import open_data
from ..processing.image_processing_segmentation import SegmentationImageProcessor

WIDTH, HEIGHT, CROP, CLASSES = 2048, 1024, 512, 19
Work = Callable[[int], object]


def main() -> None:
    """Prints a table of milliseconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=60, help="Samples of each kind.")
    parser.add_argument(
        "--image", type=Path, help="An image file. Default: a generated one, as JPEG and as PNG."
    )
    parser.add_argument("--mask", type=Path, help="Its mask.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| image | bytes | ours | RandomScale | ratio | RandomResizedCrop | ratio | decoding alone (OpenCV) |"
    )
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for image, mask in files(options, Path(folder)):
            times = measured(works(image, mask, Path(folder) / f"data {image.suffix}"), options.rounds)
            ours, scaled, resized, decoding = times.values()
            print(
                f"| {image.suffix[1:]} | {image.stat().st_size:,} | {ours:.1f} ms | {scaled:.1f} ms | **{ours / scaled:.2f}** "
                f"| {resized:.1f} ms | {ours / resized:.2f} | {decoding:.1f} ms |"
            )


def files(options: argparse.Namespace, folder: Path) -> list[tuple[Path, Path]]:
    """The given image and mask, or generated ones."""
    if options.image:
        return [(options.image, options.mask)]
    image, mask = scene(np.random.default_rng(0))
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(image).save(folder / "image.jpg", quality=95)
    Image.fromarray(image).save(folder / "image.png")
    return [(folder / name, folder / "mask.png") for name in ("image.jpg", "image.png")]


def scene(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An image (H, W, 3) and its mask (H, W): regions with curved borders, detail of all sizes, and fine noise."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    down = rows + 20 * np.sin(columns / 37) + 9 * np.sin(rows / 11 + columns / 90)
    right = columns + 20 * np.sin(rows / 41) + 7 * np.cos(columns / 13)
    ids = random.integers(0, CLASSES, (9, 17), dtype=np.uint8)
    mask = ids[(down / 128).clip(0, 8).astype(int), (right / 128).clip(0, 16).astype(int)]
    image = random.uniform(40, 200, (CLASSES, 3))[mask]
    for cell in (2, 4, 8, 16, 32, 64):
        grain = random.normal(0, 0.35 * cell**0.6, (HEIGHT // cell, WIDTH // cell)).astype(np.float32)
        smooth = Image.fromarray(grain).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        image += np.asarray(smooth)[..., None]
    image += random.normal(0, 1.2, image.shape)
    mask[-30:] = 255
    return image.clip(0, 255).astype(np.uint8), mask


def works(image: Path, mask: Path, folder: Path) -> dict[str, Work]:
    """Ours, albumentations' two usual pipelines, and decoding alone; each takes the number of the round."""
    import cv2

    cv2.setNumThreads(0)

    def read() -> dict[str, np.ndarray]:
        pixels = cv2.cvtColor(cv2.imread(str(image)), cv2.COLOR_BGR2RGB)
        return {"image": pixels, "mask": cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE)}

    def theirs(pipeline: Callable) -> Work:
        def work(_: int) -> tuple:
            sample = pipeline(**read())
            return sample["image"], sample["mask"].long()

        return work

    scaled, resized = map(theirs, pipelines())
    ours = our_samples(image, mask, folder)
    return {
        "ours": lambda round_: ours[round_, 0],
        "scaled": scaled,
        "resized": resized,
        "decoding": lambda _: read(),
    }


def pipelines() -> list[Callable]:
    """albumentations' usual steps for segmentation, after resizing the whole image, or with a resized crop."""
    import albumentations as A
    from albumentations.pytorch import ToTensorV2

    colors = A.ColorJitter(brightness=0.125, contrast=(0.5, 1.5), saturation=(0.5, 1.5), hue=0.1)
    common = [A.HorizontalFlip(), colors, A.Normalize(), ToTensorV2()]
    pad, crop = A.PadIfNeeded(CROP, CROP, fill_mask=255), A.RandomCrop(CROP, CROP)
    area = CROP**2 / (WIDTH * HEIGHT)
    resized = A.RandomResizedCrop((CROP, CROP), scale=(area / 4, min(1.0, 4 * area)), ratio=(1, 1))
    return [
        A.Compose([A.RandomScale((-0.5, 1.0), p=1), pad, crop, *common], seed=0),
        A.Compose([resized, *common], seed=0),
    ]


def our_samples(image: Path, mask: Path, folder: Path) -> TrainingSamples:
    """Training samples of a folder with one image."""
    for part, file in (("images", image), ("masks", mask)):
        (folder / part).mkdir(parents=True)
        (folder / part / f"one{file.suffix}").write_bytes(file.read_bytes())
    classes = [f"class {index}" for index in range(CLASSES)]
    (folder / "classes.json").write_text(json.dumps({"classes": classes, "ignore_index": 255}))
    return TrainingSamples(open_data(folder), JointAugmentation((CROP, CROP)), SegmentationImageProcessor())


def measured(works: dict[str, Work], rounds: int) -> dict[str, float]:
    """Mean milliseconds of processor time of each, in turn, after two rounds of warm-up."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for round_ in range(rounds + 2):
        for name, work in works.items():
            started = time.process_time()
            work(round_)
            times[name].append(1000 * (time.process_time() - started))
    return {name: fmean(values[2:]) for name, values in times.items()}


if __name__ == "__main__":
    main()
