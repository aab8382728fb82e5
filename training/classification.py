"""Training of image classifiers: labeled images, timm's augmentation, soft labels, token labels.

Legend: B batch, K classes, h, w axes of the token grid.
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
    LabeledImages,
    open_labeled_images,
    unreadable,
)
from ..processing.data.pairing import listed
from ..processing.data.token_labels import LabelMaps, MixToken, smoothed
from ..processing.data.unreadable import UNREADABLE, ReadableImages, readable_sample
from ..processing.image_opening import ImageReadError
from ..processing.metrics import percent
from .class_scores import score_classes
from .models import CLASSIFIER
from .option_texts import crop_size
from .setup import CHECKED_SAMPLES
from .sharing import share_of
from .tasks import Task

if TYPE_CHECKING:
    from .options import ClassificationArguments

EVALUATED_SHARE = 0.875  # side of the center crop over the shorter side of the image, as in timm
BICUBIC = 3


class ClassificationTask(Task):
    """See `Task`."""

    models = CLASSIFIER
    data_example = "a folder with one subfolder of images per class, such as imagenet/train"
    best_by, best_by_name, class_score = "top_1", "top-1 accuracy", "top_1"
    logged = ("top_1", "top_5", "val_loss")
    next_commands = (
        "contextseg-evaluate {run} --data {val}",
        "contextseg-predict {run} photo.jpg --output predictions",
    )

    def open(self, split: str) -> LabeledImages:
        name = getattr(self.arguments, split)
        data = open_labeled_images(name, **self.arguments.keywords())
        problems = unreadable(data, CHECKED_SAMPLES)
        if problems and not self.skips_unreadable:
            raise ValueError(f"{name}: {' '.join(problems[:5])} Repair or remove these files.")
        return data

    def check_same_classes(self, train: LabeledImages, val: LabeledImages) -> None:
        splits = [(self.arguments.train, train.classes), (self.arguments.val, val.classes)]
        for (here, classes), (there, others) in (splits, splits[::-1]):
            if missing := sorted(set(others) - set(classes)):
                raise ValueError(
                    f"{here} lacks {len(missing)} of the classes of {there}: {listed(missing)}. Both need the same class "
                    "folders; that of a class without validation images may be empty."
                )
        if train.classes != val.classes:
            raise ValueError(
                f"{self.arguments.train} and {self.arguments.val} have the same classes in different orders, starting with "
                f"{listed(train.classes)} and {listed(val.classes)}. Use the same order in both."
            )

    def generated(self, num_classes: int) -> Dataset:
        return GeneratedImages(crop_size(self.arguments.crop_size), num_classes)

    def prepare(self, model: PreTrainedModel, data: Dataset) -> None:
        """Sets a loss for soft labels, which transformers' own loss would treat as multi-label targets."""
        super().prepare(model, data)
        model.loss_function = soft_cross_entropy

    def new_processor(self) -> BitImageProcessor:
        """Resizes for a center crop of 0.875 of the shorter side, crops, and normalizes as for ImageNet."""
        height, width = crop_size(self.arguments.crop_size)
        return BitImageProcessor(
            size={"shortest_edge": round(max(height, width) / EVALUATED_SHARE)},
            crop_size={"height": height, "width": width},
            resample=BICUBIC,
            image_mean=IMAGENET_DEFAULT_MEAN,
            image_std=IMAGENET_DEFAULT_STD,
        )

    def new_samples(self, processor: BaseImageProcessor) -> "LabeledSamples":
        arguments, data = self.arguments, self.data
        if empty := data.empty_classes():
            raise ValueError(
                f"{arguments.train} has no images of {listed(empty)}. Add some, or remove the class folder."
            )
        targets = SoftLabels(len(data.classes), arguments.label_smoothing)
        size, cell = crop_size(arguments.crop_size), getattr(self.config, "patch_size", 4)
        if getattr(self.config, "use_token_labels", False):
            cell = token_stride(self.config)
            targets.grid = tuple(-(-side // cell) for side in size)
        if arguments.token_labels:
            targets.maps = open_label_maps(arguments.token_labels, data, targets)
        is_mixed = arguments.mix_token and arguments.augmentation
        return LabeledSamples(
            data,
            new_augmentation(arguments, processor),
            processor,
            targets,
            MixToken(cell, arguments.seed) if is_mixed else None,
        )

    def evaluation_images(
        self, data: Dataset, processor: BaseImageProcessor, accelerator: Accelerator
    ) -> DataLoader:
        return central_crops(data, processor, accelerator, self.arguments.workers)

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
    """Target of a training sample: its smoothed label and, if `grid` is set, one label per token."""

    num_classes: int
    smoothing: float
    grid: tuple[int, int] | None = None
    maps: LabelMaps | None = None

    def __call__(self, label: int, name: str, view: View) -> dict[str, Tensor]:
        """Returns labels (K,) and, with a grid, token_labels (K, h, w)."""
        labels = smoothed(label, self.num_classes, self.smoothing)
        if self.grid is None:
            return {"labels": labels}
        if self.maps is not None:
            return {"labels": labels, "token_labels": self.maps(name, view)}
        return {"labels": labels, "token_labels": labels[:, None, None].repeat(1, *self.grid)}


class LabeledSamples(Dataset):
    """Augmented and preprocessed training samples, indexed by (epoch, index)."""

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
        image, view = self.augmentation(sample["image"], epoch=epoch, index=index)
        prepared = self.processor(image, do_resize=False, do_center_crop=False, return_tensors="pt")
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
    """Images preprocessed for evaluation: resized and center-cropped by the processor."""

    def __init__(self, data: Dataset, processor: BaseImageProcessor) -> None:
        self.data, self.processor = data, processor

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.data[index]
        pixels = self.processor(sample["image"], return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": pixels, "labels": torch.tensor(sample["label"]), "name": sample["name"]}

    def name(self, index: int) -> str:
        """The name of an image in messages."""
        return self.data.name_of(index)


def central_crops(
    data: LabeledImages,
    processor: BaseImageProcessor,
    accelerator: Accelerator,
    workers: int | None,
    errors: tuple[type[Exception], ...] = (ImageReadError,),
) -> DataLoader:
    """Returns a loader of this process's share of `data`, for `score_classes`.

    Batches have the same images for any number of processes: the last digits of logits depend on the batch. An
    image that raises one of `errors` is replaced by its message, see `ReadableImages`.
    """
    batches = [range(first, min(first + 32, len(data))) for first in range(0, len(data), 32)]
    options = loader_options(workers, accelerator.device.type == "cuda")
    crops = ReadableImages(CentralCrops(data, processor), errors)
    share = share_of(batches, accelerator)
    return DataLoader(crops, batch_sampler=share, collate_fn=collate, **options)


def soft_cross_entropy(
    labels: Tensor,
    pooled_logits: Tensor,
    config: PreTrainedConfig,  # noqa: ARG001
    **options: Any,  # noqa: ARG001
) -> Tensor:
    """(B, K) class probabilities or (B,) class ids, (B, K) logits -> scalar.

    Argument names are those that transformers passes.
    """
    return F.cross_entropy(pooled_logits.float(), labels)


def token_stride(config: PreTrainedConfig) -> int:
    """Stride of the tokens of the last stage, in pixels."""
    return config.patch_size * 2 ** (len(config.depths) - 1)


def open_label_maps(folder: str, data: Dataset, targets: SoftLabels) -> LabelMaps:
    """Opens the label maps of `folder`, and reads that of the first image as a check."""
    if targets.grid is None:
        raise ValueError(
            "--token-labels needs a model with a token classifier. Add --model maformer --set use_token_labels=true."
        )
    if not isinstance(data, ClassFolders | GeneratedImages):
        raise ValueError(
            "--token-labels finds label maps by image file names. Give --train a folder with one subfolder per class."
        )
    maps = LabelMaps(Path(folder), targets.num_classes, targets.grid)
    if isinstance(data, ClassFolders):
        maps.read(maps.path(data.source(0)[2]))
    return maps


def new_augmentation(
    arguments: "ClassificationArguments", processor: BaseImageProcessor
) -> ImageAugmentation:
    """Builds the augmentation; with --no-augmentation, it is the largest center square, resized."""
    size = crop_size(arguments.crop_size)
    if not arguments.augmentation:
        return ImageAugmentation(size, (1.0, 1.0), (1.0, 1.0), 0.0, NO_RAND_AUGMENT, 0.0, 0.0)
    return ImageAugmentation(
        size,
        area_range=(arguments.min_area, 1.0),
        flip_probability=0.5 if arguments.horizontal_flip else 0.0,
        rand_augment=arguments.rand_augment,
        color_jitter=arguments.color_jitter,
        erasing_probability=arguments.random_erasing,
        mean_color=tuple(round(255 * mean) for mean in processor.image_mean),
        seed=arguments.seed,
    )
