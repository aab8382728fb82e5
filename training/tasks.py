"""The interface between the training loop and its tasks: segmentation of images and of volumes, classification,
detection and masked pretraining."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset
from transformers import BaseImageProcessor, PreTrainedModel

from .models import ModelKind
from .optimization_options import LEARNING_RATE
from .option_values import check_order
from .volumetric import trains_on_volumes

if TYPE_CHECKING:
    from .options import TrainArguments
    from .validation_pictures import ValidationPictures

# Imported on demand, so that a task imports only the packages that it needs.
TASKS = {
    "segmentation": ("segmentation", "SegmentationTask"),
    "volume_segmentation": ("volume_segmentation", "VolumeSegmentationTask"),
    "classification": ("classification", "ClassificationTask"),
    "detection": ("detection", "DetectionTask"),
    "masked_pretraining": ("masked_pretraining", "MaskedPretrainingTask"),
}


class Task(ABC):
    """The task-specific part of a run; loop, checkpoints, resuming and records are shared by all tasks.

    Datasets have an attribute `classes`, training samples a method `collate`. `prepare` is called before
    every method that needs the training data or the model's configuration.

    Args:
        arguments: Options of the run.
    """

    models: ClassVar[ModelKind]
    data_example: ClassVar[str]  # an example of --train, for messages
    sample: ClassVar[str] = "image"  # what the data has many of, for messages
    best_by: ClassVar[str]  # the score that selects best/; higher is better
    best_by_name: ClassVar[str]  # its name in plots
    class_score: ClassVar[str]  # the score in `per_class` to show for every class
    logged: ClassVar[tuple[str, ...]]  # the scores to log
    batch_size: ClassVar[int] = 8  # without --batch-size
    trial_samples: ClassVar[int] = 2  # of a dry run
    picture_file: ClassVar[str | None] = (
        None  # where the pictures of the best evaluation are kept, in the run
    )
    next_commands: ClassVar[tuple[str, ...]]  # commands to suggest after training, with {run} and {val}

    def __init__(self, arguments: "TrainArguments") -> None:
        self.arguments = arguments
        if arguments.batch_size is None and self.batch_size:
            arguments.batch_size = self.batch_size
        if arguments.learning_rate is None:
            arguments.learning_rate = self.usual_learning_rate(arguments)
            check_order(arguments, "min_learning_rate", "learning_rate")
        self.skips_unreadable = arguments.unreadable == "skip"
        self.pictures: ValidationPictures | None = None  # of the latest evaluation, if the task makes some

    @classmethod
    def usual_learning_rate(cls, arguments: "TrainArguments") -> float:  # noqa: ARG003 - tasks differ
        """Returns the peak learning rate without --learning-rate."""
        return LEARNING_RATE

    @abstractmethod
    def open(self, split: str) -> Dataset:
        """Opens the data of a split, "train" or "val", and checks a sample.

        Raises ValueError if it cannot be used.
        """

    @abstractmethod
    def check_same_classes(self, train: Dataset, val: Dataset) -> None:
        """Raises ValueError if the splits have different classes."""

    @abstractmethod
    def generated(self, num_classes: int) -> Dataset:
        """Returns a dataset of two noise samples, for a dry run."""

    def plan(self, train: Dataset, val: Dataset | None) -> list[str]:  # noqa: ARG002 - tasks differ
        """Plans what depends on the data, sets options that were not given, and returns the plan in words."""
        return []

    def record(self) -> dict[str, Any]:
        """Returns what the task adds to `run.json`."""
        return {}

    def model_fields(self, data: Dataset) -> dict[str, Any]:  # noqa: ARG002 - tasks differ
        """Returns the configuration fields that options of the task set, other than --set."""
        return {}

    def prepare(self, model: PreTrainedModel, data: Dataset) -> None:
        """Adapts the model to the training data, and stores the data and the model's configuration."""
        self.config, self.data = model.config, data

    @abstractmethod
    def new_processor(self) -> BaseImageProcessor:
        """Builds the image processor that is saved with the model."""

    @abstractmethod
    def new_samples(self, processor: BaseImageProcessor) -> Dataset:
        """Builds the augmented training samples, indexed by (epoch, index)."""

    def count(self, batch: dict[str, Any]) -> float:
        """Returns the number of items that the loss averages over; by default, the number of images."""
        return float(len(batch["name"]))

    @abstractmethod
    def evaluation_images(
        self, data: Dataset, processor: BaseImageProcessor, accelerator: Accelerator
    ) -> DataLoader:
        """Returns a loader of this process's share of `data`, for `score`."""

    @abstractmethod
    def score(
        self, model: PreTrainedModel, images: Iterable[dict[str, Any]], accelerator: Accelerator
    ) -> dict[str, Any]:
        """Returns the scores over the images of all processes."""

    @abstractmethod
    def summary(self, scores: dict[str, Any]) -> str:
        """Returns the scores in a few words, for the line printed after each evaluation."""

    @abstractmethod
    def headline(self, scores: dict[str, Any]) -> str:
        """Returns the score that `best_by` names, in words."""


def task_for(arguments: "TrainArguments") -> Task:
    """Returns the task of a run; volumes are segmented by a task of their own."""
    name = "volume_segmentation" if trains_on_volumes(arguments) else arguments.task
    return task_of(name)(arguments)


def task_of(name: str) -> type[Task]:
    """Returns the class of a task by its name, such as "segmentation"."""
    module, kind = TASKS[name]
    return getattr(import_module(f".{module}", __package__), kind)
