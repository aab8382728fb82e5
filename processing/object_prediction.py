"""Detects objects in image files: one annotation file in COCO's format, and pictures of boxes and masks."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from transformers import BaseImageProcessor, BatchFeature, PreTrainedModel

from .coco_masks import coco_masks
from .fonts import drawable, font_for
from .image_reading import read_image
from .legends import INK, PAPER
from .overlays import save_png
from .palettes import default_palette
from .plain_text import one_line
from .prediction_files import FilePredictor, Job, part_files, write_part

Record = tuple[dict[str, Any], list[dict[str, Any]]]  # an image and its annotations, without ids
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

    def load(self, job: Job) -> tuple[Image.Image, BatchFeature]:
        """Reads and prepares one image file. Raises ImageReadError if it cannot be read."""
        image = read_image(job.source, **self.reading)
        return image, self.processor(image, return_tensors="pt")

    @torch.inference_mode()
    def predict(
        self,
        job: Job,  # noqa: ARG002
        loaded: tuple[Image.Image, BatchFeature],
    ) -> tuple[Image.Image, dict[str, Tensor]]:
        """Detects the objects of one image -> the image and its objects."""
        image, inputs = loaded
        outputs = self.model(**inputs.to(self.model.device))
        (found,) = self.model.instances(outputs, [(image.height, image.width)], self.threshold)
        return image, {name: values.cpu() for name, values in found.items()}

    def write(self, job: Job, predicted: tuple[Image.Image, dict[str, Tensor]]) -> Record:
        """Writes the picture of one image, and returns its record."""
        image, found = predicted
        if self.overlay:
            save_png(objects_picture(image, found, self.names), job.target("overlays"))
        return {"file_name": job.image, "height": image.height, "width": image.width}, annotations(found)

    def targets(self, job: Job) -> list[Path]:
        return [self.file, *[job.target("overlays")] * self.overlay]

    def earlier(self, jobs: Sequence[Job]) -> dict[Job, Record]:
        """Returns the jobs that are in the annotations of an earlier run, with their records.

        Raises ValueError if the annotations cannot be read, or have other classes.
        """
        records: dict[str, Record] = {}
        for file in (self.file, *part_files(self.file)):
            if file.is_file():
                records |= stored_records(file, self.categories)
        return {
            job: records[job.image]
            for job in jobs
            if job.image in records and all(path.is_file() for path in self.targets(job)[1:])
        }

    def finish(self, records: Sequence[Record], part: int | None = None) -> None:
        """Writes the annotations, if there are any images."""
        if not records:
            return
        images, objects = [], []
        for number, (image, found) in enumerate(records, 1):
            images.append({"id": number, **image})
            for annotation in found:
                objects.append({"id": len(objects) + 1, "image_id": number, **annotation})
        text = json.dumps({"images": images, "annotations": objects, "categories": self.categories})
        write_part(self.file, part, lambda path: path.write_text(text, encoding="utf-8"))

    @property
    def categories(self) -> list[dict[str, Any]]:
        return [{"id": index, "name": name} for index, name in enumerate(self.names)]


def stored_records(file: Path, categories: list[dict[str, Any]]) -> dict[str, Record]:
    """Reads annotations that `ObjectPredictor` has written -> its records by file name.

    Raises ValueError if they cannot be read, or have other classes.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["categories"] != categories:
            raise ValueError(f"{file} has other classes than this model. Choose another --output.")
        objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            del annotation["id"]
            objects[annotation.pop("image_id")].append(annotation)
        return {image["file_name"]: (image, objects[image.pop("id")]) for image in content["images"]}
    except (LookupError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is damaged: {error}. Remove it, or choose another --output.") from error


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
