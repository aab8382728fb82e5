"""`SegmentationMetric`: our scores as an `evaluate.Metric` that needs neither network nor cache files.

A file of its own because importing `evaluate` takes seconds.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Features, Value
from datasets import Sequence as ListOf
from evaluate import Metric, MetricInfo
from torch import Tensor

from .metrics import ConfusionMatrix

CITATION = """\
@article{long2015fully, title={Fully convolutional networks for semantic segmentation},
author={Long, Jonathan and Shelhamer, Evan and Darrell, Trevor}, journal={CVPR}, year={2015}}"""


class SegmentationMetric(Metric):
    """Mean IoU and its companions over predicted and true class ids.

    Batches go straight into a confusion matrix, in place of `evaluate`'s files of all pixels, so that memory and disk
    do not grow with the data set, and images of one set may differ in size.
    """

    def __init__(
        self, num_labels: int, ignore_index: int = 255, names: Sequence[str] | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        if self.num_process > 1:
            raise ValueError(
                f"num_process={self.num_process}, but SegmentationMetric counts in one process. Sum `confusion` of all "
                "processes with ConfusionMatrix.reduced(accelerator.reduce), or gather predictions first."
            )
        self.names = names
        self.confusion = ConfusionMatrix(num_labels, ignore_index)

    def _info(self) -> MetricInfo:
        ids = ListOf(ListOf(Value("int64")))
        return MetricInfo(
            description="Mean IoU, Dice and accuracy of semantic segmentation.",
            citation=CITATION,
            inputs_description="predictions, references: class ids, (H, W) for each image.",
            features=Features({"predictions": ids, "references": ids}),
        )

    def add(self, *, prediction: Tensor | np.ndarray, reference: Tensor | np.ndarray) -> None:
        """(H, W) and (H, W) class ids of one image."""
        self.confusion.update(np.asarray(prediction), np.asarray(reference))

    def add_batch(self, *, predictions: Sequence, references: Sequence) -> None:
        """(B, H, W) and (B, H, W) class ids, or lists of images of different sizes."""
        for prediction, reference in zip(predictions, references, strict=True):
            self.add(prediction=prediction, reference=reference)

    def compute(
        self, *, predictions: Sequence | None = None, references: Sequence | None = None
    ) -> dict[str, Any]:
        """Scores over everything added since the last call, these last images included."""
        if predictions is not None:
            self.add_batch(predictions=predictions, references=references)
        scores = self.confusion.compute(self.names)
        self.confusion = ConfusionMatrix(self.confusion.num_labels, self.confusion.ignore_index)
        return scores
