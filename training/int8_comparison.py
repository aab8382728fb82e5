"""A file in 8 bits beside the float file: size, time and mIoU on labeled images."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from ..hub.int8_onnx import open_session
from ..processing.data.datasets import open_data
from ..processing.data.official_layouts import with_split
from ..processing.inference import Inference
from ..processing.metrics import ConfusionMatrix, percent
from ..processing.plain_text import counted
from ..processing.progress import progress
from ..processing.samples import scale_for
from .class_matching import check_classes
from .stored_reading import reading_for, reading_of_run

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from transformers import BaseImageProcessor, PreTrainedModel

CALIBRATED = 32  # images
SCORED = 200
REPEATED = 10  # runs of each file for the time


class LabeledInputs:
    """Images of a data set as inputs of a file, with their masks: some calibrate it, the others score it.

    Both kinds are evenly spaced. If there are too few images, all score it, and `shared` says so.

    Args:
        run: Name of the model, as given.
        source: The data set.
        model: The segmenter.
        processor: Its image processor.
        with_processing: Whether the file has the processing inside.
    """

    def __init__(
        self,
        run: str,
        source: str,
        model: "PreTrainedModel",
        processor: "BaseImageProcessor",
        with_processing: bool,
    ) -> None:
        reading = reading_for(reading_of_run(run), run, model, processor)
        self.data = open_data(with_split(source, "val"), **reading)
        check_classes(model, self.data)
        self.processor, self.with_processing = processor, with_processing
        every = range(len(self.data))
        self.calibrating = spread(every, CALIBRATED)
        rest = [index for index in every if index not in self.calibrating]
        self.scoring = spread(rest if len(rest) >= CALIBRATED else every, SCORED)
        self.shared = "" if len(rest) >= CALIBRATED else ", those that calibrate among them: the data has few"

    def samples(self) -> list[np.ndarray]:
        """The inputs that calibrate."""
        return [self.input(index) for index in self.calibrating]

    def scored(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields an input and its mask (H, W)."""
        for index in progress(self.scoring, desc="scoring", unit="image"):
            yield self.input(index), self.data[index]["mask"]

    def input(self, index: int) -> np.ndarray:
        """An image of the data set -> (1, C, H, W) float32, or (1, H, W, C) uint8 with the processing inside."""
        sample = self.data[index]
        options = scale_for(self.processor, sample)
        if self.with_processing:
            options |= {"do_rescale": False, "do_normalize": False}
        (pixels,) = Inference().inputs(self.processor, sample["image"], **options)
        if not self.with_processing:
            return pixels.numpy()
        return pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


def spread(indices: Sequence[int], count: int) -> list[int]:
    """At most `count` of the indices, evenly spaced."""
    count = min(count, len(indices))
    return [indices[number * len(indices) // count] for number in range(count)]


def compared(plain: Path, quantized: Path, labeled: LabeledInputs) -> str:
    """Returns size, time and mIoU of both files, for people."""
    sessions = open_session(plain), open_session(quantized)
    sizes = [path.stat().st_size / 1e6 for path in (plain, quantized)]
    ratio, image = time_ratio(*sessions, labeled.input(labeled.calibrating[0]))
    scores = mean_ious(sessions, labeled)
    return (
        f"size {sizes[0]:.1f} -> {sizes[1]:.1f} MB; time {ratio:.2f} of the float file's on this machine (one image of "
        f"{image[0]} x {image[1]}); mIoU {percent(scores[0])} -> {percent(scores[1])} % on "
        f"{counted(len(labeled.scoring), 'image', 'images')} of the data{labeled.shared}"
    )


def time_ratio(
    plain: "InferenceSession", quantized: "InferenceSession", sample: np.ndarray
) -> tuple[float, tuple[int, int]]:
    """The median ratio of the times for one input, runs of both in turn, and the size of the image."""
    height, width = sample.shape[1:3] if sample.dtype == np.uint8 else sample.shape[2:]
    ratios = []
    for _ in range(REPEATED + 1):
        times = []
        for session in (plain, quantized):
            started = time.perf_counter()
            session.run(None, {session.get_inputs()[0].name: sample})
            times.append(time.perf_counter() - started)
        ratios.append(times[1] / times[0])
    return median(ratios[1:]), (height, width)  # the first run allocates


def mean_ious(sessions: tuple["InferenceSession", ...], labeled: LabeledInputs) -> list[float]:
    """The mIoU of each file."""
    data = labeled.data
    matrices = [ConfusionMatrix(len(data.classes), data.ignore_index) for _ in sessions]
    for sample, mask in labeled.scored():
        for session, matrix in zip(sessions, matrices, strict=True):
            (result,) = session.run(None, {session.get_inputs()[0].name: sample})
            matrix.update(ids_like(torch.from_numpy(result), mask), torch.as_tensor(mask))
    return [matrix.compute()["mean_iou"] for matrix in matrices]


def ids_like(result: torch.Tensor, mask: np.ndarray) -> torch.Tensor:
    """Logits (1, K, h, w) or ids (1, H, W) -> ids of the size of the mask."""
    if result.ndim == 4:
        return F.interpolate(result, size=mask.shape, mode="bilinear", align_corners=False)[0].argmax(0)
    return F.interpolate(result[None].float(), size=mask.shape, mode="nearest")[0, 0].long()
