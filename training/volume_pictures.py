"""Pictures of a validation on volumes: slices beside truth and prediction.

Legend: D, H, W slices, rows and columns of a volume.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .validation_pictures import ValidationPictures

if TYPE_CHECKING:
    from ..processing.volumes.volume_reading import Volume

VOLUMES, SLICES = 1, 3  # that are shown
DARKEST, BRIGHTEST = 0.5, 99.5  # percentiles of the slices


class VolumePictures(ValidationPictures):
    """Collects three slices of the first case; the arguments are those of `ValidationPictures`."""

    def add_volume(self, volume: "Volume", labels: np.ndarray, prediction: Tensor | np.ndarray) -> None:
        """Adds slices of a case, unless there are enough.

        Args:
            volume: The case.
            labels: Class ids (D, H, W) of the truth.
            prediction: Predicted class ids (D, H, W).
        """
        if len(self.rows) >= VOLUMES * SLICES:
            return
        labels, prediction = np.asarray(labels), np.asarray(prediction)
        places = shown_slices((labels != 0) & (labels != self.ignore_index))
        gray = np.stack([np.asarray(volume.values[0, place], dtype=np.float32) for place in places])
        low, high = np.percentile(gray, [DARKEST, BRIGHTEST])
        gray = ((gray - low) / max(high - low, 1e-6)).clip(0, 1)
        for place, picture in zip(places, gray, strict=True):
            sample = {
                "picture": (255 * picture).astype(np.uint8)[..., None].repeat(3, axis=-1),
                "labels": torch.as_tensor(labels[place].astype(np.int64)),
            }
            self.add(sample, torch.as_tensor(prediction[place].astype(np.int64)))


def shown_slices(labeled: np.ndarray) -> list[int]:
    """(D, H, W) labeled voxels -> slices that divide the labeled ones into equal parts; without any, all of them."""
    candidates = np.flatnonzero(labeled.any(axis=(1, 2)))
    if not len(candidates):
        candidates = np.arange(len(labeled))
    places = (np.arange(SLICES) + 0.5) * len(candidates) / SLICES
    return candidates[places.astype(int)].tolist()
