"""Prediction of whole images and its scores: what `contextseg-evaluate` reports and training chooses its best by.

Legend: B batch, K classes, H, W image axes, h, w axes of the logits.
"""

from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import BaseImageProcessor
from transformers.modeling_outputs import SemanticSegmenterOutput

from ...processing.metrics import BoundaryIoU, ConfusionMatrix
from .batches import WholeImages, evaluation_loader


def whole_images(
    data: Dataset, processor: BaseImageProcessor, accelerator: Accelerator, workers: int | None
) -> DataLoader:
    """This process's share of the images of `data`, for `score`."""
    return evaluation_loader(
        WholeImages(data, processor),
        workers=workers,
        pin_memory=accelerator.device.type == "cuda",
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )


@torch.inference_mode()
def score(
    model: nn.Module,
    processor: BaseImageProcessor,
    images: Iterable[dict[str, Any]],
    accelerator: Accelerator,
    *,
    class_names: list[str],
    ignore_index: int,
    flip: bool = False,
    with_boundaries: bool = False,
) -> dict[str, Any]:
    """Scores over `images` (as `WholeImages` gives them) of all processes; every mask at its size on the disk."""
    was_training = model.training
    model.eval()
    confusion = ConfusionMatrix(len(class_names), ignore_index, device=accelerator.device)
    boundaries = BoundaryIoU(len(class_names), ignore_index) if with_boundaries else None
    for sample in images:
        inputs = {name: value for name, value in sample.items() if name not in ("labels", "name")}
        labels = sample["labels"].to(accelerator.device)
        prediction = segment(
            model, processor, send_to_device(inputs, accelerator.device), labels.shape, flip=flip
        )
        for metric in (confusion, boundaries) if boundaries else (confusion,):
            metric.update(prediction, labels)
    model.train(was_training)
    scores = confusion.reduced(accelerator.reduce).compute(class_names)
    if boundaries:
        add_boundaries(scores, boundaries.reduced(accelerator.reduce).compute())
    return scores


def segment(
    model: nn.Module,
    processor: BaseImageProcessor,
    inputs: dict[str, Tensor],
    size: tuple[int, int],
    *,
    flip: bool,
) -> Tensor:
    """Inputs of one image -> (H, W) class ids at `size`."""
    outputs = model(**inputs)
    if flip:
        outputs = averaged_with_its_mirror(model, inputs, outputs)
    return processor.post_process_semantic_segmentation(outputs, target_sizes=[tuple(size)])[0]


def averaged_with_its_mirror(
    model: nn.Module, inputs: dict[str, Tensor], outputs: SemanticSegmenterOutput
) -> SemanticSegmenterOutput:
    """Class probabilities in place of logits, the mean over the image and its left-right mirror: (B, K, h, w)."""
    mirrored = model(**{name: value.flip(-1) for name, value in inputs.items()})
    probabilities = outputs.logits.softmax(1) + mirrored.logits.flip(-1).softmax(1)
    return SemanticSegmenterOutput(logits=probabilities / 2)


def add_boundaries(scores: dict[str, Any], boundaries: dict[str, Any]) -> None:
    scores["boundary_iou"] = boundaries["boundary_iou"]
    for row, value in zip(scores["per_class"], boundaries["per_class_boundary_iou"], strict=True):
        row["boundary_iou"] = value
