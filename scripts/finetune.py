"""contextseg-finetune: fine-tunes any segmenter, ours or transformers' own, with transformers' Trainer.

    contextseg-finetune --init-from runs/streets --train data/train --val data/val --output runs/tuned
    contextseg-finetune --init-from nvidia/segformer-b0-finetuned-ade-512-512 --lora 8 --train data/train --output runs/tuned

contextseg-train is our own loop, with the papers' recipes; this command has all options of TrainingArguments.
Heavy imports follow the parsing of the command line, so that `--help` answers at once.
"""

import argparse
import sys
from typing import Any

from ..training.command_line import CommandLine, short_errors
from ..training.finetuning_options import FinetuneOptions, trainer_options

PROGRAM = "contextseg-finetune"
DESCRIPTION = """Fine-tune a segmenter with transformers' Trainer: any checkpoint that AutoModelForSemanticSegmentation loads, ours
or not. Writes the model and its image processor, evaluation.json, and checkpoint-N/ for resuming to the output folder."""
MORE = "Options of transformers.TrainingArguments"
OFTEN_USED = """All of them are accepted; --help-all lists them. Often used: --num_train_epochs, --max_steps,
--learning_rate, --lr_scheduler_type, --warmup_steps, --weight_decay, --per_device_train_batch_size, --gradient_accumulation_steps,
--bf16, --gradient_checkpointing, --torch_compile, --eval_strategy, --save_strategy, --load_best_model_at_end, --logging_steps,
--report_to, --dataloader_num_workers, --seed, --use_cpu, --push_to_hub, --hub_model_id."""


class HelpAll(argparse.Action):
    """Action of --help-all: also shows the options of TrainingArguments, and exits."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from ..training.finetuning import trainer_parser

        parser.print_help()
        print(f"\n{MORE}:\n{trainer_parser().format_help()}")
        parser.exit()


def new_parser() -> CommandLine:
    parser = CommandLine(FinetuneOptions, PROGRAM, DESCRIPTION)
    parser.add_argument(
        "--help-all",
        action=HelpAll,
        nargs=0,
        default=argparse.SUPPRESS,
        help="also show the options of TrainingArguments, and exit",
    )
    parser.add_argument_group(MORE, OFTEN_USED)
    parser.known_elsewhere = trainer_options()
    parser.renamed = {"--weights": "--init-from"}
    return parser


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = new_parser()
    given, others = parser.parse_known_args(argv)
    options = parser.build(vars(given))
    with short_errors(PROGRAM, options.traceback):
        from accelerate import PartialState

        from ..training.finetuning import finetune, trainer_arguments

        finetune(options, trainer_arguments(options.output, others), argv)
        PartialState().destroy_process_group()  # its threads can abort a process that ends while they run
    return 0


if __name__ == "__main__":
    sys.exit(main())
