"""Datasets of images with boxes and masks in COCO format: COCO as published, and your own folders.

    coco/    annotations/instances_train2017.json, instances_val2017.json    train2017/*.jpg, val2017/*.jpg
    mine/    annotations.json                                                images/*.jpg

Samples are {"image": RGB image, "objects": see `CocoData`, "name": text}. `classes` lists the category names
in the order of their ids; gaps between the ids are closed. Sizes are (height, width).

Legend: N objects.
"""

import json
import pickle
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from ..coco_masks import coco_masks
from ..image_files import same_name
from ..image_opening import PIXEL_LIMIT, ImageReadError, read_orientation
from ..image_reading import read_image
from ..orientation import swaps_sides, turn_back
from .datasets import split_source
from .pairing import contents, listed

Object = dict[str, Any]
SMALLEST_BOX = 1.0  # side in pixels; smaller boxes are left out of training, as in the common toolboxes
FEWEST_COORDINATES = 6  # of a polygon; pycocotools would read four numbers as a box


class Packed(Sequence):
    """Pickled values in one byte array. Python objects would be copied by every data loading process."""

    def __init__(self, values: Iterable[Any]) -> None:
        packed = [pickle.dumps(value) for value in values]
        self.ends = np.cumsum([0, *map(len, packed)])
        self.bytes = np.frombuffer(b"".join(packed), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> Any:
        return pickle.loads(self.bytes[self.ends[index] : self.ends[index + 1]])


class CocoData(Dataset):
    """Images with their objects.

    Each object is a dict with `class` (index), `bbox` (left, top, width, height in pixels), `segmentation`
    (polygons or RLE), `iscrowd`, and `area`, which is None if the file does not state it.
    """

    num_channels = 3  # every image is read as RGB

    def __init__(
        self,
        images: Iterable[Mapping[str, Any]],
        classes: list[str],
        folder: Path,
        *,
        value_range: tuple[float, float] | None = None,
        pixel_limit: int = PIXEL_LIMIT,
    ) -> None:
        self.rows, self.classes, self.folder = Packed(images), classes, folder
        self.numbers = list(range(len(classes)))  # label of each class index in the rows
        self.value_range, self.pixel_limit = value_range, pixel_limit

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        image = read_as_annotated(
            stored_file(self.folder, row["file"]),
            (row["height"], row["width"]),
            value_range=self.value_range,
            pixel_limit=self.pixel_limit,
        )
        objects = [{**found, "class": self.numbers[found["class"]]} for found in row["objects"]]
        return {"image": image, "objects": objects, "name": row["file"]}

    def number_classes_as(self, names: Sequence[str]) -> None:
        """Numbers the classes, all of which are among `names`, by their positions there."""
        self.numbers, self.classes = [list(names).index(name) for name in self.classes], list(names)

    def image_source(self, index: int) -> Path:
        """The file of an image."""
        return stored_file(self.folder, self.rows[index]["file"])

    def name_of(self, index: int) -> str:
        """The name of an image in messages."""
        return self.rows[index]["file"]


def open_coco(
    source: str,
    split: str,
    *,
    value_range: tuple[float, float] | None = None,
    pixel_limit: int = PIXEL_LIMIT,
) -> CocoData:
    """Opens a folder in COCO format, or a split of COCO as published.

    Args:
        source: The folder. The split may follow after a colon, as in "coco:val".
        split: "train" leaves out images without an object to learn from, as the common toolboxes do; "val"
            keeps all images. Also the split to open if `source` names none.
        value_range: (low, high), black and white in images that are not 8-bit.
        pixel_limit: Most pixels of an image; reading a larger one raises `ImageReadError`.

    Raises:
        ValueError: If there are no such files, the annotations are not valid, or no image has an object with
            a mask.
    """
    source, named = split_source(source, None)
    file, folder = find_files(Path(source).expanduser(), named or split)
    classes, images = read_annotations(file)
    if split == "train":
        images = [row for row in images if learnable(row["objects"], (row["height"], row["width"]))]
    if not images:
        raise ValueError(f"no image of '{file}' has an object with a mask. Annotate some objects.")
    return CocoData(images, classes, folder, value_range=value_range, pixel_limit=pixel_limit)


def find_files(root: Path, split: str) -> tuple[Path, Path]:
    """The annotation file and the image folder of a split."""
    if (root / "annotations.json").is_file() and (root / "images").is_dir():
        return root / "annotations.json", root / "images"
    for file in sorted(root.glob(f"annotations/instances_{split}*.json")):
        name = file.stem.removeprefix("instances_")
        for folder in (root / name, root / "images" / name):
            if folder.is_dir():
                return file, folder
    held = f"it holds {contents(root)}" if root.is_dir() else "there is no such folder"
    raise ValueError(
        f"'{root}' is not a dataset of annotated objects: {held}. Give a folder with images/ and "
        "annotations.json in COCO format, or the folder of COCO itself, with "
        f"annotations/instances_{split}2017.json and {split}2017/."
    )


# -- annotations -----------------------------------------------------------------------------------------------------


def read_annotations(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Reads an annotation file.

    Returns:
        Class names, and for each image a dict with `file`, `height`, `width` and `objects`.

    Raises:
        ValueError: If the file is not in COCO format.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"'{path}' is not JSON: {error}. Download or export it again.") from error
    lists = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(name), list) for name in lists):
        raise ValueError(f"'{path}' is not in COCO format. It must contain the lists {', '.join(lists)}.")
    try:
        return collect(*(content[name] for name in lists))
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from error


def collect(
    image_rows: list[dict], annotation_rows: list[dict], category_rows: list[dict]
) -> tuple[list[str], list[dict[str, Any]]]:
    """The three lists of a COCO file -> class names, images with their objects."""
    names = {value(row, "id", "category"): value(row, "name", "category") for row in category_rows}
    if not names or len(names) < len(category_rows) or len(set(names.values())) < len(names):
        raise ValueError(
            f"the categories are {listed([row.get('name') for row in category_rows]) or 'none'}. "
            "Give each its own id and name."
        )
    index_of = {category: index for index, category in enumerate(sorted(names))}
    images = {}
    for row in image_rows:
        file, height, width = (value(row, name, "image") for name in ("file_name", "height", "width"))
        images[value(row, "id", "image")] = {"file": file, "height": height, "width": width, "objects": []}
    if not images or len(images) < len(image_rows):
        raise ValueError(
            f"{len(image_rows)} images have {len(images)} different ids. Give each image its own id."
        )
    for row in annotation_rows:
        image = images.get(value(row, "image_id", "annotation"))
        category = value(row, "category_id", "annotation")
        if image is None or category not in index_of:
            raise ValueError(
                f"annotation {row.get('id')} belongs to image {row['image_id']} and category {category}, but "
                f"{'the image' if image is None else 'the category'} is not in the file. "
                "Remove the annotation, or add what is missing."
            )
        image["objects"].append(checked_object(row, index_of[category], image))
    return [names[category] for category in sorted(names)], list(images.values())


def value(row: Mapping[str, Any], name: str, what: str) -> Any:
    """A required field of a row. Raises ValueError if it is missing."""
    if row.get(name) is None:
        raise ValueError(
            f"{what} {row.get('id', row)} has no '{name}'. Export the annotations again as COCO instances, with masks."
        )
    return row[name]


def checked_object(row: Mapping[str, Any], class_index: int, image: Mapping[str, Any]) -> Object:
    """A validated object with the fields in use; polygons too short to have an area are dropped."""
    name = f"annotation {row.get('id')} of '{image['file']}'"
    box, segmentation = value(row, "bbox", "annotation"), value(row, "segmentation", "annotation")
    if not is_numbers(box) or len(box) != 4:
        raise ValueError(f"{name} has bbox {box}. Four numbers are required: left, top, width, height.")
    size = [image["height"], image["width"]]
    if isinstance(segmentation, dict):
        if list(segmentation.get("size", [])) != size or not segmentation.get("counts"):
            raise ValueError(
                f"{name} has an RLE mask of size {segmentation.get('size')}, but the image is {size} "
                "(height, width). Encode the mask at the size of the image."
            )
    elif is_polygons(segmentation):
        segmentation = [polygon for polygon in segmentation if len(polygon) >= FEWEST_COORDINATES]
    else:
        raise ValueError(
            f"{name} has a segmentation that is neither polygons nor RLE. "
            "Write polygons as lists [x1, y1, x2, y2, ...]."
        )
    found = {"class": class_index, "bbox": box, "segmentation": segmentation}
    return {**found, "iscrowd": int(row.get("iscrowd") or 0), "area": row.get("area")}


def is_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(number, int | float) for number in values)


def is_polygons(segmentation: Any) -> bool:
    return isinstance(segmentation, list) and all(
        is_numbers(polygon) and len(polygon) % 2 == 0 for polygon in segmentation
    )


# -- objects ---------------------------------------------------------------------------------------------------------


def learnable(objects: Sequence[Object], size: tuple[int, int]) -> list[Object]:
    """The objects with a mask and a box of at least one pixel inside the image, without crowds."""
    boxes = corners(objects, size)
    is_large = (boxes[:, 2:] - boxes[:, :2] >= SMALLEST_BOX).all(axis=1)
    return [
        found
        for found, has_area in zip(objects, is_large, strict=True)
        if has_area and found["segmentation"] and not found["iscrowd"]
    ]


def corners(objects: Sequence[Object], size: tuple[int, int]) -> np.ndarray:
    """Objects -> (N, 4) float32 boxes as left, top, right, bottom in pixels, clipped to the image size."""
    boxes = np.array([found["bbox"] for found in objects], dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    height, width = size
    return np.clip(boxes, 0, [width, height, width, height]).astype(np.float32)


def object_rle(found: Object, size: tuple[int, int]) -> dict[str, Any]:
    """The mask of an object as compressed RLE of pycocotools."""
    segmentation = found["segmentation"]
    if not segmentation:
        return coco_masks.encode(np.zeros(size, dtype=np.uint8, order="F"))
    if isinstance(segmentation, list):
        return coco_masks.merge(coco_masks.frPyObjects(segmentation, *size))
    if isinstance(segmentation["counts"], list):
        return coco_masks.frPyObjects(segmentation, *size)
    return segmentation


def object_masks(objects: Sequence[Object], size: tuple[int, int]) -> np.ndarray:
    """Objects of an image of this size -> (N, H, W) uint8 masks of 0 and 1."""
    if not objects:
        return np.zeros((0, *size), dtype=np.uint8)
    return coco_masks.decode([object_rle(found, size) for found in objects]).transpose(2, 0, 1)


def stored_file(folder: Path, name: str) -> Path:
    """The file with this name, or one whose name differs only in its Unicode normal form."""
    file = folder / name
    if file.exists() or name.isascii() or not file.parent.is_dir():
        return file
    same = (other for other in file.parent.iterdir() if same_name(other.name) == same_name(file.name))
    return next(same, file)


def read_as_annotated(
    path: Path,
    size: tuple[int, int],
    *,
    value_range: tuple[float, float] | None = None,
    pixel_limit: int = PIXEL_LIMIT,
) -> Image.Image:
    """Reads an RGB image upright, or without its EXIF rotation if only that matches the annotated `size`."""
    image = read_image(path, value_range=value_range, pixel_limit=pixel_limit)
    if image.size == size[::-1]:
        return image
    if image.size == size and swaps_sides(orientation := read_orientation(path, pixel_limit)):
        return Image.fromarray(turn_back(torch.from_numpy(np.array(image)), orientation).numpy())
    raise ImageReadError(
        f"'{path}' is {image.width}x{image.height} (width x height), but its annotations are for "
        f"{size[1]}x{size[0]}. Use the image that was annotated."
    )
