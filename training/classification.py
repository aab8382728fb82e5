"""Training of image classifiers: images with labels, timm's augmentation, soft labels, token labels where a model takes them.

Legend: B batch, K classes, h, w axes of the tokens' grid.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import BaseImageProcessor, BitImageProcessor, PreTrainedConfig, PreTrainedModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..processing.data.batches import collate, loader_options
from ..processing.data.image_augmentation import NO_RAND_AUGMENT, ImageAugmentation, View
from ..processing.data.labeled_images import (
    ClassFolders,
    GeneratedImages,
    LabelledImages,
    open_labelled_images,
    unreadable,
)
from ..processing.data.pairing import listed
from ..processing.data.token_labels import LabelMaps, MixToken, smoothed
from ..processing.data.unreadable import UNREADABLE, ReadableImages, readable_sample
from ..processing.metrics import percent
from .class_scores import score_classes
from .command_line import crop_size
from .models import CLASSIFIER
from .setup import CHECKED_SAMPLES
from .tasks import Task

if TYPE_CHECKING:
    from .options import ClassificationArguments

EVALUATED_SHARE = 0.875  # of the shorter side: what the central crop shows, as in timm
BICUBIC = 3


class ClassificationTask(Task):
    """See `Task`."""

    models = CLASSIFIER
    data_example = "a folder with one folder of images for each class, such as imagenet/train"
    best_by = "top_1"
    logged = ("top_1", "top_5", "val_loss")
    next_commands = ()

    def open(self, split: str) -> LabelledImages:
        name = getattr(self.arguments, split)
        data = open_labelled_images(name)
        problems = unreadable(data, CHECKED_SAMPLES)
        if problems and not self.skips_unreadable:
            raise ValueError(f"{name}: {' '.join(problems[:5])} Repair or remove these files.")
        return data

    def check_same_classes(self, train: LabelledImages, val: LabelledImages) -> None:
        splits = [(self.arguments.train, train.classes), (self.arguments.val, val.classes)]
        for (here, classes), (there, others) in (splits, splits[::-1]):
            if missing := sorted(set(others) - set(classes)):
                raise ValueError(
                    f"{here} lacks {len(missing)} of the classes of {there}: {listed(missing)}. Give both the same; "
                    "a class without images to validate on may have an empty folder."
                )
        if train.classes != val.classes:
            raise ValueError(
                f"{self.arguments.train} and {self.arguments.val} have the same classes in different orders, beginning with "
                f"{listed(train.classes)} and {listed(val.classes)}. Give both the same order."
            )

    def generated(self, num_classes: int) -> Dataset:
        return GeneratedImages(crop_size(self.arguments.crop_size), num_classes)

    def prepare(self, model: PreTrainedModel, data: Dataset) -> None:
        """Labels are soft, and transformers' own loss would treat them as labels of several classes at once."""
        super().prepare(model, data)
        model.loss_function = soft_cross_entropy

    def new_processor(self) -> BitImageProcessor:
        """The shorter side to a seventh more than the crop, its center, ImageNet's mean and standard deviation."""
        height, width = crop_size(self.arguments.crop_size)
        return BitImageProcessor(
            size={"shortest_edge": round(max(height, width) / EVALUATED_SHARE)},
            crop_size={"height": height, "width": width},
            resample=BICUBIC,
            image_mean=IMAGENET_DEFAULT_MEAN,
            image_std=IMAGENET_DEFAULT_STD,
        )

    def new_samples(self, processor: BaseImageProcessor) -> "LabelledSamples":
        arguments, data = self.arguments, self.data
        if empty := data.empty_classes():
            raise ValueError(
                f"{arguments.train} has no images of {listed(empty)}. Add some, or remove the folder."
            )
        targets = SoftLabels(len(data.classes), arguments.label_smoothing)
        size, cell = crop_size(arguments.crop_size), getattr(self.config, "patch_size", 4)
        if getattr(self.config, "use_token_labels", False):
            cell = token_stride(self.config)
            targets.grid = tuple(-(-side // cell) for side in size)
        if arguments.token_labels:
            targets.maps = open_label_maps(arguments.token_labels, data, targets)
        is_mixed = arguments.mix_token and arguments.augmentation
        return LabelledSamples(
            data,
            new_augmentation(arguments, processor),
            processor,
            targets,
            MixToken(cell, arguments.seed) if is_mixed else None,
        )

    def evaluation_images(
        self, data: Dataset, processor: BaseImageProcessor, accelerator: Accelerator
    ) -> DataLoader:
        indices = range(accelerator.process_index, len(data), accelerator.num_processes)
        options = loader_options(self.arguments.workers, accelerator.device.type == "cuda")
        crops = ReadableImages(CentralCrops(data, processor))
        return DataLoader(crops, 32, sampler=indices, collate_fn=collate, **options)

    def score(
        self, model: PreTrainedModel, images: Iterable[dict[str, Any]], accelerator: Accelerator
    ) -> dict[str, Any]:
        return score_classes(model, images, accelerator)

    def summary(self, scores: dict[str, Any]) -> str:
        top_5, loss = percent(scores["top_5"]), scores["val_loss"]
        return f"{self.headline(scores)}, top-5 {top_5} %, loss {loss:.4f}"

    def headline(self, scores: dict[str, Any]) -> str:
        return f"top-1 accuracy {percent(scores['top_1'])} %"


@dataclass
class SoftLabels:
    """What a sample is to be taken for: its class, and where `grid` is set, the class of each token."""

    num_classes: int
    smoothing: float
    grid: tuple[int, int] | None = None
    maps: LabelMaps | None = None

    def __call__(self, label: int, name: str, view: View) -> dict[str, Tensor]:
        """-> labels (K,) and, with a grid, token_labels (K, h, w)."""
        labels = smoothed(label, self.num_classes, self.smoothing)
        if self.grid is None:
            return {"labels": labels}
        if self.maps is not None:
            return {"labels": labels, "token_labels": self.maps(name, view)}
        return {"labels": labels, "token_labels": labels[:, None, None].repeat(1, *self.grid)}


class LabelledSamples(Dataset):
    """Augmented samples by (epoch, index), ready for the model."""

    def __init__(
        self,
        data: Dataset,
        augmentation: ImageAugmentation,
        processor: BaseImageProcessor,
        targets: SoftLabels,
        mix: MixToken | None,
    ) -> None:
        self.data, self.augmentation, self.processor = data, augmentation, processor
        self.targets, self.mix = targets, mix

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        sample = readable_sample(self.data, index)
        picture, view = self.augmentation(sample["image"], epoch=epoch, index=index)
        prepared = self.processor(picture, do_resize=False, do_center_crop=False, return_tensors="pt")
        return {
            "pixel_values": self.augmentation.erase(prepared["pixel_values"][0], epoch=epoch, index=index),
            **self.targets(sample["label"], sample["name"], view),
            "name": sample["name"],
            "key": key,
            UNREADABLE: sample[UNREADABLE],
        }

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = collate(samples)
        key = batch.pop("key")[0]
        return self.mix(batch, key) if self.mix else batch


class CentralCrops(Dataset):
    """Images as the processor prepares them for evaluation."""

    def __init__(self, data: Dataset, processor: BaseImageProcessor) -> None:
        self.data, self.processor = data, processor

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.data[index]
        pixels = self.processor(sample["image"], return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": pixels, "labels": torch.tensor(sample["label"]), "name": sample["name"]}


def soft_cross_entropy(
    labels: Tensor,
    pooled_logits: Tensor,
    config: PreTrainedConfig,  # noqa: ARG001
    **options: Any,  # noqa: ARG001
) -> Tensor:
    """(B, K) shares of classes or (B,) indices, (B, K) -> scalar; the arguments are named as transformers passes them."""
    return F.cross_entropy(pooled_logits.float(), labels)


def token_stride(config: PreTrainedConfig) -> int:
    """Pixels of a side of a token of the last stage."""
    return config.patch_size * 2 ** (len(config.depths) - 1)


def open_label_maps(folder: str, data: Dataset, targets: SoftLabels) -> LabelMaps:
    """The label maps of `folder`, after a look at the first image's."""
    if targets.grid is None:
        raise ValueError(
            "--token-labels needs a model with a head for tokens. Add --model maformer --set use_token_labels=true."
        )
    if not isinstance(data, ClassFolders | GeneratedImages):
        raise ValueError(
            "--token-labels finds label maps by the names of image files. Give --train a folder of class folders."
        )
    maps = LabelMaps(Path(folder), targets.num_classes, targets.grid)
    if isinstance(data, ClassFolders):
        maps.read(maps.path(data.source(0)[2]))
    return maps


def new_augmentation(
    arguments: "ClassificationArguments", processor: BaseImageProcessor
) -> ImageAugmentation:
    """What the arguments say; without augmentation the central square, as large as it fits."""
    size = crop_size(arguments.crop_size)
    if not arguments.augmentation:
        return ImageAugmentation(size, (1.0, 1.0), (1.0, 1.0), 0.0, NO_RAND_AUGMENT, 0.0, 0.0)
    return ImageAugmentation(
        size,
        area_range=(arguments.min_area, 1.0),
        flip_probability=0.5 if arguments.horizontal_flip else 0.0,
        rand_augment=arguments.rand_augment,
        colour_jitter=arguments.color_jitter,
        erasing_probability=arguments.random_erasing,
        mean_colour=tuple(round(255 * mean) for mean in processor.image_mean),
        seed=arguments.seed,
    )
