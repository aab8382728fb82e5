"""Our own options of `contextseg-finetune`; all others are those of transformers' TrainingArguments."""

import ast
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from .command_line import MODEL_HELP, CommandOptions, option, required
from .crop_options import CropOptions
from .loss_options import LossOptions
from .option_values import check_order
from .reading_options import ReadingOptions
from .tuning_options import TuningOptions


@dataclass(kw_only=True)
class FinetuneOptions(CommandOptions, ReadingOptions, TuningOptions, LossOptions, CropOptions):
    """Checkpoint, data, augmentation and output folder of a fine-tuning."""

    init_from: str = required(
        f"checkpoint to fine-tune, which is recognized: {MODEL_HELP}; any segmenter, or an encoder of transformers or timm "
        "for a new one",
        aliases=["--model", "--model_name_or_path"],
        metavar="CHECKPOINT",
    )
    train: str = required(
        "training data: folder with images/ and masks/, folder of a published dataset, or name for `datasets`",
        metavar="DATA",
    )
    val: str = option("", "validation data, in the same forms", metavar="DATA")
    output: str = required("folder of this run", aliases=["--output-dir", "--output_dir"], metavar="FOLDER")
    resume: bool = option(False, "continue from the newest checkpoint in --output")
    augmentation: bool = option(
        True, "scale, mirror and recolor training images at random; without it they are only cropped"
    )
    horizontal_flip: bool = option(True, "mirror half of the training images left to right")
    crop_size: str | None = option(
        None,
        "side of a training sample in pixels, or HEIGHTxWIDTH (default: 512, or the crop_size of a model with two scales)",
        metavar="SIZE",
    )
    early_stopping: int | None = option(
        None,
        "end the run after this many evaluations without a better --metric_for_best_model, such as mean_iou; needs --val and "
        "--load_best_model_at_end (default: never)",
    )
    license: str | None = option(
        None, "license of the weights for the model card, in the Hub's spelling, such as apache-2.0"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order(self, "min_scale", "max_scale")


def trainer_options() -> list[str]:
    """Returns the options of TrainingArguments, read from its source: importing it would import torch."""
    source = Path(find_spec("transformers.training_args").origin).read_text(encoding="utf-8")
    (kind,) = (
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments"
    )
    names = [node.target.id for node in kind.body if isinstance(node, ast.AnnAssign)]
    # output_dir is our --output. HfArgumentParser accepts underscores and dashes, and the prefix --no-.
    names = [f"{prefix}{name}" for name in names if name != "output_dir" for prefix in ("", "no_")]
    return [f"--{spelling}" for name in names for spelling in (name, name.replace("_", "-"))]
