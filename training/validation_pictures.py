"""What trackers show besides curves: scores per class, and validation images beside truth and prediction.

Legend: H, W image axes.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from ..processing.overlays import image_grid, mask_image
from ..processing.palettes import class_colors
from ..processing.plain_text import one_line

PICTURES = 4  # validation images that are shown
TITLES = ("image", "truth", "prediction")
LEGEND_CLASSES = 24


class ValidationPictures:
    """Collects small pictures of the samples that bring one.

    Args:
        names: Class names by id.
        palette: Colors of the classes; default ones for those that it lacks.
        ignore_index: Label of pixels that do not count; they are black.
    """

    def __init__(
        self, names: Sequence[str], palette: Sequence[Sequence[int]] | None, ignore_index: int
    ) -> None:
        self.names, self.palette = names, class_colors(palette, len(names))
        self.ignore_index = ignore_index
        self.rows: list[list[Image.Image]] = []
        self.counts = np.zeros(len(names), dtype=np.int64)

    def add(self, sample: Mapping[str, Any], prediction: Tensor) -> None:
        """Adds a sample of `WholeImages` if it has a picture, and its predicted ids (H, W)."""
        if sample.get("picture") is None:
            return
        photo = Image.fromarray(np.asarray(sample["picture"]))
        masks = [shrunk(ids.cpu().numpy(), photo.size) for ids in (sample["labels"], prediction)]
        self.rows.append([photo, *(mask_image(mask, self.palette, self.ignore_index) for mask in masks)])
        for mask in masks:
            self.counts += np.bincount(mask[mask != self.ignore_index], minlength=len(self.names))

    def image(self) -> Image.Image | None:
        """One row per sample: image, truth and prediction; and a legend. None without samples."""
        if not self.rows:
            return None
        frequent = self.counts.argsort()[::-1][:LEGEND_CLASSES]
        legend = {one_line(self.names[i]): self.palette[i] for i in frequent.tolist() if self.counts[i]}
        return image_grid(self.rows, TITLES, legend, cell_width=240)


def shrunk(ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) ids -> the ids at the nearest pixels of a grid of `size` (width, height)."""
    rows = (np.arange(size[1]) * ids.shape[0]) // size[1]
    columns = (np.arange(size[0]) * ids.shape[1]) // size[0]
    return ids[np.ix_(rows, columns)].astype(np.int64)


def log_details(
    accelerator: Accelerator, pictures: ValidationPictures | None, score: str, scores: Mapping[str, Any]
) -> None:
    """Logs a score of every class that has one, and pictures, to the trackers of a run.

    Args:
        accelerator: Has the trackers.
        pictures: Pictures of the evaluation, or None.
        score: Name of the score of a class, such as "iou".
        scores: Scores of the evaluation, with `step` and `per_class`.
    """
    step, image = scores["step"], pictures and pictures.image()
    values = {f"{score}/{one_line(row['name'])}": row[score] for row in scores["per_class"]}
    accelerator.log({tag: value for tag, value in values.items() if not math.isnan(value)}, step=step)
    if image is None:
        return
    for tracker in accelerator.trackers:
        options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        tracker.log_images({"validation": np.asarray(image)[None]}, step=step, **options)
