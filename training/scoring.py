"""Scores of segmenters on whole images, for `contextseg-evaluate` and for the validation during training.

Predictions are compared with masks at the size of the mask, whatever the input size of the model.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset
from transformers import BaseImageProcessor, PreTrainedModel

from ..processing.data.batches import WholeImages, evaluation_loader
from ..processing.inference import Inference
from ..processing.metrics import BoundaryIoU, ConfusionMatrix

if TYPE_CHECKING:
    from .validation_pictures import ValidationPictures


def whole_images(
    data: Dataset,
    processor: BaseImageProcessor,
    inference: Inference,
    accelerator: Accelerator,
    workers: int | None,
    pictures: int = 0,
) -> DataLoader:
    """Returns a loader of this process's share of `data`, with images preprocessed for `inference`.

    Up to `pictures` samples of the main process, evenly spaced, also have a small picture.
    """
    world, length = accelerator.num_processes, len(data)
    shown = {number * length // pictures // world * world for number in range(pictures)}
    return evaluation_loader(
        WholeImages(data, processor, inference, shown),
        workers=workers,
        pin_memory=accelerator.device.type == "cuda",
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )


def count(
    model: PreTrainedModel,
    images: Iterable[dict[str, Any]],
    metrics: Sequence[ConfusionMatrix | BoundaryIoU],
    inference: Inference,
    pictures: "ValidationPictures | None" = None,
) -> None:
    """Predicts `images`, samples of `WholeImages`, and updates each metric and `pictures` with the results."""
    was_training = model.training
    model.eval()
    for sample in images:
        labels = sample["labels"].to(model.device)
        prediction = inference.mask(model, sample["inputs"], labels.shape)
        for metric in metrics:
            metric.update(prediction, labels)
        if pictures is not None:
            pictures.add(sample, prediction)
    model.train(was_training)


def score(
    model: PreTrainedModel,
    images: Iterable[dict[str, Any]],
    accelerator: Accelerator,
    *,
    class_names: list[str],
    ignore_index: int,
    inference: Inference,
    pictures: "ValidationPictures | None" = None,
) -> dict[str, Any]:
    """Scores a segmenter on the images of all processes.

    Args:
        model: The segmenter; it is left in the mode (training or evaluation) in which it was passed.
        images: This process's samples of `WholeImages`.
        accelerator: Sums the confusion matrix over processes.
        class_names: Class names by id.
        ignore_index: Label of pixels that do not count.
        inference: How images are predicted.
        pictures: Collects the samples to show. Default: none.

    Returns:
        The scores of `ConfusionMatrix.compute`.
    """
    confusion = ConfusionMatrix(len(class_names), ignore_index, device=accelerator.device)
    count(model, images, [confusion], inference, pictures)
    return confusion.reduced(accelerator.reduce).compute(class_names)


def add_boundaries(scores: dict[str, Any], boundaries: dict[str, Any]) -> None:
    """Adds the result of `BoundaryIoU.compute` to the other scores, in place."""
    scores["boundary_iou"] = boundaries["boundary_iou"]
    for row, value in zip(scores["per_class"], boundaries["per_class_boundary_iou"], strict=True):
        row["boundary_iou"] = value
