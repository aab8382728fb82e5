"""What tells one kind of training from another. The loop, checkpoints, resuming and records are shared by all of them."""

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

# Imported when asked for, so that a task pays for its own packages only.
TASKS = {
    "segmentation": ("segmentation", "SegmentationTask"),
    "classification": ("classification", "ClassificationTask"),
    "detection": ("detection", "DetectionTask"),
}


class Task(ABC):
    """A kind of training. Data sets tell their `classes`; samples of training have a method `collate`."""

    models: ClassVar[ModelKind]
    data_example: ClassVar[str]  # what --train takes, for messages
    best_by: ClassVar[str]  # the score by which best/ is chosen; larger is better
    logged: ClassVar[tuple[str, ...]]  # the scores that make curves
    next_commands: ClassVar[tuple[str, ...]]  # what to do with {run} and {val} after training

    def __init__(self, arguments: "TrainArguments | None" = None) -> None:
        self.arguments = arguments  # of the run, where there is one
        self.skips_unreadable = arguments is not None and arguments.unreadable == "skip"

    @abstractmethod
    def open(self, name: str, split: str) -> Dataset:
        """The data of this name, after a look at a sample of it.

        split: "train" or "val", what it is for, and which part of a data set that is published in parts.
        """

    @abstractmethod
    def check_same_classes(self, train: Dataset, val: Dataset, arguments: "TrainArguments") -> None:
        """Raises where the splits disagree."""

    @abstractmethod
    def generated(self, arguments: "TrainArguments", num_classes: int) -> Dataset:
        """Two samples made of noise, for a dry run."""

    @abstractmethod
    def new_processor(self, arguments: "TrainArguments", data: Dataset) -> BaseImageProcessor: ...

    def prepare(self, model: PreTrainedModel, data: Dataset) -> None:  # noqa: B027
        """Changes what training on this data needs otherwise than the model was built."""

    @abstractmethod
    def new_samples(
        self,
        arguments: "TrainArguments",
        data: Dataset,
        processor: BaseImageProcessor,
        model: PreTrainedModel,
    ) -> Dataset:
        """Augmented samples by (epoch, index)."""

    def count(self, batch: dict[str, Any], model: PreTrainedModel) -> float:  # noqa: ARG002
        """What the model's loss of this batch is the mean over: its images."""
        return float(len(batch["name"]))

    @abstractmethod
    def evaluation_images(
        self, data: Dataset, processor: BaseImageProcessor, accelerator: Accelerator, workers: int | None
    ) -> DataLoader:
        """This process's share of the images of `data`, for `score`."""

    @abstractmethod
    def score(
        self,
        model: PreTrainedModel,
        processor: BaseImageProcessor,
        images: Iterable[dict[str, Any]],
        accelerator: Accelerator,
    ) -> dict[str, Any]:
        """Scores over the images of all processes."""

    @abstractmethod
    def summary(self, scores: dict[str, Any]) -> str:
        """The scores in a few words."""

    @abstractmethod
    def headline(self, scores: dict[str, Any]) -> str:
        """The score that `best_by` names, in words."""


def task_of(name: str, arguments: "TrainArguments | None" = None) -> Task:
    module, kind = TASKS[name]
    return getattr(import_module(f".{module}", __package__), kind)(arguments)
