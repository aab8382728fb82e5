"""COCO's scores of boxes and masks: average precision at IoU 0.5 to 0.95, by pycocotools.

Ground truth and detections are gathered from all processes, and each image counts once for any number of
processes.
"""

import io
import math
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, send_to_device
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from transformers import PreTrainedModel

from ..processing.coco_masks import coco_masks
from ..processing.data.coco import Object, object_rle
from .models import class_names

KINDS = {"box": "bbox", "mask": "segm"}  # our names and pycocotools'
AREAS = ("all", "small", "medium", "large")  # small: below 32 x 32 pixels; medium: up to 96 x 96
MOST_DETECTIONS = -1  # index of the last of pycocotools' limits, 100 detections per image


@torch.inference_mode()
def score_objects(
    model: PreTrainedModel, images: Iterable[dict[str, Any]], accelerator: Accelerator
) -> dict[str, Any]:
    """Scores a detector on the images of all processes.

    Args:
        model: The detector; it is left in the mode (training or evaluation) in which it was passed.
        images: This process's samples of `WholeImagesWithObjects`.
        accelerator: Gathers annotations and detections.

    Returns:
        The scores of `average_precision`, on every process.
    """
    was_training = model.training
    model.eval()
    truth, found = [], []
    for sample in images:
        size, index = tuple(sample["size"]), sample["index"]
        inputs = {name: sample[name] for name in ("pixel_values", "pixel_mask")}
        outputs = model(**send_to_device(inputs, accelerator.device))
        (instances,) = model.instances(outputs, [size], threshold=0.0)
        image = {"id": index, "height": size[0], "width": size[1]}
        truth.append({**image, "objects": [with_rle(known, size) for known in sample["objects"]]})
        found.append({**image, "objects": detected(instances)})
    model.train(was_training)
    truth, found = (sorted(gather_object(rows), key=itemgetter("id")) for rows in (truth, found))
    scores = [average_precision(truth, found, class_names(model)) if accelerator.is_main_process else None]
    return broadcast_object_list(scores)[0]


def with_rle(known: Object, size: tuple[int, int]) -> Object:
    """An annotated object with run-length encoded mask and area, as pycocotools needs it."""
    rle = object_rle(known, size)
    area = float(coco_masks.area(rle)) if known["area"] is None else known["area"]
    return {**known, "segmentation": rle, "area": area}


def detected(instances: dict[str, Tensor]) -> list[Object]:
    """Converts detections from `MaskRcnnForObjectDetection.instances` to pycocotools' format."""
    boxes = instances["boxes"].double()
    boxes[:, 2:] -= boxes[:, :2]
    masks = instances["masks"].permute(1, 2, 0).to("cpu", torch.uint8).numpy()
    parts = zip(
        instances["labels"].tolist(),
        instances["scores"].tolist(),
        boxes.tolist(),
        coco_masks.encode(np.asfortranarray(masks)) if len(boxes) else [],
        strict=True,
    )
    return [
        {"class": label, "score": score, "bbox": box, "segmentation": rle, "iscrowd": 0}
        for label, score, box, rle in parts
    ]


def average_precision(
    truth: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]], names: list[str]
) -> dict[str, Any]:
    """Computes COCO's average precision of boxes and masks, over all classes and per class.

    Args:
        truth: Images {"id", "height", "width", "objects"} with their annotated objects.
        found: The same images with their detections.
        names: Class names by id.

    Returns:
        Scores in 0..1, NaN where nothing is annotated; `images`, and `per_class` with the number of objects
        as `support`.
    """
    scores, rows = {}, [{"name": name} for name in names]
    for kind, pycocotools_kind in KINDS.items():
        precision = precisions(truth, found, len(names), pycocotools_kind)
        scores[f"{kind}_ap"] = mean_of_known(precision[:, :, :, 0])
        for overlap, place in ((50, 0), (75, 5)):
            scores[f"{kind}_ap_{overlap}"] = mean_of_known(precision[place, :, :, 0])
        for place, area in enumerate(AREAS[1:], 1):
            scores[f"{kind}_ap_{area}"] = mean_of_known(precision[:, :, :, place])
        for index, row in enumerate(rows):
            row[f"{kind}_ap"] = mean_of_known(precision[:, :, index, 0])
    for index, row in enumerate(rows):
        row["support"] = sum(known["class"] == index for image in truth for known in image["objects"])
    return {**scores, "images": len(truth), "per_class": rows}


def precisions(
    truth: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]], num_classes: int, kind: str
) -> np.ndarray:
    """Precision by (10 IoU thresholds, 101 recalls, classes, 4 areas), -1 where nothing is annotated."""
    with redirect_stdout(io.StringIO()):
        known, detections = (indexed(images, num_classes, kind) for images in (truth, found))
        evaluation = COCOeval(known, detections, kind)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][..., MOST_DETECTIONS]


def indexed(images: Sequence[dict[str, Any]], num_classes: int, kind: str) -> COCO:
    """Builds pycocotools' index. Detections get the area of their box or mask, depending on `kind`."""
    annotations = []
    for image in images:
        for found in image["objects"]:
            row = {
                **found,
                "id": len(annotations) + 1,
                "image_id": image["id"],
                "category_id": found["class"],
            }
            if "area" not in found:
                mask_area = float(coco_masks.area(found["segmentation"]))
                row["area"] = math.prod(found["bbox"][2:]) if kind == "bbox" else mask_area
            annotations.append(row)
    index = COCO()
    index.dataset = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number} for number in range(num_classes)],
    }
    index.createIndex()
    return index


def mean_of_known(precision: np.ndarray) -> float:
    """Mean over the entries that are not -1; NaN if there are none."""
    known = precision[precision > -1]
    return float(known.mean()) if known.size else math.nan
