"""Training of segmenters of volumes: a plan from sizes and spacings, crops of prepared volumes, mean Dice over whole cases."""

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Dataset
from transformers import BaseImageProcessor, PreTrainedModel

from ..processing.data.batches import evaluation_loader
from ..processing.data.volume_datasets import VolumeData, open_volume_data
from ..processing.data.volume_samples import TrainingPatches
from ..processing.failures import telling
from ..processing.image_processing_volume import VolumeImageProcessor
from ..processing.image_reading import ImageReadError
from ..processing.inference import Inference
from ..processing.metrics import percent
from ..processing.volumes.prepared_volumes import PreparedVolumes
from ..processing.volumes.volume_inference import segment_volume
from ..processing.volumes.volume_scores import VolumeScores
from .generated_volumes import GeneratedVolumes
from .interruption import interruptible
from .loss_fields import loss_fields
from .models import SEGMENTER, class_names, ignore_index_field
from .option_texts import parse_overrides
from .segmentation import counted_pixels
from .tasks import Task
from .volume_options import check_for_volumes
from .volume_pictures import VolumePictures
from .volume_planning import VolumePlan, plan_volumes, times
from .volume_settings import augmentation_of, given_values, has_geometry, network_fields, processor_of
from .volumetric import described_model

logger = logging.getLogger(__name__)

PREPARED = "prepared"
CROP_SIZE = (64, 128, 128)  # without data, from which it is planned


class VolumeSegmentationTask(Task):
    """See `Task`."""

    models = SEGMENTER
    data_example = "a folder of nnU-Net, such as Dataset004_Hippocampus, or one with images/ and labels/"
    sample = "volume"
    best_by, best_by_name, class_score = "mean_dice", "Dice", "dice"
    logged = ("mean_dice",)
    batch_size, trial_samples = None, 1
    next_commands = (
        "contextseg-evaluate {run} --data {val}",
        "contextseg-predict {run} case.nii.gz --output masks/",
    )
    picture_file = "slices.png"

    @classmethod
    def usual_learning_rate(cls, arguments: Any) -> float:
        return super().usual_learning_rate(arguments) if arguments.init_from else 1e-3

    def __init__(self, arguments: Any) -> None:
        super().__init__(arguments)
        check_for_volumes(arguments)
        self.described, self.planned = described_model(arguments), None

    def open(self, split: str) -> VolumeData:
        name, both = getattr(self.arguments, split), self.arguments.train == self.arguments.val
        data = open_volume_data(
            name,
            split if both else None,
            num_channels=self.arguments.num_channels,
            classes=self.arguments.classes,
        )
        for warning in data.warnings:
            logger.warning("%s: %s", name, warning)
        return data

    def check_same_classes(self, train: VolumeData, val: VolumeData) -> None:
        check_same(train, val, self.arguments.train, self.arguments.val)

    def generated(self, num_classes: int) -> Dataset:
        size = given_values(self.arguments).crop_size or getattr(self.described, "crop_size", CROP_SIZE)
        return GeneratedVolumes(size, num_classes, self.described.num_channels)

    def plan(self, train: VolumeData | GeneratedVolumes, val: VolumeData | None) -> list[str]:
        """Plans the run from the headers of the training data; the plan becomes part of the options of the run."""
        arguments = self.arguments
        geometries = [train.geometry(index) for index in range(len(train))]
        given = given_values(arguments, self.described)
        sizes, spacings = zip(*((geometry.size, geometry.spacing) for geometry in geometries), strict=True)
        plan = plan_volumes(sizes, spacings, given)
        arguments.crop_size, arguments.slice_axis = times(plan.crop_size), plan.slice_axis
        arguments.target_spacing = times(plan.target_spacing)
        arguments.batch_size = plan.batch_size
        for data in filter(None, (train, val)):
            data.slice_axis = plan.slice_axis
        self.planned: VolumePlan | None = plan
        return plan.lines() if isinstance(train, VolumeData) else plan.lines()[1:]  # noise has no spacing

    def record(self) -> dict[str, Any]:
        return {"plan": self.planned.record()} if self.planned else {}

    def model_fields(self, data: Dataset) -> dict[str, Any]:
        given = parse_overrides(self.arguments.set)
        fields = {}
        if self.planned:
            is_fixed = has_geometry(self.arguments, self.described)
            fields = network_fields(self.planned, self.described, is_fixed)
        if data.num_channels != self.described.num_channels:
            fields["num_channels"] = data.num_channels
        fields = {name: value for name, value in fields.items() if name not in given}
        return fields | loss_fields(self.arguments, data)

    def prepare(self, model: PreTrainedModel, data: Dataset) -> None:
        super().prepare(model, data)
        setattr(model.config, ignore_index_field(model.config), data.ignore_index)

    def new_processor(self) -> BaseImageProcessor:
        return processor_of(self.arguments, self.data)

    def new_samples(self, processor: VolumeImageProcessor) -> Dataset:
        if isinstance(self.data, GeneratedVolumes):
            return self.data
        arguments = self.arguments
        where = arguments.output or Path(gettempdir()) / "contextseg-dry-run"
        samples = TrainingPatches(
            self.data,
            processor,
            self.planned.crop_size,
            folder=arguments.prepared or Path(where) / PREPARED,
            foreground_share=arguments.foreground_share,
            augmentation=augmentation_of(arguments),
            seed=arguments.seed,
            crops=arguments.crops_per_image,
        )
        if not arguments.dry_run:
            is_own = arguments.output and not arguments.prepared  # a folder that no other run shares
            prepare_volumes(samples.volumes, has_stale=bool(is_own), skip=self.skips_unreadable)
        return samples

    def count(self, batch: dict[str, Any]) -> float:
        """Number of voxels that the cross-entropy averages over, each times the weight of its class."""
        return counted_pixels(batch["labels"], self.config)

    def evaluation_images(
        self, data: VolumeData, processor: VolumeImageProcessor, accelerator: Accelerator
    ) -> DataLoader:
        self.processor, self.regions = processor, data.regions
        return evaluation_loader(
            WholeVolumes(data),
            workers=min(1, self.arguments.workers or 0),
            rank=accelerator.process_index,
            world=accelerator.num_processes,
        )

    def score(
        self, model: PreTrainedModel, images: Iterable[dict[str, Any]], accelerator: Accelerator
    ) -> dict[str, Any]:
        names, ignore_index = class_names(model), getattr(model.config, ignore_index_field(model.config))
        scores = VolumeScores(names, ignore_index, regions=self.regions, with_surfaces=False)
        self.pictures = VolumePictures(names, self.processor.palette, ignore_index)
        was_training, inference, cases = model.training, self.inference(), []
        model.eval()
        for sample in images:
            volume = sample["image"]
            mask = segment_volume(model, self.processor, volume, inference)
            cases.append(
                (sample["index"], scores.update(mask, sample["mask"], volume.spacing, sample["name"]))
            )
            if accelerator.is_main_process:
                self.pictures.add_volume(volume, sample["mask"], mask)
        model.train(was_training)
        scores.cases = [case for _, case in sorted(gather_object(cases), key=lambda pair: pair[0])]
        return scores.compute()

    def inference(self) -> Inference:
        """How volumes are segmented: in windows of the crop size unless others are given."""
        inference = self.arguments.inference()
        return inference if inference.window else replace(inference, window=self.planned.crop_size)

    def summary(self, scores: dict[str, Any]) -> str:
        return self.headline(scores)

    def headline(self, scores: dict[str, Any]) -> str:
        return f"mean Dice {percent(scores['mean_dice'])} %"


def prepare_volumes(volumes: PreparedVolumes, *, has_stale: bool, skip: bool) -> None:
    """Prepares the volumes that are missing, divided among the processes.

    Ctrl-C and SIGTERM end the program at once, since there is no checkpoint to save: what is prepared is found again.

    Args:
        volumes: The volumes.
        has_stale: Whether to remove those of earlier runs from the folder before.
        skip: Whether volumes may be unreadable.

    Raises:
        ImageReadError: If volumes cannot be read, unless `skip`; it names all of them.
    """
    state = PartialState()
    if state.is_main_process and has_stale:
        volumes.remove_stale()

    def done() -> str:
        count = len(volumes) - len(volumes.missing())
        return f"{count} of {len(volumes)} training volumes are prepared. Run the command again to go on."

    with interruptible("contextseg-train"), telling(done):
        complaints = volumes.make(rank=state.process_index, world=state.num_processes)
        state.wait_for_everyone()
        complaints = gather_object(complaints)
    if complaints and not skip:
        raise ImageReadError(" ".join(complaints))


def check_same(train: VolumeData, val: VolumeData, first: str, second: str) -> None:
    """Raises ValueError unless both have the same classes and channels; `first` and `second` are their names."""
    if list(train.classes) != list(val.classes):
        raise ValueError(
            f"{first} has the classes {', '.join(train.classes)}, but {second} has "
            f"{', '.join(val.classes)}. Use the same dataset.json for both."
        )
    if train.num_channels != val.num_channels:
        raise ValueError(
            f"{first} has {train.num_channels} channels, but {second} has "
            f"{val.num_channels}. Use data with the same channels."
        )


class WholeVolumes(Dataset):
    """The samples of `VolumeData` with their index."""

    def __init__(self, data: VolumeData) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.data[index], "index": index}

    def name(self, index: int) -> str:
        """The name of a case in messages."""
        return self.data.name(index)
