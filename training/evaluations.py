"""Evaluations of trained models by command: of segmenters, classifiers and detectors."""

import time
from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader, Dataset
from transformers import BaseImageProcessor, PreTrainedModel

from ..processing.boundary_metrics import BoundaryF, BoundaryIoU, add_boundaries
from ..processing.data.datasets import open_data
from ..processing.data.labeled_images import open_labeled_images
from ..processing.data.official_layouts import with_split
from ..processing.data.unreadable import UnreadableImages
from ..processing.failures import telling
from ..processing.image_windows import check_image_windows
from ..processing.metrics import ConfusionMatrix, percent
from ..processing.plain_text import markdown_table, markdown_text
from ..processing.progress import progress
from ..processing.rasters.part_files import locks_released
from .class_matching import check_classes, match_classes
from .evaluation_files import facts_of, report, write_scores
from .evaluation_options import EvaluateArguments
from .inference_options import VOLUMES
from .models import CLASSIFIER, open_model
from .processes import quiet_unless_first
from .scoring import not_scored
from .scoring_run import ScoringRun
from .sharing import name_of, open_accelerator, said_once, tell_and_leave
from .stored_reading import reading_for, rgb_reading
from .volume_evaluation import evaluate_volumes

PROGRAM = "contextseg-evaluate"


def evaluate_segmenter(arguments: EvaluateArguments) -> dict[str, Any]:
    """Scores a segmenter, and writes the results to the output folder.

    Returns:
        `mean_iou` and the other scores of `ConfusionMatrix.compute`, and boundary IoU and boundary F. If images
        could not be scored, `not_scored` lists them with the reasons, and the scores are those of the others.

    Raises:
        ValueError: If model or data do not exist or do not fit together, or no image can be scored.
    """
    accelerator = open_accelerator(arguments.cpu)
    quiet_unless_first(accelerator)
    with said_once(accelerator, PROGRAM, arguments.traceback):
        inference = arguments.inference()
        model, processor, source = open_model(arguments.model)
        check_image_windows(inference, model)
        reading = reading_for(arguments, arguments.model, model, processor)
        data = open_data(with_split(arguments.data, "val"), **reading)
        names = check_classes(model, data)
    started = time.perf_counter()
    near = {"pixels": arguments.boundary_band}
    metrics = [
        ConfusionMatrix(len(names), data.ignore_index),
        *(kind(len(names), data.ignore_index, **near) for kind in (BoundaryIoU, BoundaryF)),
    ]
    run = ScoringRun(arguments, model, processor, data, metrics, accelerator)
    with locks_released():
        failures = run.score()
    confusion, *boundaries = (
        metric.reduced(lambda counts: accelerator.reduce(counts.to(accelerator.device))) for metric in metrics
    )
    scores = confusion.compute(names)
    add_boundaries(scores, *(metric.compute() for metric in boundaries))
    with said_once(accelerator, PROGRAM, arguments.traceback):
        facts = {"model": source, **facts_of(arguments, scores, failures, len(data), started)}
    facts["protocol"] = f"{inference}, one image at a time"
    facts["boundaries"] = boundaries_in_words(arguments.boundary_band)
    if accelerator.is_main_process:
        report(scores, facts, confusion, arguments.output_folder())
        run.records.remove()
    tell_and_leave(accelerator, failures)
    return scores


def boundaries_in_words(pixels: int | None) -> str:
    """Says within which distance boundaries are scored."""
    if pixels is not None:
        return f"within {pixels} pixel{'s' * (pixels > 1)} of class boundaries"
    return "boundary IoU within 2 % of the image diagonal, boundary F within 0.75 %"


def evaluate_classifier(arguments: EvaluateArguments) -> dict[str, Any]:
    """Scores an image classifier, and writes the results to the output folder.

    Returns:
        The scores of `score_classes`; `not_scored` as from `evaluate_segmenter`.

    Raises:
        ValueError: If model or data do not exist or do not fit together, or no image can be scored.
    """
    from .class_scores import score_classes
    from .classification import central_crops

    with said_once(open_accelerator(arguments.cpu), PROGRAM, arguments.traceback):
        model, processor, source = open_model(arguments.model, CLASSIFIER)
        data = open_labeled_images(arguments.data, **rgb_reading(arguments, arguments.model, model))
        match_classes(model, data)
    scores, facts = scored(arguments, model, processor, data, central_crops, score_classes)
    rows = [
        [markdown_text(row["name"]), percent(row["top_1"]), f"{row['images']:,}"]
        for row in scores["per_class"]
    ]
    means = f"top-1 accuracy {percent(scores['top_1'])} %"
    if len(rows) > 5:  # else every image counts
        means += f", top-5 accuracy {percent(scores['top_5'])} %"
    table = markdown_table(["class", "top-1 %", "images"], rows)
    return written(arguments, scores, {"model": source, **facts}, table, means)


def evaluate_detector(arguments: EvaluateArguments) -> dict[str, Any]:
    """Scores a detector, and writes the results to the output folder.

    Returns:
        The scores of `score_objects`; `not_scored` as from `evaluate_segmenter`.

    Raises:
        ValueError: If model or data do not exist or do not fit together, or no image can be scored.
    """
    from ..processing.data.coco import open_coco
    from .coco_scores import score_objects
    from .detection import DETECTOR, images_with_objects

    with said_once(open_accelerator(arguments.cpu), PROGRAM, arguments.traceback):
        model, processor, source = open_model(arguments.model, DETECTOR)
        data = open_coco(arguments.data, "val", **rgb_reading(arguments, arguments.model, model))
        match_classes(model, data)
    scores, facts = scored(arguments, model, processor, data, images_with_objects, score_objects)
    rows = [
        [markdown_text(row["name"]), percent(row["box_ap"]), percent(row["mask_ap"]), f"{row['support']:,}"]
        for row in scores["per_class"]
    ]
    means = f"box AP {percent(scores['box_ap'])} %, mask AP {percent(scores['mask_ap'])} %"
    table = markdown_table(["class", "box AP %", "mask AP %", "objects"], rows)
    return written(arguments, scores, {"model": source, **facts}, table, means)


def scored(
    arguments: EvaluateArguments,
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    data: Dataset,
    loader: Callable[..., DataLoader],
    score: Callable[..., dict[str, Any]],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scores a model on labeled images or images with objects.

    Args:
        arguments: Options of the command.
        model: The model.
        processor: Its image processor.
        data: The data; its classes are numbered as the model's.
        loader: `central_crops` or `images_with_objects`.
        score: `score_classes` or `score_objects`.

    Returns:
        The scores, with `not_scored` if images could not be scored, and what the files say of the evaluation.
    """
    accelerator = open_accelerator(arguments.cpu)
    quiet_unless_first(accelerator)
    started = time.perf_counter()
    loaded = loader(data, processor, accelerator, arguments.workers, (Exception,))
    images = progress(loaded, unit="batch")
    failed = UnreadableImages(skip=True, quiet=True)
    with telling(lambda: f"{name_of(accelerator)}No results were written."):
        scores = score(model.to(accelerator.device), failed.filter(images), accelerator)
        failures = not_scored(failed, accelerator)
    with said_once(accelerator, PROGRAM, arguments.traceback):
        return scores, facts_of(arguments, scores, failures, len(data), started)


def written(
    arguments: EvaluateArguments, scores: dict[str, Any], facts: dict[str, Any], table: str, means: str
) -> dict[str, Any]:
    """Prints and writes the scores in the main process, and returns them."""
    accelerator = open_accelerator(arguments.cpu)
    if accelerator.is_main_process:
        write_scores(scores, facts, table, means, arguments.output_folder())
    tell_and_leave(accelerator, scores.get("not_scored", []))
    return scores


# What a model does -> its evaluation.
EVALUATIONS = {
    "segmentation": evaluate_segmenter,
    VOLUMES: evaluate_volumes,
    "classification": evaluate_classifier,
    "detection": evaluate_detector,
}
