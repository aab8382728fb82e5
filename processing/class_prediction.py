"""Classifies image files: one table with the most probable classes of each."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import BaseImageProcessor, BatchFeature, PreTrainedModel

from .image_reading import read_image
from .plain_text import csv_text
from .prediction_files import FilePredictor, Job, part_files, write_part

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

    def load(self, job: Job) -> BatchFeature:
        """Reads and prepares one image file. Raises ImageReadError if it cannot be read."""
        return self.processor(read_image(job.source, **self.reading), return_tensors="pt")

    @torch.inference_mode()
    def predict(self, job: Job, loaded: BatchFeature) -> list[str]:
        """Classifies one image -> its row of the table."""
        probabilities = self.model(**loaded.to(self.model.device)).logits[0].float().softmax(-1)
        best = probabilities.topk(self.num_ranks)
        row = [self.key(job)]
        for index, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True):
            row += [csv_text(self.names[index]), f"{probability:.4f}"]
        return row

    def write(self, job: Job, predicted: list[str]) -> list[str]:  # noqa: ARG002
        """Returns the row: an image has no file of its own."""
        return predicted

    def targets(self, job: Job) -> list[Path]:  # noqa: ARG002
        return [self.table]

    def earlier(self, jobs: Sequence[Job]) -> dict[Job, list[str]]:
        """Returns the jobs that are in the table of an earlier run, with their rows.

        Raises ValueError if the table has other columns.
        """
        rows = {}
        for table in (self.table, *part_files(self.table)):
            if table.is_file():
                with table.open(newline="", encoding="utf-8") as file:
                    header, *found = list(csv.reader(file)) or [[]]
                if header != self.header:
                    raise ValueError(f"{table} has other columns than this model's. Choose another --output.")
                rows |= {row[0]: row for row in found}
        return {job: rows[self.key(job)] for job in jobs if self.key(job) in rows}

    def finish(self, records: Sequence[list[str]], part: int | None = None) -> None:
        """Writes the table, if there are any images."""
        if not records:
            return
        write_part(self.table, part, partial(write_rows, rows=[self.header, *records]))

    def key(self, job: Job) -> str:
        """What the first column says of an image."""
        return csv_text(str(job.source))

    @property
    def num_ranks(self) -> int:
        return min(MOST_CLASSES, len(self.names))

    @property
    def header(self) -> list[str]:
        ranks = range(1, self.num_ranks + 1)
        return ["image", *(column for rank in ranks for column in (f"class_{rank}", f"probability_{rank}"))]


def write_rows(path: Path, rows: Iterable[Sequence[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
