"""Training of semantic segmenters: image-mask pairs, joint augmentation, mean IoU over whole images."""

import logging
import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..modeling.pretrained_backbones import encoder_normalization
from ..processing.data.augmentation import JointAugmentation
from ..processing.data.batches import TrainingSamples
from ..processing.data.class_table import ClassTable
from ..processing.data.datasets import SegmentationData, open_data
from ..processing.data.official_layouts import with_split
from ..processing.data.report import check_data
from ..processing.image_opening import PIXEL_LIMIT
from ..processing.image_processing_segmentation import SegmentationImageProcessor
from ..processing.image_windows import check_image_windows
from ..processing.mask_models import FIXED_SIZE
from ..processing.metrics import percent
from .loss_fields import loss_fields
from .models import SEGMENTER, class_names, ignore_index_field
from .option_texts import crop_size, height_and_width, parse_overrides
from .scoring import score, whole_images
from .setup import CHECKED_SAMPLES
from .starting_points import channels_of_checkpoint, checkpoint_of
from .tasks import Task
from .validation_pictures import PICTURES, ValidationPictures
from .volume_options import check_for_images

if TYPE_CHECKING:
    from .finetuning_options import FinetuneOptions
    from .options import SegmentationArguments

logger = logging.getLogger(__name__)

CROP_SIZE = "512"  # without --crop-size
LARGE_CROP = 384 * 384  # pixels from which SegDeformer's full attention outweighs the rest of a small model


class SegmentationTask(Task):
    """See `Task`."""

    models = SEGMENTER
    data_example = "a folder with images/ and masks/, such as data/train"
    best_by, best_by_name, class_score = "mean_iou", "mIoU", "iou"
    logged = ("mean_iou", "mean_accuracy", "pixel_accuracy")

    def __init__(self, arguments: "SegmentationArguments") -> None:
        super().__init__(arguments)
        check_for_images(arguments)

    @property
    def next_commands(self) -> tuple[str, ...]:
        windows = self.arguments.window_options()
        return (
            f"contextseg-evaluate {{run}} --data {{val}}{windows}",
            f"contextseg-predict {{run}} photo.jpg --output masks/{windows}",
        )

    def open(self, split: str) -> SegmentationData:
        name = getattr(self.arguments, split)
        reading = self.arguments.keywords() | {"num_channels": self.num_channels}
        data = open_data(with_split(name, split), **reading)
        report = check_data(data, CHECKED_SAMPLES, name=name, skip_unreadable=self.skips_unreadable)
        for warning in report.warnings:
            logger.warning("%s: %s", name, warning)
        if report.problems:
            command = f"contextseg-check {name}{self.arguments.words()}"
            raise ValueError(f"{name}: {' '.join(report.problems)} Run {command} for details.")
        return data

    def check_same_classes(self, train: SegmentationData, val: SegmentationData) -> None:
        if list(train.classes) != list(val.classes):
            raise ValueError(
                f"{self.arguments.train} has the classes {', '.join(train.classes)}, but {self.arguments.val} has "
                f"{', '.join(val.classes)}. Use the same classes.json for both."
            )

    def generated(self, num_classes: int) -> Dataset:
        size = crop_size(self.arguments.crop_size or CROP_SIZE)
        return GeneratedPairs(size, num_classes, self.num_channels)

    @cached_property
    def num_channels(self) -> int:
        """Channels of the images: those of --num-channels, --set, or the checkpoint, else 3."""
        given = self.arguments.num_channels or parse_overrides(self.arguments.set).get("num_channels")
        return given or self.known_channels

    @property
    def known_channels(self) -> int:
        """Channels of the checkpoint that the run starts from; 3 without one."""
        is_new = self.arguments.preset is not None  # with a checkpoint, too, the model cannot be built
        return 3 if is_new else channels_of_checkpoint(self.arguments.init_from)

    def model_fields(self, data: SegmentationData) -> dict[str, Any]:
        fields, channels = loss_fields(self.arguments, data), self.arguments.num_channels
        if channels not in (None, self.known_channels):
            fields["num_channels"] = channels
        return fields

    def prepare(self, model: PreTrainedModel, data: SegmentationData) -> None:
        super().prepare(model, data)
        check_image_windows(self.arguments.inference(), model)
        warn_of_full_attention(model.config, crop_size(self.arguments.crop_size or CROP_SIZE))
        setattr(model.config, ignore_index_field(model.config), data.ignore_index)

    def new_processor(self) -> SegmentationImageProcessor:
        source = self.arguments.init_from
        processor = processor_of(self.data, source and checkpoint_of(source))
        processor.size = resize_rule(self.arguments)
        return processor

    def new_samples(self, processor: BaseImageProcessor) -> TrainingSamples:
        augmentation = new_augmentation(
            self.arguments,
            processor,
            self.config,
            seed=self.arguments.seed,
            base_size=base_size(self.arguments),
        )
        return TrainingSamples(self.data, augmentation, processor)

    def count(self, batch: dict[str, Any]) -> float:
        """Number of pixels that the cross-entropy averages over, each times the weight of its class."""
        return counted_pixels(batch["labels"], self.config)

    def evaluation_images(
        self, data: Dataset, processor: BaseImageProcessor, accelerator: Accelerator
    ) -> DataLoader:
        # Nobody sees pictures without a tracker.
        self.palette, shown = processor.palette, PICTURES * bool(accelerator.trackers or accelerator.log_with)
        inference, workers = self.arguments.inference(), self.arguments.workers
        return whole_images(data, processor, inference, accelerator, workers, pictures=shown)

    def score(
        self, model: PreTrainedModel, images: Iterable[dict[str, Any]], accelerator: Accelerator
    ) -> dict[str, Any]:
        names, ignore_index = class_names(model), getattr(model.config, ignore_index_field(model.config))
        self.pictures = ValidationPictures(names, self.palette, ignore_index)
        return score(
            model,
            images,
            accelerator,
            class_names=names,
            ignore_index=ignore_index,
            inference=self.arguments.inference(),
            pictures=self.pictures,
        )

    def summary(self, scores: dict[str, Any]) -> str:
        return f"{self.headline(scores)}, pixel accuracy {percent(scores['pixel_accuracy'])} %"

    def headline(self, scores: dict[str, Any]) -> str:
        return f"mIoU {percent(scores['mean_iou'])} %"


def counted_pixels(labels: Tensor, config: PreTrainedConfig) -> float:
    """(B, H, W) labels -> the divisor of the loss; for models of transformers, the labeled pixels."""
    if getattr(config, "loss_reduction", "valid") == "all":
        return float(labels.numel())
    is_labeled = labels != getattr(config, ignore_index_field(config))
    weights = getattr(config, "class_weights", None)
    if weights is None:
        return float(is_labeled.sum())
    known = labels[is_labeled].clamp(0, len(weights) - 1)  # the model reports labels out of range
    return float(torch.tensor(weights)[known].sum())


def processor_of(data: SegmentationData, source: str | None = None) -> SegmentationImageProcessor:
    """Builds an image processor that does not resize, and that stores how the data encodes masks.

    Args:
        data: Training data, with palette, label map and ignore index.
        source: Checkpoint whose normalization (mean and std) to use; default: ImageNet's.
    """
    mean, std = encoder_normalization(source) if source else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    return SegmentationImageProcessor(
        palette=data.palette,
        label_map=data.label_map,
        ignore_index=data.ignore_index,
        value_range=data.value_range,
        pixel_limit=data.pixel_limit,
        do_convert_rgb=data.num_channels == 3,
        image_mean=for_channels(mean, data.num_channels),
        image_std=for_channels(std, data.num_channels),
    )


def for_channels(values: Sequence[float], num_channels: int) -> tuple[float, ...]:
    """One value per channel: the known ones and their mean for further channels; with fewer channels, the mean."""
    mean, known = sum(values) / len(values), tuple(values)
    if len(known) > num_channels:
        return (mean,) * num_channels
    return known + (mean,) * (num_channels - len(known))


def base_size(arguments: "SegmentationArguments") -> tuple[int, int] | None:
    """Parses --base-size; None if it is not given."""
    return arguments.base_size and height_and_width(arguments.base_size, "--base-size")


def resize_rule(arguments: "SegmentationArguments") -> dict[str, int] | None:
    """Returns the processor's `size`, so that evaluation fits images into the base size as training does."""
    sides = base_size(arguments)
    return sides and {"shortest_edge": min(sides), "longest_edge": max(sides)}


class GeneratedPairs(Dataset):
    """Two noise images with masks of random rectangles."""

    palette = label_map = value_range = None
    pixel_limit = PIXEL_LIMIT

    def __init__(self, size: tuple[int, int], num_classes: int, num_channels: int = 3) -> None:
        self.size, self.num_channels = size, num_channels
        table = ClassTable([f"class {index}" for index in range(num_classes)])
        self.classes, self.ignore_index = table.names, table.ignore_index

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, Any]:
        random = np.random.default_rng(index)
        corner = random.integers(0, self.size)
        mask = np.full(self.size, random.integers(len(self.classes)))
        mask[corner[0] :, corner[1] :] = random.integers(len(self.classes))
        image = random.integers(0, 256, (*self.size, self.num_channels), dtype=np.uint8)
        return {"image": image, "mask": mask, "name": f"noise {index}"}


def new_augmentation(
    options: "SegmentationArguments | FinetuneOptions",
    processor: SegmentationImageProcessor,
    config: PreTrainedConfig,
    *,
    seed: int,
    base_size: tuple[int, int] | None = None,
) -> JointAugmentation:
    """The augmentation that the options describe; with --no-augmentation, random crops only.

    For a model with two scales, by its configuration, it cuts crop pairs. Crops for an EoMT have the size of its images.
    """
    is_full, context_ratio = options.augmentation, getattr(config, "context_ratio", None)
    usual = CROP_SIZE if context_ratio is None else str(config.crop_size)
    if getattr(config, "model_type", None) in FIXED_SIZE:
        usual = str(config.image_size)
    means = [mean / processor.rescale_factor for mean in processor.image_mean]
    return JointAugmentation(
        crop_size=crop_size(options.crop_size or usual),
        base_size=base_size,
        scale_range=(options.min_scale, options.max_scale) if is_full else (1.0, 1.0),
        flip_probability=0.5 if is_full and options.horizontal_flip else 0.0,
        use_photometric_distortion=is_full,
        rotation=options.rotation if is_full else 0.0,
        fill=tuple(means if context_ratio is not None else map(round, means)),
        ignore_index=processor.ignore_index,
        seed=seed,
        resize_share=options.resize_share,
        rotation_share=options.rotation_share,
        context_ratio=context_ratio,
        context_sampling=options.context_sampling,
    )


def warn_of_full_attention(config: PreTrainedConfig, crop: tuple[int, int]) -> None:
    """Warns where SegDeformer attends to every position of a large crop; its cost is quadratic in the pixels."""
    is_full = getattr(config, "decoder", None) == "segdeformer" and config.reduction_ratio == 1
    if is_full and math.prod(crop) >= LARGE_CROP:
        logger.warning(
            "SegDeformer attends to every position of crops of %dx%d, which costs several times as much as the rest of a small "
            "model. --set reduction_ratio=4 is the paper's efficient attention",
            *crop,
        )
