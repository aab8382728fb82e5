"""Options of a training run: groups that all tasks share, and one dataclass per task.

Nothing heavy is imported here, so that `--help` answers at once.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from .command_line import MODEL_HELP, CommandLine, CommandOptions, option
from .crop_options import CropOptions
from .inference_options import WindowOptions
from .loss_options import LossOptions
from .optimization_options import OptimizationOptions
from .option_values import check_order
from .reading_options import PixelOptions, ReadingOptions, RgbOptions
from .tuning_options import TuningOptions
from .volume_options import VolumeOptions


@dataclass(kw_only=True)
class TaskOptions:
    """The choice of the task."""

    _argument_group_name = "options"

    task: Literal["segmentation", "classification", "detection", "masked_pretraining"] = option(
        "segmentation",
        "what the model learns; masked_pretraining learns from images alone to predict masked pixels (SimMIM)",
    )


@dataclass(kw_only=True)
class DataOptions:
    _argument_group_name = "Data"

    train: str = option(
        "",
        "training data: folder with images/ and masks/, or for volumes labels/ or nnU-Net's folders (classification: one subfolder per class; detection: images/ and "
        "annotations.json; masked_pretraining: images), folder of a published dataset, or name for `datasets`; required unless --resume or "
        "--dry-run",
        metavar="DATA",
    )
    val: str = option("", "validation data, in the same forms; without it there is no best/", metavar="DATA")
    workers: int | None = option(
        None, "processes that load data (default: number of cores minus one, at most 8)"
    )
    unreadable: Literal["raise", "skip"] = option("raise", "what to do with images that cannot be read")

    augmentation: bool = option(
        True, "augment training images at random; without it they are only cropped or resized"
    )
    horizontal_flip: bool = option(True, "mirror half of the training images left to right")


@dataclass(kw_only=True)
class SampleOptions:
    _argument_group_name = "Segmentation and classification"

    crop_size: str | None = option(
        None,
        "side of a training sample in pixels, or HEIGHTxWIDTH, of volumes SLICESxROWSxCOLUMNS (default: 512, or the crop_size of a "
        "model with two scales; for classification, 224; for volumes, planned)",
        metavar="SIZE",
    )


@dataclass(kw_only=True)
class ModelOptions:
    _argument_group_name = "Model"

    model: str | None = option(
        None,
        "model type: glam_swin, segdeformer, maformer, cswin, relay, caswit, nnformer (for volumes), mask_rcnn (for detection), or a type of transformers "
        "(default: the one that --init-from holds or can start; without it glam_swin, for detection mask_rcnn)",
    )
    preset: str | None = option(
        None,
        "size of the model: nano, tiny, small, base, ... (default: that of the model's configuration)",
        metavar="NAME",
    )
    set: list[str] = option(
        [],
        "set a field of the model's configuration; takes several values, and may be repeated",
        metavar="NAME=VALUE",
    )
    init_from: str | None = option(
        None,
        f"checkpoint to start from, which is recognized: {MODEL_HELP}; ours, a Swin, a UPerNet with Swin, a SegFormer, or "
        "another encoder of transformers; or a model name of timm",
        metavar="CHECKPOINT",
    )


@dataclass(kw_only=True)
class DecayOptions(TuningOptions):
    """Options for runs that start from pretrained weights."""

    _argument_group_name = "Fine-tuning"

    layer_decay: float | None = option(
        None,
        "factor of the learning rate from each layer of the backbone to the one before it, such as 0.75 (default: 1)",
    )


@dataclass(kw_only=True)
class MachineOptions:
    _argument_group_name = "Machine"

    precision: Literal["no", "bf16", "fp16"] | None = option(
        None, "mixed precision (default: as accelerate is configured)"
    )
    compile: bool = option(False, "compile the model with torch.compile: slow to start, then faster on a GPU")
    gradient_checkpointing: bool = option(
        False, "recompute activations in the backward pass: less memory, more time"
    )
    deterministic: bool = option(
        False,
        "use deterministic kernels, so that the same run on the same GPU gives the same weights; slower",
    )
    cpu: bool = option(False, "run on the CPU even if there is a GPU")
    timeout: float = option(
        30.0,
        "time until a process ends that waits for another one, which has died or hangs",
        metavar="MINUTES",
    )
    sync_batch_norm: bool = option(
        True, "with several GPUs, compute batch norm over the images of all of them"
    )


@dataclass(kw_only=True)
class RunOptions:
    _argument_group_name = "Run"

    recipe: str | None = option(
        None,
        "take options from a built-in recipe, a YAML file, or the run.json of a run, which starts it again in a new --output; "
        "options given on the command line override it; also called --config",
        aliases=["--config"],
        metavar="FILE",
    )
    output: str = option("", "folder of this run (required)", metavar="FOLDER")
    license: str | None = option(
        None, "license of the weights for the model card, in the Hub's spelling, such as apache-2.0"
    )
    push: str | None = option(
        None,
        "repository on the Hub, such as me/streets, to which the best weights are uploaded at the end",
        metavar="NAME",
    )
    resume: bool = option(
        False, "continue the run in --output with its own options; give only options that change"
    )
    eval_interval: int | None = option(
        None, "steps between evaluations and checkpoints (default: a tenth of all steps)"
    )
    early_stopping: int | None = option(
        None, "end the run after this many evaluations without a better score (default: never)"
    )
    log_interval: int = option(10, "steps between log entries on a GPU; on a CPU every step is logged")
    tracker: Literal["tensorboard", "wandb", "none"] = option(
        "tensorboard", "where to write curves, besides log.jsonl"
    )
    dry_run: bool = option(False, "build everything, try it on two samples, print the plan, and exit")


@dataclass(kw_only=True)
class TrainArguments(
    CommandOptions,
    DataOptions,
    ModelOptions,
    DecayOptions,
    OptimizationOptions,
    MachineOptions,
    RunOptions,
):
    """Options of all tasks. A run has an instance of its task's subclass, one of `ARGUMENTS`."""

    task: ClassVar[str]
    default_model: ClassVar[str] = "glam_swin"  # without --init-from

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order(self, "min_learning_rate", "learning_rate")
        if self.preset is not None and self.init_from is not None:
            raise ValueError(
                "--preset and --init-from both determine the model's size. Give only one of them."
            )
        if self.steps is not None and self.epochs is not None:
            raise ValueError(
                "--steps and --epochs both set the length of the training. Give only one of them."
            )


@dataclass(kw_only=True)
class SegmentationArguments(
    TrainArguments, ReadingOptions, SampleOptions, LossOptions, CropOptions, WindowOptions, VolumeOptions
):
    _argument_group_name = "Segmentation"
    task = "segmentation"

    base_size: str | None = option(
        None,
        "resize images to fit these edges before the random resizing, and for evaluation",
        metavar="LONGxSHORT",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order(self, "min_scale", "max_scale")


@dataclass(kw_only=True)
class ClassificationArguments(TrainArguments, RgbOptions, SampleOptions):
    _argument_group_name = "Classification"
    task = "classification"
    crops_per_image: ClassVar[int] = 1  # an option of segmentation

    crop_size: str = option("224", "side of a training sample in pixels, or HEIGHTxWIDTH")
    min_area: float = option(0.08, "smallest share of the image area that a random crop covers")
    rand_augment: str = option(
        "rand-m9-mstd0.5-inc1", "RandAugment in timm's notation, or none", metavar="POLICY"
    )
    color_jitter: float = option(
        0.4, "strength of color jitter, which, as in timm, is used only without RandAugment"
    )
    random_erasing: float = option(0.25, "probability of replacing a rectangle of the image by noise")
    label_smoothing: float = option(0.1, "share of each label that is spread over all classes")
    mix_token: bool = option(True, "exchange rectangles of tokens between the images of a batch (MixToken)")
    token_labels: str | None = option(
        None,
        "folder of LV-ViT's label maps (default: each token has the label of its image)",
        metavar="FOLDER",
    )


@dataclass(kw_only=True)
class DetectionArguments(TrainArguments, RgbOptions):
    _argument_group_name = "Detection"
    task = "detection"
    default_model = "mask_rcnn"
    crops_per_image: ClassVar[int] = 1  # an option of segmentation

    shorter_side: str = option(
        "800",
        "resize images to this shorter side, or to one drawn from a range such as 480-800",
        metavar="PIXELS",
    )
    longer_side: int = option(1333, "maximum of the longer side; the shorter side is reduced if necessary")


@dataclass(kw_only=True)
class MaskedPretrainingArguments(TrainArguments, PixelOptions, SampleOptions, CropOptions):
    _argument_group_name = "Masked pretraining"
    task = "masked_pretraining"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order(self, "min_scale", "max_scale")


ARGUMENTS = {
    kind.task: kind
    for kind in (
        SegmentationArguments,
        ClassificationArguments,
        DetectionArguments,
        MaskedPretrainingArguments,
    )
}


def train_parser(program: str = "contextseg-train", description: str = "") -> CommandLine:
    """Returns the command line with the options of all tasks."""
    kinds = [
        *(TaskOptions, CommandOptions, DataOptions, ReadingOptions, ModelOptions, DecayOptions),
        *(OptimizationOptions, LossOptions, RunOptions, MachineOptions, SampleOptions, CropOptions),
        VolumeOptions,
        *ARGUMENTS.values(),
    ]
    parser = CommandLine(kinds, program, description)
    parser.renamed = dict.fromkeys(("--weights", "--swin", "--segformer", "--backbone"), "--init-from")
    return parser


def train_arguments(given: Mapping[str, Any]) -> TrainArguments:
    """Builds the arguments of a run.

    Args:
        given: Values of options by name, with underscores; `task` is one of them and defaults to
            "segmentation".

    Returns:
        An instance of the task's class in `ARGUMENTS`.

    Raises:
        ValueError: If an option belongs to another task.
    """
    task = given.get("task", TaskOptions.task)
    own = fields_of(task)
    for name in given:
        if name not in {"task", *own}:
            owners = [other for other in ARGUMENTS if name in fields_of(other)]
            listed = " and ".join(filter(None, (", ".join(owners[:-1]), owners[-1])))
            raise ValueError(
                f"--{name.replace('_', '-')} is an option of {listed}, but the task of this run is {task}. "
                f"Leave it out, or choose --task {owners[0]}."
            )
    return ARGUMENTS[task](**{name: value for name, value in given.items() if name != "task"})


def fields_of(task: str) -> list[str]:
    """Returns the names of the options of a task."""
    return [field.name for field in dataclasses.fields(ARGUMENTS[task])]
