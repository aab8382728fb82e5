"""contextseg-finetune: fine-tunes any segmenter, ours or transformers' own, with transformers' Trainer.

    contextseg-finetune --model runs/streets --train data/train --val data/val --output_dir runs/tuned
    contextseg-finetune --model nvidia/segformer-b0-finetuned-ade-512-512 --lora 8 --train data/train --output_dir runs/tuned

contextseg-train is our own loop, with the papers' recipes; this one has all that TrainingArguments offers.
"""

import sys

from transformers import HfArgumentParser

from ..training.command_line import CommandLine, short_errors
from ..training.finetuning_options import FinetuneArguments

PROGRAM = "contextseg-finetune"
DESCRIPTION = """Fine-tune a segmenter with transformers' Trainer: any checkpoint that AutoModelForSemanticSegmentation opens, ours
or not. Ours are the options at the end; all others are those of TrainingArguments. The output folder receives the model and
its image processor, evaluation.json, and checkpoint-N/ to resume from."""


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
        from ..training.finetuning import finetune

        finetune(arguments, argv)
    return 0


if __name__ == "__main__":
    sys.exit(main())
