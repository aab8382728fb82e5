"""Scores of segmenters on whole images, for `contextseg-evaluate` and for the validation during training.

Predictions are compared with masks at the size of the mask, whatever the input size of the model.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Dataset
from transformers import BaseImageProcessor, PreTrainedModel

from ..processing.boundary_metrics import BoundaryF, BoundaryIoU
from ..processing.data.batches import WholeImages, evaluation_loader
from ..processing.data.unreadable import UNREADABLE, UnreadableImages
from ..processing.failures import reason, telling
from ..processing.image_reading import ImageReadError
from ..processing.inference import Inference
from ..processing.metrics import ConfusionMatrix
from ..processing.progress import progress
from .sharing import name_of, wait_for_all

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
    streaming: Mapping[str, Any] | None = None,
    errors: tuple[type[Exception], ...] = (ImageReadError,),
) -> DataLoader:
    """Returns a loader of this process's share of `data`, with images preprocessed for `inference`.

    Up to `pictures` samples of the main process, evenly spaced, also have a small picture. A sample that raises
    one of `errors` is replaced by its message, see `UnreadableImages`. `streaming` is as of `WholeImages`.
    """
    world, length = accelerator.num_processes, len(data)
    shown = {number * length // pictures // world * world for number in range(pictures)}
    return evaluation_loader(
        WholeImages(data, processor, inference, shown, streaming),
        workers=workers,
        pin_memory=accelerator.device.type == "cuda",
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        errors=errors,
    )


def count(
    model: PreTrainedModel,
    images: Iterable[dict[str, Any]],
    metrics: Sequence[ConfusionMatrix | BoundaryIoU | BoundaryF],
    inference: Inference,
    *,
    pictures: "ValidationPictures | None" = None,
    on_error: Callable[[Exception, str], None] | None = None,
) -> None:
    """Predicts `images`, samples of `WholeImages`, and updates each metric and `pictures` with the results.

    `on_error` is called with the error of an image and its name; by default, the error is raised.
    """
    was_training = model.training
    model.eval()
    for sample in images:
        try:
            if "streamed" in sample:
                sample["streamed"].score(model, inference, metrics)
                continue
            labels = sample["labels"].to(model.device)
            prediction = inference.mask(model, sample["inputs"], labels.shape)
            for metric in metrics:
                metric.update(prediction, labels)
            if pictures is not None:
                pictures.add(sample, prediction)
        except Exception as error:
            if on_error is None:
                raise
            on_error(error, sample["name"])
    model.train(was_training)


def count_or_name(
    model: PreTrainedModel,
    images: DataLoader,
    metrics: Sequence[ConfusionMatrix | BoundaryIoU],
    inference: Inference,
    accelerator: Accelerator,
) -> list[str]:
    """Updates the metrics with the images that can be scored, behind a progress bar.

    Args:
        model: The segmenter, on the accelerator's device.
        images: Loader from `whole_images` with `errors`.
        metrics: Updated with the images of this process.
        inference: How images are predicted.
        accelerator: Gathers the messages of all processes.

    Returns:
        The images of all processes that could not be scored, and why, in alphabetical order.
    """
    failed = UnreadableImages(skip=True, quiet=True)

    def note(error: Exception, name: str) -> None:
        failed.check({UNREADABLE: [reason(error, f"'{name}'")]})

    shown = progress(images, unit="image")
    who = name_of(accelerator)
    with telling(lambda: f"{who}{shown.n} of {len(images)} images were scored; no results were written."):
        count(model, failed.filter(shown), metrics, inference, on_error=note)
        return not_scored(failed, accelerator)


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
