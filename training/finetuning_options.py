"""The options of `contextseg-finetune`: those of transformers' TrainingArguments, and what is tuned on what."""

from dataclasses import dataclass, field

from transformers import TrainingArguments
from transformers.training_args import trainer_log_levels


def option(default: object, text: str, **more: object) -> object:
    return field(default=default, metadata={"help": text, **more})


@dataclass
class FinetuneArguments(TrainingArguments):
    """TrainingArguments with other defaults where segmentation needs them, and what is to be tuned on what."""

    remove_unused_columns: bool = option(False, "Must stay: the collator reads images and masks.")
    batch_eval_metrics: bool = option(True, "Must stay: score batch by batch, in memory that does not grow.")
    per_device_eval_batch_size: int = option(1, "Images of one size only, for models without a pixel_mask.")
    dataloader_drop_last: bool = option(True, "Train on full batches only; evaluation takes every image.")
    log_level: str = option("warning", "Of messages beside the bar.", choices=trainer_log_levels)
    resume_from_checkpoint: str | None = option(None, "A checkpoint's folder, or 'last' for the newest one.")

    model: str = option("", "The checkpoint to fine-tune: a run of ours, a folder, or a name on the Hub.")
    train: str = option(
        "", "Folder with images/ and masks/, of a published data set, or a name for `datasets`."
    )
    val: str = option("", "The same, to evaluate on.")
    crop_size: str = option("512", "Side of a training sample, or HEIGHTxWIDTH.")
    min_scale: float = option(0.5, "Smallest factor of the random resizing before the crop.")
    max_scale: float = option(2.0, "Largest factor.")
    flip: bool = option(True, "Mirror half of the samples.")
    augmentation: bool = option(True, "Scale, mirror and recolour samples; without it, random crops alone.")
    lora: int = option(0, "Rank of LoRA's updates of the backbone; 0 trains all weights.")
    traceback: bool = option(False, "Show where in the code an error came from.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("model", "train"):
            if not getattr(self, name):
                raise ValueError(
                    f"--{name} is missing. {type(self).__dataclass_fields__[name].metadata['help']}"
                )
        if self.remove_unused_columns or not self.batch_eval_metrics:
            raise ValueError(
                "the collator needs --remove_unused_columns false, and the scores --batch_eval_metrics true. "
                "Leave both options out."
            )
