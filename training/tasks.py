"""What distinguishes one kind of training from another; the loop, checkpoints, resuming and records are shared by all."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset
from transformers import BaseImageProcessor, PreTrainedModel

from .models import ModelKind

if TYPE_CHECKING:
    from .options import TrainArguments

# Imported on demand, so that a task pays for its own packages only.
TASKS = {
    "segmentation": ("segmentation", "SegmentationTask"),
    "classification": ("classification", "ClassificationTask"),
    "detection": ("detection", "DetectionTask"),
}


class Task(ABC):
    """The part of a run that depends on its task. Data sets have `classes`, and training samples a method `collate`.

    `prepare` comes before all that needs the training data or the model's configuration.
    """

    models: ClassVar[ModelKind]
    data_example: ClassVar[str]  # what --train takes, for messages
    best_by: ClassVar[str]  # the score by which best/ is chosen; larger is better
    logged: ClassVar[tuple[str, ...]]  # the scores that make curves
    next_commands: ClassVar[tuple[str, ...]]  # what to do with {run} and {val} after training

    def __init__(self, arguments: "TrainArguments") -> None:
        self.arguments = arguments
        self.skips_unreadable = arguments.unreadable == "skip"

    @abstractmethod
    def open(self, split: str) -> Dataset:
        """The data that the arguments name for a split, "train" or "val", after a look at a sample of it."""

    @abstractmethod
    def check_same_classes(self, train: Dataset, val: Dataset) -> None:
        """Raises ValueError if the splits have different classes."""

    @abstractmethod
    def generated(self, num_classes: int) -> Dataset:
        """Two samples made of noise, for a dry run."""

    def prepare(self, model: PreTrainedModel, data: Dataset) -> None:
        """Adapts the model to the training data, and remembers the data and the model's configuration."""
        self.config, self.data = model.config, data

    @abstractmethod
    def new_processor(self) -> BaseImageProcessor:
        """The image processor that is saved with the model."""

    @abstractmethod
    def new_samples(self, processor: BaseImageProcessor) -> Dataset:
        """Augmented training samples by (epoch, index)."""

    def count(self, batch: dict[str, Any]) -> float:
        """The number of things that the loss of this batch is the mean over: images, if nothing else is said."""
        return float(len(batch["name"]))

    @abstractmethod
    def evaluation_images(
        self, data: Dataset, processor: BaseImageProcessor, accelerator: Accelerator
    ) -> DataLoader:
        """This process's share of the images of `data`, for `score`."""

    @abstractmethod
    def score(
        self, model: PreTrainedModel, images: Iterable[dict[str, Any]], accelerator: Accelerator
    ) -> dict[str, Any]:
        """Scores over the images of all processes."""

    @abstractmethod
    def summary(self, scores: dict[str, Any]) -> str:
        """The scores in a few words."""

    @abstractmethod
    def headline(self, scores: dict[str, Any]) -> str:
        """The score that `best_by` names, in words."""


def task_of(name: str) -> type[Task]:
    """The class of a task by its name, such as "segmentation"."""
    module, kind = TASKS[name]
    return getattr(import_module(f".{module}", __package__), kind)
