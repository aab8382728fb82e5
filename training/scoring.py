"""Scores of segmenters on whole images, for `contextseg-evaluate` and for the validation during training.

Predictions are compared with masks at the size of the mask, whatever the input size of the model.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset
from transformers import BaseImageProcessor, PreTrainedModel

from ..processing.boundary_metrics import BoundaryF, BoundaryIoU
from ..processing.data.batches import WholeImages, evaluation_loader
from ..processing.inference import Inference
from ..processing.metrics import ConfusionMatrix


def whole_images(
    data: Dataset,
    processor: BaseImageProcessor,
    inference: Inference,
    accelerator: Accelerator,
    workers: int | None,
) -> DataLoader:
    """Returns a loader of this process's share of `data`, with images preprocessed for `inference`."""
    return evaluation_loader(
        WholeImages(data, processor, inference),
        workers=workers,
        pin_memory=accelerator.device.type == "cuda",
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )


def count(
    model: PreTrainedModel,
    images: Iterable[dict[str, Any]],
    metrics: Sequence[ConfusionMatrix | BoundaryIoU | BoundaryF],
    inference: Inference,
) -> None:
    """Predicts `images`, samples of `WholeImages`, and updates each metric with predictions and labels."""
    was_training = model.training
    model.eval()
    for sample in images:
        labels = sample["labels"].to(model.device)
        prediction = inference.mask(model, sample["inputs"], labels.shape)
        for metric in metrics:
            metric.update(prediction, labels)
    model.train(was_training)


def score(
    model: PreTrainedModel,
    images: Iterable[dict[str, Any]],
    accelerator: Accelerator,
    *,
    class_names: list[str],
    ignore_index: int,
    inference: Inference,
) -> dict[str, Any]:
    """Scores a segmenter on the images of all processes.

    Args:
        model: The segmenter; it is left in the mode (training or evaluation) in which it was passed.
        images: This process's samples of `WholeImages`.
        accelerator: Sums the confusion matrix over processes.
        class_names: Class names by id.
        ignore_index: Label of pixels that do not count.
        inference: How images are predicted.

    Returns:
        The scores of `ConfusionMatrix.compute`.
    """
    confusion = ConfusionMatrix(len(class_names), ignore_index, device=accelerator.device)
    count(model, images, [confusion], inference)
    return confusion.reduced(accelerator.reduce).compute(class_names)
