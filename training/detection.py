"""Training of detectors: data in COCO's format, multi-scale whole images, COCO's scores.

Legend: N objects of one image, C channels, H, W height and width of a resized image.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms
from transformers import AutoModelForObjectDetection, BaseImageProcessor, DetrImageProcessor, PreTrainedModel
from transformers.image_transforms import corners_to_center_format
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..configuration.configuration_mask_rcnn import MaskRcnnConfig
from ..modeling.modeling_mask_rcnn import MaskRcnnForObjectDetection
from ..modeling.pretrained_backbones import encoder_normalization
from ..processing.data.batches import evaluation_loader
from ..processing.data.coco import CocoData, Object, corners, learnable, object_masks, open_coco
from ..processing.data.labeled_images import unreadable
from ..processing.data.unreadable import UNREADABLE, complaints_of, readable_sample
from ..processing.image_opening import ImageReadError
from ..processing.metrics import percent
from .coco_scores import score_objects
from .models import ModelKind
from .option_texts import shorter_sides
from .setup import CHECKED_SAMPLES
from .starting_points import checkpoint_of
from .tasks import Task

DETECTOR = ModelKind(
    "object detection", {MaskRcnnConfig: MaskRcnnForObjectDetection}, AutoModelForObjectDetection
)


class DetectionTask(Task):
    """See `Task`."""

    models = DETECTOR
    data_example = "COCO's folder, or one with images/ and annotations.json in COCO's format"
    best_by, best_by_name, class_score = "box_ap", "box AP", "box_ap"
    logged = ("box_ap", "box_ap_50", "mask_ap", "mask_ap_50")
    next_commands = (
        "contextseg-evaluate {run} --data {val}",
        "contextseg-predict {run} photo.jpg --output objects --overlay",
    )

    def open(self, split: str) -> CocoData:
        name = getattr(self.arguments, split)
        data = open_coco(name, split, **self.arguments.keywords())
        problems = unreadable(data, CHECKED_SAMPLES)
        if problems and not self.skips_unreadable:
            raise ValueError(
                f"{name}: {' '.join(problems[:5])} Repair these files, or remove them from the annotations."
            )
        return data

    def check_same_classes(self, train: CocoData, val: CocoData) -> None:
        if train.classes != val.classes:
            raise ValueError(
                f"{self.arguments.train} has the categories {', '.join(train.classes)}, but {self.arguments.val} has "
                f"{', '.join(val.classes)}. Use the same categories with the same ids in both."
            )

    def generated(self, num_classes: int) -> Dataset:
        return GeneratedObjects(num_classes)

    def new_processor(self) -> DetrImageProcessor:
        """Resizes to the largest shorter side of training; normalizes as the pretrained encoder expects."""
        arguments, mean, std = self.arguments, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
        if arguments.init_from:
            mean, std = encoder_normalization(checkpoint_of(arguments.init_from))
        shorter = max(shorter_sides(arguments.shorter_side))
        size = {"shortest_edge": shorter, "longest_edge": max(shorter, arguments.longer_side)}
        return DetrImageProcessor(size=size, image_mean=list(mean), image_std=list(std))

    def new_samples(self, processor: BaseImageProcessor) -> "DetectionSamples":
        arguments = self.arguments
        sides = shorter_sides(arguments.shorter_side)
        augmentation = DetectionAugmentation(
            shorter_sides=sides if arguments.augmentation else sides[-1:],
            longer_side=arguments.longer_side,
            flip_probability=0.5 if arguments.augmentation and arguments.horizontal_flip else 0.0,
            seed=arguments.seed,
        )
        return DetectionSamples(self.data, augmentation, processor)

    def evaluation_images(
        self, data: Dataset, processor: BaseImageProcessor, accelerator: Accelerator
    ) -> DataLoader:
        return images_with_objects(data, processor, accelerator, self.arguments.workers)

    def score(
        self, model: PreTrainedModel, images: Iterable[dict[str, Any]], accelerator: Accelerator
    ) -> dict[str, Any]:
        return score_objects(model, images, accelerator)

    def summary(self, scores: dict[str, Any]) -> str:
        return f"{self.headline(scores)}, mask AP {percent(scores['mask_ap'])} %"

    def headline(self, scores: dict[str, Any]) -> str:
        return f"box AP {percent(scores['box_ap'])} %"


@dataclass(frozen=True)
class DetectionAugmentation:
    """Random resizing and horizontal flips of an image with its boxes and masks.

    The result depends on (seed, epoch, index) alone.
    """

    shorter_sides: tuple[int, ...] = (800,)  # pixels; one is drawn for each image
    longer_side: int = 1333  # maximum; takes precedence over the shorter side
    flip_probability: float = 0.5
    seed: int = 0

    def __call__(
        self, image: Image.Image, boxes: Tensor, masks: Tensor, *, epoch: int, index: int
    ) -> tuple[Image.Image, Tensor, Tensor]:
        """Resizes, and possibly mirrors, an image with its boxes and masks.

        Args:
            image: RGB image.
            boxes: (N, 4) left, top, right, bottom in pixels of the image.
            masks: (N, height, width).
            epoch: Number of the epoch.
            index: Number of the sample.

        Returns:
            Image, boxes (N, 4) in pixels of the new size, and masks (N, H, W).
        """
        random = np.random.default_rng((self.seed, epoch, index))
        shorter = self.shorter_sides[random.integers(len(self.shorter_sides))]
        is_mirrored = random.random() < self.flip_probability
        width, height = image.size
        new_height, new_width = size = self.new_size((height, width), shorter)
        image = transforms.resize(image, list(size))
        masks = transforms.resize(masks, list(size), InterpolationMode.NEAREST_EXACT)
        boxes = boxes * torch.tensor([new_width / width, new_height / height] * 2)
        if is_mirrored:
            image, masks = transforms.horizontal_flip(image), masks.flip(-1)
            left, top, right, bottom = boxes.unbind(1)
            boxes = torch.stack([new_width - right, top, new_width - left, bottom], dim=1)
        return image, boxes, masks

    def new_size(self, size: tuple[int, int], shorter: int) -> tuple[int, int]:
        """Height and width for a shorter side of `shorter`, or less, to keep within `longer_side`."""
        factor = min(shorter / min(size), self.longer_side / max(size))
        return tuple(max(1, round(side * factor)) for side in size)


class DetectionSamples(Dataset):
    """Augmented and preprocessed training samples, indexed by (epoch, index)."""

    def __init__(
        self, data: Dataset, augmentation: DetectionAugmentation, processor: BaseImageProcessor
    ) -> None:
        self.data, self.augmentation, self.processor = data, augmentation, processor

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        sample = readable_sample(self.data, index)
        size = sample["image"].size[::-1]
        objects = learnable(sample["objects"], size)
        boxes, masks = corners(objects, size), np.ascontiguousarray(object_masks(objects, size))
        image, boxes, masks = self.augmentation(
            sample["image"], torch.from_numpy(boxes), torch.from_numpy(masks), epoch=epoch, index=index
        )
        prepared = self.processor(image, do_resize=False, do_pad=False, return_tensors="pt")
        return {
            "pixel_values": prepared["pixel_values"][0],
            "class_labels": torch.tensor([found["class"] for found in objects]),
            "boxes": boxes,
            "masks": masks,
            "name": sample["name"],
            UNREADABLE: sample[UNREADABLE],
        }

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Pads images and masks to the largest of the batch; labels are as from `DetrImageProcessor`."""
        sizes = [sample["pixel_values"].shape[-2:] for sample in samples]
        size = tuple(max(sides) for sides in zip(*sizes, strict=True))
        shares = torch.tensor([size[1], size[0]] * 2)
        return {
            "pixel_values": torch.stack([grown(sample["pixel_values"], size) for sample in samples]),
            "pixel_mask": torch.stack([grown(torch.ones(own, dtype=torch.int64), size) for own in sizes]),
            "labels": [
                {
                    "class_labels": sample["class_labels"],
                    "boxes": corners_to_center_format(sample["boxes"]) / shares,
                    "masks": grown(sample["masks"], size),
                }
                for sample in samples
            ],
            "name": [sample["name"] for sample in samples],
            **complaints_of(samples),
        }


class WholeImagesWithObjects(Dataset):
    """Images preprocessed for evaluation, one at a time, with all their objects."""

    def __init__(self, data: Dataset, processor: BaseImageProcessor) -> None:
        self.data, self.processor = data, processor

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.data[index]
        prepared = self.processor(sample["image"], return_tensors="pt")
        return {**prepared, "size": sample["image"].size[::-1], "objects": sample["objects"], "index": index}

    def name(self, index: int) -> str:
        """The name of an image in messages."""
        return self.data.name_of(index)


def images_with_objects(
    data: CocoData,
    processor: BaseImageProcessor,
    accelerator: Accelerator,
    workers: int | None,
    errors: tuple[type[Exception], ...] = (ImageReadError,),
) -> DataLoader:
    """Returns a loader of this process's share of `data`, for `score_objects`.

    An image that raises one of `errors` is replaced by its message, see `ReadableImages`.
    """
    return evaluation_loader(
        WholeImagesWithObjects(data, processor),
        workers=workers,
        pin_memory=accelerator.device.type == "cuda",
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        errors=errors,
    )


class GeneratedObjects(Dataset):
    """Two noise images of COCO's most frequent size, each with a few rectangles as objects."""

    SIZE = (480, 640)
    OBJECTS = 7  # about COCO's average per image

    def __init__(self, num_classes: int) -> None:
        self.classes = [f"class {index}" for index in range(num_classes)]

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, Any]:
        random = np.random.default_rng(index)
        pixels = random.integers(0, 256, (*self.SIZE, 3), dtype=np.uint8)
        objects = [self.rectangle(random) for _ in range(self.OBJECTS)]
        return {"image": Image.fromarray(pixels), "objects": objects, "name": f"noise {index}"}

    def rectangle(self, random: np.random.Generator) -> Object:
        height, width = self.SIZE
        left, top = random.integers(0, [width // 2, height // 2]).tolist()
        right, bottom = left + width // 4, top + height // 4
        return {
            "class": int(random.integers(len(self.classes))),
            "bbox": [left, top, right - left, bottom - top],
            "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
            "iscrowd": 0,
            "area": None,
        }


def grown(tensor: Tensor, size: Sequence[int]) -> Tensor:
    """(..., H, W) -> (..., *size), padded with zeros on the right and at the bottom."""
    height, width = tensor.shape[-2:]
    return F.pad(tensor, (0, size[1] - width, 0, size[0] - height))
