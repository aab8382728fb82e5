"""Detects objects in image files: one annotation file in COCO's format, and pictures of boxes and masks."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel

from .atomic_write import atomic_write
from .coco_masks import coco_masks
from .fonts import drawable, font_for
from .image_reading import read_image
from .legends import INK, PAPER
from .overlays import save_png
from .palettes import default_palette
from .plain_text import one_line
from .prediction_files import FilePredictor, Job

FONT_SIZE = 12  # pixels, at least
TINT = 0.5  # weight of the class color inside a mask


class ObjectPredictor(FilePredictor):
    """Detects objects in image files with one model, and writes one annotation file for all of them.

    The file has COCO's lists of images, categories and annotations, with a score for each annotation, so that
    annotation tools open it and `open_coco` reads it. File names are relative to the given folders. Boxes and masks are those of the upright image.

    Args:
        model: A detector of instances in evaluation mode.
        processor: Its image processor.
        folder: Folder of the annotations, `annotations.json`.
        reading: Arguments of `read_image` for the files. Default: none.
        threshold: Objects with a score above it are written; from 0 to 1. Default: 0.5.
        overlay: Whether to write a picture of each image with its objects to `overlays/`. Default: False.
    """

    done = "searched for objects"

    def __init__(
        self,
        model: PreTrainedModel,
        processor: BaseImageProcessor,
        folder: Path,
        reading: Mapping[str, Any] | None = None,
        *,
        threshold: float = 0.5,
        overlay: bool = False,
    ) -> None:
        self.reading = reading or {}
        self.model, self.processor, self.file = model, processor, folder / "annotations.json"
        self.threshold, self.overlay = threshold, overlay
        self.names = [model.config.id2label[index] for index in range(model.config.num_labels)]
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    @torch.inference_mode()
    def run(self, job: Job) -> None:
        """Detects the objects of one image file. Raises ImageReadError if it cannot be read."""
        image = read_image(job.source, **self.reading)
        inputs = self.processor(image, return_tensors="pt").to(self.model.device)
        outputs = self.model(**inputs)
        (found,) = self.model.instances(outputs, [(image.height, image.width)], self.threshold)
        if self.overlay:
            save_png(objects_picture(image, found, self.names), job.target("overlays"))
        row = {"id": len(self.images) + 1, "file_name": job.image}
        self.images.append({**row, "height": image.height, "width": image.width})
        for annotation in annotations(found):
            numbers = {"id": len(self.annotations) + 1, "image_id": row["id"]}
            self.annotations.append({**numbers, **annotation})

    def close(self) -> None:
        """Writes the annotations of all images so far, if there are any."""
        if not self.images:
            return
        categories = [{"id": index, "name": name} for index, name in enumerate(self.names)]
        content = {"images": self.images, "annotations": self.annotations, "categories": categories}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.file) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")


def annotations(found: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Converts the objects of one image, as from `MaskRcnnForObjectDetection.instances`, to COCO's format.

    A box is (left, top, width, height) in pixels, a mask is run-length encoded.
    """
    boxes = found["boxes"].double().cpu()
    boxes[:, 2:] -= boxes[:, :2]
    masks = np.asfortranarray(found["masks"].permute(1, 2, 0).to("cpu", torch.uint8).numpy())
    encoded = coco_masks.encode(masks) if len(boxes) else []
    labels, scores = found["labels"].tolist(), found["scores"].tolist()
    return [
        {
            "category_id": label,
            "score": round(score, 4),
            "bbox": [round(side, 2) for side in box],
            "segmentation": {**rle, "counts": rle["counts"].decode()},
            "area": float(coco_masks.area(rle)),
            "iscrowd": 0,
        }
        for label, score, box, rle in zip(labels, scores, boxes.tolist(), encoded, strict=True)
    ]


def objects_picture(image: Image.Image, found: dict[str, Tensor], names: list[str]) -> Image.Image:
    """Draws the masks, boxes, names and scores of the objects of an image; the best are drawn last."""
    picture = np.array(image.convert("RGB"))
    colors = default_palette(len(names) + 1)[1:]  # without black
    order = found["scores"].argsort().tolist()
    for index in order:
        mask, color = found["masks"][index].cpu().numpy(), colors[found["labels"][index]]
        picture[mask] = ((1 - TINT) * picture[mask] + TINT * np.array(color)).astype(np.uint8)
    drawn = Image.fromarray(picture)
    draw, size = ImageDraw.Draw(drawn), max(FONT_SIZE, image.width // 60)
    for index in order:
        box, color = found["boxes"][index].tolist(), tuple(colors[found["labels"][index]])
        draw.rectangle(box, outline=color, width=max(2, size // 6))
        text = drawable(f"{one_line(names[found['labels'][index]], 40)} {found['scores'][index]:.2f}")
        font = font_for(text, size)
        width = draw.textlength(text, font=font)
        place = max(0, min(box[0], image.width - width)), max(0, box[1] - 1.2 * size)
        draw.rectangle(draw.textbbox(place, text, font=font, anchor="lt"), fill=PAPER)
        draw.text(place, text, fill=INK, font=font, anchor="lt")
    return drawn
