"""Classifies image files: one table with the most probable classes of each."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import BaseImageProcessor, PreTrainedModel

from .atomic_write import atomic_write
from .image_reading import read_image
from .plain_text import csv_text
from .prediction_files import FilePredictor, Job

MOST_CLASSES = 5


class ClassPredictor(FilePredictor):
    """Classifies image files with one model, and writes one table for all of them.

    A row of the table is an image file and its most probable classes, each with its probability.

    Args:
        model: A classifier in evaluation mode.
        processor: Its image processor.
        folder: Folder of the table, which is `predictions.csv`.
        reading: Arguments of `read_image` for the files. Default: none.
    """

    done = "classified"

    def __init__(
        self,
        model: PreTrainedModel,
        processor: BaseImageProcessor,
        folder: Path,
        reading: Mapping[str, Any] | None = None,
    ) -> None:
        self.reading = reading or {}
        self.model, self.processor, self.table = model, processor, folder / "predictions.csv"
        self.names = [model.config.id2label[index] for index in range(model.config.num_labels)]
        self.rows: list[list[str]] = []

    @torch.inference_mode()
    def run(self, job: Job) -> None:
        """Classifies one image file. Raises ImageReadError if it cannot be read."""
        image = read_image(job.source, **self.reading)
        inputs = self.processor(image, return_tensors="pt").to(self.model.device)
        probabilities = self.model(**inputs).logits[0].float().softmax(-1)
        best = probabilities.topk(min(MOST_CLASSES, len(self.names)))
        row = [csv_text(str(job.source))]
        for index, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True):
            row += [csv_text(self.names[index]), f"{probability:.4f}"]
        self.rows.append(row)

    def close(self) -> None:
        """Writes the table of all images classified so far, if there are any."""
        if not self.rows:
            return
        ranks = range(1, min(MOST_CLASSES, len(self.names)) + 1)
        header = ["image", *(column for rank in ranks for column in (f"class_{rank}", f"probability_{rank}"))]
        self.table.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.table) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *self.rows])
