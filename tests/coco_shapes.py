"""Images of a square and a disk, and the objects in them: as tensors, and as a dataset in COCO's format."""

import json

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_masks

SQUARE, DISK = 1, 2
CATEGORIES = {3: "square", 7: "disk"}  # ids with gaps, as COCO's
# Fewer proposals and samples than torchvision's, for small images.
FEW = {
    "rpn_post_nms_top_n_train": 100,
    "rpn_post_nms_top_n_test": 30,
    "box_batch_size_per_image": 16,
    "box_detections_per_img": 10,
}


def shapes(height=64, width=64, seed=0):
    """An image of dark noise with a square in its left half and a disk in its right half, and what to find in it."""
    draw = torch.Generator().manual_seed(seed)
    image = torch.rand(3, height, width, generator=draw) * 0.2
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    masks = []
    for label in (SQUARE, DISK):
        radius = int(torch.randint(9, 13, (), generator=draw))
        top = int(torch.randint(radius, height - radius, (), generator=draw))
        left = int(torch.randint(radius, width // 2 - radius + 1, (), generator=draw)) + width // 2 * (
            label - 1
        )
        down, across = (rows - top).abs(), (columns - left).abs()
        square = (down < radius) & (across < radius)
        masks.append(square if label == SQUARE else down**2 + across**2 < radius**2)
        image[label - 1, masks[-1]] = 0.9
    corners = [mask.nonzero() for mask in masks]
    boxes = [[*where.amin(0).flip(0), *(where.amax(0).flip(0) + 1)] for where in corners]
    target = {"boxes": torch.tensor(boxes).float(), "labels": torch.tensor([SQUARE, DISK])}
    return image, {**target, "masks": torch.stack(masks).to(torch.uint8)}


def write_shapes(folder, count, *, size=(64, 64), seed=0):
    """images/ and annotations.json: polygons for squares, RLE for disks."""
    (folder / "images").mkdir(parents=True)
    content = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": number, "name": name} for number, name in CATEGORIES.items()]
    for index in range(count):
        image, target = shapes(*size, seed=seed + index)
        name = f"image{index}.png"
        Image.fromarray((image * 255).byte().permute(1, 2, 0).numpy()).save(folder / "images" / name)
        content["images"].append({"id": 10 * index, "file_name": name, "height": size[0], "width": size[1]})
        for category, (left, top, right, bottom), mask in zip(
            CATEGORIES, target["boxes"].tolist(), target["masks"].numpy(), strict=True
        ):
            rle = coco_masks.encode(np.asfortranarray(mask))
            rle["counts"] = rle["counts"].decode()
            polygon = [[left, top, right, top, right, bottom, left, bottom]]
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": 10 * index,
                    "category_id": category,
                    "bbox": [left, top, right - left, bottom - top],
                    "segmentation": polygon if category == min(CATEGORIES) else rle,
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                }
            )
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder
