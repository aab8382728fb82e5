"""contextseg-finetune: fine-tunes any segmenter, ours or transformers' own, with transformers' Trainer.

    contextseg-finetune --model runs/streets --train data/train --val data/val --output_dir runs/tuned
    contextseg-finetune --model nvidia/segformer-b0-finetuned-ade-512-512 --lora 8 --train data/train --output_dir runs/tuned

contextseg-train is our own loop, with the papers' recipes; this one has all that TrainingArguments offers.
"""

import sys
from dataclasses import dataclass, field

from transformers import HfArgumentParser, TrainingArguments
from transformers.training_args import trainer_log_levels

from .training.arguments import CommandLine, short_errors

PROGRAM = "contextseg-finetune"
DESCRIPTION = """Fine-tune a segmenter with transformers' Trainer: any checkpoint that AutoModelForSemanticSegmentation opens, ours
or not. Ours are the options at the end; all others are those of TrainingArguments. The output folder receives the model and
its image processor, evaluation.json, and checkpoint-N/ to resume from."""


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
    license: str | None = option(
        None, "License of the weights for the model card, in the Hub's spelling, such as apache-2.0."
    )
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


class FinetuneParser(CommandLine, HfArgumentParser):
    """transformers' parser, which proposes the nearest option for a misspelt one."""

    def arguments(self, argv: list[str] | None) -> FinetuneArguments:
        _, unknown = self.parse_known_args(argv)
        if unknown:
            self.error(f"unrecognized arguments: {unknown[0]}")
        return self.parse_args_into_dataclasses(argv)[0]


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    with short_errors(PROGRAM, "--traceback" in argv):
        parser = FinetuneParser(FinetuneArguments, prog=PROGRAM, description=DESCRIPTION, allow_abbrev=False)
        arguments = parser.arguments(argv)
        from .training.finetuning import finetune

        finetune(arguments, argv)
    return 0


if __name__ == "__main__":
    sys.exit(main())
