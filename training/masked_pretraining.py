"""Masked pretraining (SimMIM): images alone, random crops, the mean error of masked pixels.

The crops, and the contexts of a model with two scales, are those of segmentation.

Legend: B batch, C channels, H, W pixels of a crop, h, w patches.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import (
    AutoModelForMaskedImageModeling,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)

from ..configuration.configuration_caswit import CaswitConfig
from ..configuration.configuration_glam_swin import GlamSwinConfig
from ..configuration.configuration_maformer import MaformerConfig
from ..modeling.masked_images import MASK_UNIT, enlarged, random_mask
from ..modeling.modeling_caswit_masked import CaswitForMaskedImageModeling
from ..modeling.modeling_glam_swin import GlamSwinForMaskedImageModeling
from ..modeling.modeling_maformer import MaformerForMaskedImageModeling
from ..processing.data.augmentation import JointAugmentation
from ..processing.data.batches import TrainingSamples, collate, loader_options
from ..processing.data.labeled_images import unreadable
from ..processing.data.unlabeled_images import UnlabeledImages
from ..processing.data.unreadable import ReadableImages
from ..processing.image_processing_segmentation import SegmentationImageProcessor
from .models import ModelKind
from .segmentation import SegmentationTask, new_augmentation, processor_of
from .setup import CHECKED_SAMPLES
from .starting_points import checkpoint_of
from .tasks import Task

if TYPE_CHECKING:
    from .options import MaskedPretrainingArguments

MASKED = ModelKind(
    "masked pretraining",
    {
        CaswitConfig: CaswitForMaskedImageModeling,
        GlamSwinConfig: GlamSwinForMaskedImageModeling,
        MaformerConfig: MaformerForMaskedImageModeling,
    },
    AutoModelForMaskedImageModeling,
)


ANY_CONTENT = {"cat_max_ratio": 1.0}  # crops are not drawn again for their classes, as there are none
# Of an augmentation that only cuts crops.
UNCHANGED = {
    "scale_range": (1.0, 1.0),
    "flip_probability": 0.0,
    "use_photometric_distortion": False,
    "rotation": 0.0,
    **ANY_CONTENT,
}


class MaskedPretrainingTask(SegmentationTask):
    """See `Task`."""

    arguments: "MaskedPretrainingArguments"
    models = MASKED
    data_example = "a folder of images"
    best_by, best_by_name, class_score = "negative_loss", "minus the loss", "images"
    logged = ("val_loss",)
    next_commands = ("contextseg-train --init-from {run} --train data/train --output runs/segmenter",)

    def open(self, split: str) -> UnlabeledImages:
        name = getattr(self.arguments, split)
        data = UnlabeledImages(name, **{**self.arguments.keywords(), "num_channels": self.num_channels})
        problems = unreadable(data, CHECKED_SAMPLES)
        if problems and not self.skips_unreadable:
            raise ValueError(f"{name}: {' '.join(problems[:5])} Repair or remove these files.")
        return data

    def check_same_classes(self, train: Dataset, val: Dataset) -> None:
        """Images have no classes."""

    def generated(self, num_classes: int) -> Dataset:  # noqa: ARG002 - images have no classes
        return super().generated(1)

    def model_fields(self, data: Dataset) -> dict[str, Any]:  # noqa: ARG002
        channels = self.arguments.num_channels
        return {} if channels in (None, self.known_channels) else {"num_channels": channels}

    def prepare(self, model: PreTrainedModel, data: Dataset) -> None:
        """As in every task: there are neither labels to ignore nor windows to predict."""
        Task.prepare(self, model, data)

    def new_processor(self) -> SegmentationImageProcessor:
        source = self.arguments.init_from
        return processor_of(self.data, source and checkpoint_of(source))

    def new_samples(self, processor: BaseImageProcessor) -> "MaskedSamples":
        augmentation = new_augmentation(self.arguments, processor, self.config, seed=self.arguments.seed)
        return MaskedSamples(self.data, replace(augmentation, **ANY_CONTENT), processor)

    def count(self, batch: dict[str, Any]) -> float:
        """Number of images."""
        return float(len(batch["name"]))

    def evaluation_images(
        self, data: Dataset, processor: BaseImageProcessor, accelerator: Accelerator
    ) -> DataLoader:
        augmentation = new_augmentation(self.arguments, processor, self.config, seed=0)
        crops = MaskedCrops(data, replace(augmentation, **UNCHANGED), processor, self.config)
        indices = range(accelerator.process_index, len(data), accelerator.num_processes)
        options = loader_options(self.arguments.workers, accelerator.device.type == "cuda")
        batch = self.arguments.batch_size
        return DataLoader(ReadableImages(crops), batch, sampler=indices, collate_fn=collate, **options)

    def score(
        self, model: PreTrainedModel, images: Iterable[dict[str, Any]], accelerator: Accelerator
    ) -> dict[str, Any]:
        return score_reconstructions(model, images, accelerator)

    def summary(self, scores: dict[str, Any]) -> str:
        return self.headline(scores)

    def headline(self, scores: dict[str, Any]) -> str:
        return f"loss {scores['val_loss']:.4f}"


class MaskedSamples(TrainingSamples):
    """Augmented and normalized crops without labels, indexed by (epoch, index)."""

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        sample = super().__getitem__(key)
        labels = sample.pop("labels")
        sample.pop("context_labels", None)
        return {**sample, "pixel_mask": (labels != self.augmentation.ignore_index).long()}


class MaskedCrops(Dataset):
    """One crop of each image with its mask, the same in every evaluation."""

    def __init__(
        self,
        data: Dataset,
        augmentation: JointAugmentation,
        processor: BaseImageProcessor,
        config: PreTrainedConfig,
    ) -> None:
        self.data, self.samples = data, MaskedSamples(data, augmentation, processor)
        self.patch = config.patch_size

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.samples[0, index]
        size = sample["pixel_values"].shape[1:]
        grid = tuple((side + self.patch - 1) // self.patch for side in size)
        generator = torch.Generator().manual_seed(index)
        unit = max(MASK_UNIT // self.patch, 1)
        return {**sample, "bool_masked_pos": random_mask(1, grid, unit, generator=generator)[0]}


@torch.inference_mode()
def score_reconstructions(
    model: PreTrainedModel, images: Iterable[dict[str, Any]], accelerator: Accelerator
) -> dict[str, Any]:
    """Scores a masked image model on the images of all processes.

    Args:
        model: The model; it is left in the mode (training or evaluation) in which it was passed.
        images: Batches of `MaskedCrops` of this process.
        accelerator: Sums over processes.

    Returns:
        `val_loss`, the mean absolute error of all masked pixels; `negative_loss`; `images`; and no `per_class`.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=accelerator.device)
    for batch in images:
        inputs = {name: value.to(accelerator.device) for name, value in batch.items() if name != "name"}
        pixels = masked_pixels(inputs, model.config.patch_size)
        loss = model(**inputs).loss.double()
        sums += torch.stack([loss * pixels, pixels, torch.full_like(loss, len(batch["name"]))])
    model.train(was_training)
    error, pixels, images = accelerator.reduce(sums).tolist()
    loss = error / pixels if pixels else float("nan")
    return {"val_loss": loss, "negative_loss": -loss, "images": int(images), "per_class": []}


def masked_pixels(inputs: dict[str, Tensor], patch: int) -> Tensor:
    """Inputs with masks (B, h, w) of patches and (B, H, W) of pixels -> number of masked pixels of the images."""
    inside = inputs["pixel_mask"].bool()
    masked = enlarged(inputs["bool_masked_pos"], patch)[:, : inside.shape[1], : inside.shape[2]]
    return (masked & inside).sum().double()
