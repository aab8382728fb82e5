"""Scores of whole images: what `contextseg-evaluate` reports and training chooses its best by.

Every mask is compared at its own size, whatever the model was shown.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset
from transformers import BaseImageProcessor, PreTrainedModel

from ..processing.data.batches import WholeImages, evaluation_loader
from ..processing.inference import Inference
from ..processing.metrics import BoundaryIoU, ConfusionMatrix


def whole_images(
    data: Dataset,
    processor: BaseImageProcessor,
    inference: Inference,
    accelerator: Accelerator,
    workers: int | None,
) -> DataLoader:
    """This process's share of the images of `data`, as `inference` takes them."""
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
    metrics: Sequence[ConfusionMatrix | BoundaryIoU],
    inference: Inference,
) -> None:
    """Adds what the model makes of `images`, samples of `WholeImages`, to each of the metrics."""
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
    """Scores over the images of all processes."""
    confusion = ConfusionMatrix(len(class_names), ignore_index, device=accelerator.device)
    count(model, images, [confusion], inference)
    return confusion.reduced(accelerator.reduce).compute(class_names)


def add_boundaries(scores: dict[str, Any], boundaries: dict[str, Any]) -> None:
    """Puts what `BoundaryIoU.compute` gives next to the other scores."""
    scores["boundary_iou"] = boundaries["boundary_iou"]
    for row, value in zip(scores["per_class"], boundaries["per_class_boundary_iou"], strict=True):
        row["boundary_iou"] = value
