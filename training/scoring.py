"""Scores of segmenters on whole images, for `contextseg-evaluate` and for the validation during training.

Predictions are compared with masks at the size of the mask, whatever the input size of the model.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Dataset
from transformers import BaseImageProcessor, PreTrainedModel

from ..processing.boundary_metrics import BoundaryScore
from ..processing.data.batches import WholeImages, evaluation_loader
from ..processing.data.unreadable import UnreadableImages
from ..processing.inference import Inference
from ..processing.metrics import ConfusionMatrix
from .sharing import wait_for_all

if TYPE_CHECKING:
    from .validation_pictures import ValidationPictures


def whole_images(
    data: Dataset,
    processor: BaseImageProcessor,
    inference: Inference,
    accelerator: Accelerator,
    workers: int | None,
    *,
    pictures: int = 0,
) -> DataLoader:
    """Returns a loader of this process's share of `data`, with images preprocessed for `inference`.

    Up to `pictures` samples of the main process, evenly spaced, also have a small picture. A sample that raises
    ImageReadError is replaced by its message, see `UnreadableImages`.
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
    metrics: Sequence[ConfusionMatrix | BoundaryScore],
    inference: Inference,
    *,
    pictures: "ValidationPictures | None" = None,
    on_scored: Callable[[dict[str, Any]], None] = lambda _: None,
    on_error: Callable[[Exception, str], None] | None = None,
) -> None:
    """Predicts `images`, samples of `WholeImages`, and updates each metric and `pictures` with the results.

    `on_scored` is called with each sample that is in the metrics, `on_error` with the error of one that is not, and its
    name; by default, the error is raised.
    """
    was_training = model.training
    model.eval()
    for sample in images:
        before = [metric.counts for metric in metrics]
        try:
            count_one(model, sample, metrics, inference, pictures)
        except Exception as error:
            if on_error is None:
                raise
            for metric, counts in zip(metrics, before, strict=True):
                metric.counts = counts
            on_error(error, sample["name"])
        else:
            on_scored(sample)
    model.train(was_training)


def count_one(
    model: PreTrainedModel,
    sample: dict[str, Any],
    metrics: Sequence[ConfusionMatrix | BoundaryScore],
    inference: Inference,
    pictures: "ValidationPictures | None",
) -> None:
    """Predicts one sample of `count`, and updates each metric and `pictures`."""
    if "streamed" in sample:
        sample["streamed"].score(model, inference, metrics)
        return
    labels = sample["labels"].to(model.device)
    prediction = inference.mask(model, sample["inputs"], labels.shape)
    for metric in metrics:
        metric.update(prediction, labels)
    if pictures is not None:
        pictures.add(sample, prediction)


def not_scored(failed: UnreadableImages, accelerator: Accelerator) -> list[str]:
    """Waits for all processes, and returns their messages about images, in alphabetical order."""
    wait_for_all(accelerator)
    return sorted(gather_object(list(failed.times.elements())))


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
    count(model, images, [confusion], inference, pictures=pictures)
    return confusion.reduced(accelerator.reduce).compute(class_names)
