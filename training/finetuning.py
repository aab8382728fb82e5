"""Implementation of `contextseg-finetune`: trains with Trainer, evaluates, saves or uploads."""

import inspect
import shlex
import sys
from argparse import SUPPRESS
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import EarlyStoppingCallback, HfArgumentParser, PreTrainedModel, set_seed
from transformers.trainer_utils import HubStrategy, TrainOutput, get_last_checkpoint

from ..hub.errors import HubError, explained
from ..modeling.lora import add_lora
from ..processing.collation import SegmentationCollator
from ..processing.data.augmentation import AugmentedDataset
from ..processing.data.datasets import SegmentationData
from ..processing.mask_models import is_mask_model
from ..processing.metrics import TrainerScores, percent, scores_table
from .command_line import CommandError
from .loss_fields import check_loss_is_ours, loss_fields
from .mask_training import check_options, start_from
from .models import SEGMENTER, describe_with_data, ignore_index_field
from .options import SegmentationArguments
from .origin import public_data, public_model
from .plots import plot_curves
from .reading_options import reading_names
from .records import environment, write_json
from .segmentation import SegmentationTask, new_augmentation, processor_of
from .setup import open_splits
from .starting_points import (
    build_model,
    channels_of_checkpoint,
    checkpoint_of,
    config_of_checkpoint,
)
from .trained_part import select_trained
from .trainer import SegmentationTrainer, SegmentationTrainingArguments, SetEpoch
from .volumetric import trains_on_volumes

if TYPE_CHECKING:
    from .finetuning_options import FinetuneOptions


def finetune(
    options: "FinetuneOptions", arguments: SegmentationTrainingArguments, argv: Sequence[str]
) -> SegmentationTrainer:
    """Runs a fine-tuning from start to end.

    Args:
        options: Checkpoint, data, augmentation and output folder.
        arguments: Trainer's own settings; its `output_dir` is `options.output`.
        argv: The words of the command line, for `run.json`.

    Returns:
        The trainer after training; `trainer.model` is the trained model, with LoRA merged.

    Raises:
        ValueError: If the options contradict each other, the data or the output folder.
        CommandError: If the upload to the Hub fails.
    """
    check_output(options, arguments)
    set_seed(arguments.seed)
    reading = {name: getattr(options, name) for name in reading_names()}
    sources = {"train": options.train, "val": options.val, "init_from": options.init_from}
    check_takes_images(options.init_from)
    task = SegmentationTask(SegmentationArguments(**sources, **reading))
    train, val = open_splits(task)
    trainer = new_trainer(options, arguments, train, val)
    result = trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint or options.resume)
    if options.lora:
        trainer.model = trainer.model.merge_and_unload()
    if trainer.is_world_process_zero():
        Path(options.output).mkdir(parents=True, exist_ok=True)
        write_json(Path(options.output) / "run.json", record(options, arguments, argv, result))
    if val is not None:
        evaluate(trainer, options)
    if trainer.is_world_process_zero():
        plot_curves(trainer.state.log_history, Path(options.output) / "loss.png", "eval_mean_iou")
    if arguments.push_to_hub:
        push(trainer)
    else:
        trainer.save_model()
        trainer.create_model_card(tags=["image-segmentation"])
    return trainer


def check_takes_images(init_from: str) -> None:
    """Raises ValueError for a checkpoint of volumes, which Trainer is not set up for."""
    if trains_on_volumes(SegmentationArguments(init_from=init_from)):
        raise ValueError(
            f"{init_from} segments volumes. Fine-tune it with contextseg-train --init-from {init_from}."
        )


def trainer_parser() -> HfArgumentParser:
    """Parser of the options of TrainingArguments."""
    return HfArgumentParser(
        SegmentationTrainingArguments,
        prog="contextseg-finetune",
        usage=SUPPRESS,
        add_help=False,
        allow_abbrev=False,
    )


def trainer_arguments(output: str, words: Sequence[str]) -> SegmentationTrainingArguments:
    """Parses `words`, the options that are not ours, into Trainer's settings.

    Unless the standard error is a terminal, Trainer writes lines in place of progress bars.
    """
    words = ["--output_dir", output, "--disable_tqdm", str(not sys.stderr.isatty()), *words]
    return trainer_parser().parse_args_into_dataclasses(words, look_for_args_file=False)[0]


def push(trainer: SegmentationTrainer) -> None:
    """Saves and uploads; if that fails, the error names the command that uploads without training."""
    try:
        with explained(trainer.hub_model_id):
            trainer.push_to_hub(tags=["image-segmentation"])
    except HubError as error:
        again = shlex.join(["contextseg-export", trainer.args.output_dir, "--push", trainer.hub_model_id])
        raise CommandError(f"{error} The command: {again}") from error


def check_output(options: "FinetuneOptions", arguments: SegmentationTrainingArguments) -> None:
    """Raises ValueError if the output folder does not fit --resume."""
    folder = Path(options.output)
    found = folder.is_dir() and get_last_checkpoint(folder)
    if found and not (options.resume or arguments.resume_from_checkpoint):
        raise ValueError(
            f"{folder} already holds checkpoints. Continue with --resume, or choose another --output."
        )
    if options.resume and not found:
        raise ValueError(
            f"there is no checkpoint in {folder} to resume from. Leave out --resume to start a new run."
        )


def new_trainer(
    options: "FinetuneOptions",
    arguments: SegmentationTrainingArguments,
    train: SegmentationData,
    val: SegmentationData | None,
) -> SegmentationTrainer:
    """Builds model, processor, augmentation and collator, and the trainer from them."""
    check_batch_size(options, arguments, len(train))
    classifies_masks = is_mask_model(config_of_checkpoint(options.init_from))
    if classifies_masks:
        check_options(options, arguments)
    model = new_mask_model(options, train) if classifies_masks else new_model(options, train)
    processor = processor_of(train, checkpoint_of(options.init_from))
    model = select_trained(model, options.freeze, lora=0)
    can_pad = "pixel_mask" in inspect.signature(model.forward).parameters and not classifies_masks
    if options.lora:
        if arguments.fsdp or arguments.deepspeed:
            raise ValueError(
                "--lora is merged into the model at the end, which does not work on weights sharded by FSDP or DeepSpeed. Leave "
                "out --fsdp and --deepspeed; LoRA needs little memory without them."
            )
        model = add_lora(model, options.lora)
        # Checkpoints hold adapters only; the published model is merged.
        arguments.hub_strategy = HubStrategy.END
    if arguments.process_index == 0:
        print(describe_with_data(model, len(train.classes), len(train)))
    return SegmentationTrainer(
        model,
        arguments,
        data_collator=SegmentationCollator(processor, train.ignore_index, can_pad=can_pad),
        train_dataset=AugmentedDataset(
            train,
            new_augmentation(options, processor, model.config, seed=arguments.seed),
            options.crops_per_image,
        ),
        eval_dataset=val,
        processing_class=processor,
        compute_metrics=TrainerScores(len(train.classes), train.ignore_index, train.classes),
        callbacks=[SetEpoch(), *early_stopping(options, arguments)],
    )


def check_batch_size(
    options: "FinetuneOptions", arguments: SegmentationTrainingArguments, num_images: int
) -> None:
    """Raises ValueError if Trainer, which drops incomplete batches, would have none."""
    batch, crops = arguments.train_batch_size, num_images * options.crops_per_image
    if batch > crops:
        raise ValueError(
            f"a batch of {batch} is larger than the training set of {num_images} images. Pass --per_device_train_batch_size "
            f"{crops} or less, or --crops-per-image {-(-batch // num_images)} or more."
        )


def early_stopping(
    options: "FinetuneOptions", arguments: SegmentationTrainingArguments
) -> list[EarlyStoppingCallback]:
    """Returns Trainer's callback for --early-stopping."""
    if options.early_stopping is None:
        return []
    if not (options.val and arguments.load_best_model_at_end):
        raise ValueError(
            "--early-stopping needs --val and --load_best_model_at_end, with the same --eval_strategy and --save_strategy "
            "(epoch or steps)."
        )
    return [EarlyStoppingCallback(options.early_stopping)]


def new_model(options: "FinetuneOptions", data: SegmentationData) -> PreTrainedModel:
    """Builds the model from the checkpoint, for the classes and the `ignore_index` of the data."""
    names, fields = list(data.classes), loss_fields(options, data)
    channels = {"num_channels": data.num_channels}
    if data.num_channels == channels_of_checkpoint(options.init_from):
        channels = {}
    model = build_model(
        SEGMENTER, None, None, class_names=names, options={**fields, **channels}, init_from=options.init_from
    )
    check_loss_is_ours(model, fields)
    setattr(model.config, ignore_index_field(model.config), data.ignore_index)
    # Losses are means over pixels. Without this flag, Trainer would sum them over accumulated batches.
    model.accepts_loss_kwargs = False
    return model


def new_mask_model(options: "FinetuneOptions", data: SegmentationData) -> PreTrainedModel:
    """Loads a mask-classification model, for the classes and the `ignore_index` of the data."""
    if data.num_channels != 3:
        raise ValueError(
            f"{options.init_from} takes RGB images, not {data.num_channels} channels. Leave --num-channels out."
        )
    model = start_from(options.init_from, list(data.classes), options.crop_size)
    model.config.semantic_loss_ignore_index = data.ignore_index
    model.accepts_loss_kwargs = False  # as in `new_model`
    return model


def record(
    options: "FinetuneOptions",
    arguments: SegmentationTrainingArguments,
    argv: Sequence[str],
    result: TrainOutput,
) -> dict[str, Any]:
    """Returns the content of `run.json`, from which our part of the model card is written."""
    data = [public_data(source) for source in (options.train, options.val) if source]
    program = ["contextseg-finetune"]
    if arguments.world_size > 1:
        program = f"torchrun --nproc-per-node {arguments.world_size} -m contextseg.scripts.finetune".split()
    return {
        "command": [*program, *without_token(argv)],
        "arguments": asdict(options),
        "hub_names": {
            "datasets": list(dict.fromkeys(filter(None, data))),
            "base_model": public_model(options.init_from),
        },
        "seed": arguments.seed,
        "steps_done": result.global_step,
        "seconds": round(result.metrics["train_runtime"], 1),
        **environment(),
    }


def without_token(argv: Sequence[str]) -> list[str]:
    """The words of a command line without --hub_token and its value, because model cards are public."""
    words, given = [], iter(argv)
    for word in given:
        name, equals, _ = word.partition("=")
        if name.replace("-", "_") != "__hub_token":
            words.append(word)
        elif not equals:
            next(given, None)
    return words


def evaluate(trainer: SegmentationTrainer, options: "FinetuneOptions") -> None:
    """Scores the model that will be saved, prints the scores and writes `evaluation.json`."""
    trainer.evaluate()
    scores = trainer.compute_metrics.last
    if trainer.is_world_process_zero():
        print(f"{scores_table(scores)}\n\nmIoU {percent(scores['mean_iou'])} %")
        facts = {"model": options.output, "data": options.val, "images": len(trainer.eval_dataset)}
        write_json(Path(options.output) / "evaluation.json", {**facts, **scores, **environment()})
