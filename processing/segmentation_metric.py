"""`SegmentationMetric`: our scores as an `evaluate.Metric` that needs neither network nor cache files.

In a file of its own because importing `evaluate` takes seconds.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Features, Value
from datasets import Sequence as ListOf
from evaluate import Metric, MetricInfo
from torch import Tensor

from .boundary_metrics import BoundaryF, BoundaryIoU, add_boundaries
from .metrics import ConfusionMatrix

CITATION = """\
@article{long2015fully, title={Fully convolutional networks for semantic segmentation},
author={Long, Jonathan and Shelhamer, Evan and Darrell, Trevor}, journal={CVPR}, year={2015}}"""


class SegmentationMetric(Metric):
    """Mean IoU, Dice, accuracy, precision and boundary scores as an `evaluate.Metric`.

    Batches are added to a confusion matrix, where `evaluate` writes all pixels to files. Memory and disk do
    not grow with the dataset, and images may differ in size.

    Args:
        num_labels: Number of classes.
        ignore_index: Label of pixels that are not counted. Default: 255, or 65535 where 255 is a class.
        names: One name per class, for the scores of each class.
        boundaries: Whether to compute boundary IoU and boundary F too, which takes longer. Default: False.
        **options: Options of `evaluate.Metric`.

    Raises:
        ValueError: If `num_process` is above 1.
    """

    def __init__(
        self,
        num_labels: int,
        ignore_index: int | None = None,
        names: Sequence[str] | None = None,
        *,
        boundaries: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if self.num_process > 1:
            raise ValueError(
                f"num_process={self.num_process}, but SegmentationMetric counts in one process. "
                "Sum `confusion` over processes with ConfusionMatrix.reduced(accelerator.reduce), "
                "or gather predictions first."
            )
        self.names = names
        self.settings = (num_labels, ignore_index)
        self.kinds = (BoundaryIoU, BoundaryF) if boundaries else ()
        self.reset()

    def reset(self) -> None:
        """Starts again from zero."""
        self.confusion = ConfusionMatrix(*self.settings)
        self.boundaries = [kind(*self.settings) for kind in self.kinds]

    def _info(self) -> MetricInfo:
        ids = ListOf(ListOf(Value("int64")))
        return MetricInfo(
            description="Mean IoU, Dice and accuracy of semantic segmentation.",
            citation=CITATION,
            inputs_description="predictions, references: class ids (H, W) of each image.",
            features=Features({"predictions": ids, "references": ids}),
        )

    def add(self, *, prediction: Tensor | np.ndarray, reference: Tensor | np.ndarray) -> None:
        """Adds one image.

        Args:
            prediction: Predicted class ids (H, W).
            reference: True class ids (H, W).

        Raises:
            ValueError: If shapes differ, a type is not an integer, or an id is neither a class nor ignored.
        """
        for metric in (self.confusion, *self.boundaries):
            metric.update(np.asarray(prediction), np.asarray(reference))

    def add_batch(self, *, predictions: Sequence, references: Sequence) -> None:
        """Adds a batch of images.

        Args:
            predictions: Predicted class ids (B, H, W), or a list of (H, W) of different sizes.
            references: True class ids in the same form.

        Raises:
            ValueError: If the numbers of images differ, or `add` rejects one.
        """
        if len(predictions) != len(references):
            raise ValueError(
                f"got {len(predictions)} predictions and {len(references)} references. Give one reference for each image."
            )
        for prediction, reference in zip(predictions, references, strict=True):
            self.add(prediction=prediction, reference=reference)

    def compute(
        self, *, predictions: Sequence | None = None, references: Sequence | None = None
    ) -> dict[str, Any]:
        """Computes the scores of all images added since the last call.

        Args:
            predictions: Further predicted class ids, as in `add_batch`.
            references: Their true class ids.

        Returns:
            The scores of `ConfusionMatrix.compute`, and with `boundaries` those of `BoundaryIoU` and
            `BoundaryF`.
        """
        if predictions is not None:
            self.add_batch(predictions=predictions, references=references)
        scores = self.confusion.compute(self.names)
        add_boundaries(scores, *(metric.compute() for metric in self.boundaries))
        self.reset()
        return scores
