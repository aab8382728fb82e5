"""What `contextseg-finetune` does: parts for Trainer, then training, scores and a repository."""

import inspect
import shlex
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, PreTrainedModel, TrainingArguments, set_seed
from transformers.trainer_utils import HubStrategy, TrainOutput, get_last_checkpoint

from ..hub.errors import HubError, explained
from ..modeling.lora import add_lora
from ..processing.collation import SegmentationCollator
from ..processing.data.augmentation import AugmentedDataset, JointAugmentation
from ..processing.data.datasets import SegmentationData
from ..processing.image_processing_segmentation import SegmentationImageProcessor
from ..processing.metrics import TrainerScores, percent, scores_table
from .checkpoints import model_folder
from .command_line import CommandError, crop_size
from .models import SEGMENTER, build_model, describe, ignore_index_field
from .origin import public_data, public_model
from .records import environment, write_json
from .segmentation import SegmentationTask, processor_of
from .setup import open_splits
from .trainer import SegmentationTrainer, SetEpoch

if TYPE_CHECKING:
    from .finetuning_options import FinetuneArguments


def finetune(arguments: "FinetuneArguments", argv: Sequence[str]) -> SegmentationTrainer:
    """A whole run, which was started by the words `argv`; the trainer as it is at the end."""
    check_output(arguments)
    set_seed(arguments.seed)
    train, val = open_splits(arguments, SegmentationTask())
    trainer = new_trainer(arguments, train, val)
    checkpoint = arguments.resume_from_checkpoint
    result = trainer.train(resume_from_checkpoint=True if checkpoint == "last" else checkpoint)
    if arguments.lora:
        trainer.model = trainer.model.merge_and_unload()
    if trainer.is_world_process_zero():
        Path(arguments.output_dir).mkdir(parents=True, exist_ok=True)
        write_json(Path(arguments.output_dir) / "run.json", record(arguments, argv, result))
    if val is not None:
        evaluate(trainer, arguments)
    if arguments.push_to_hub:
        push(trainer)
    else:
        trainer.save_model()
        trainer.create_model_card(tags=["image-segmentation"])
    return trainer


def push(trainer: SegmentationTrainer) -> None:
    """Trainer saves before it uploads: what fails then is said with the command that uploads without a training."""
    try:
        with explained(trainer.hub_model_id):
            trainer.push_to_hub(tags=["image-segmentation"])
    except HubError as error:
        again = shlex.join(["contextseg-export", trainer.args.output_dir, "--push", trainer.hub_model_id])
        raise CommandError(f"{error} The command: {again}") from error


def check_output(arguments: "FinetuneArguments") -> None:
    folder = Path(arguments.output_dir)
    if not arguments.resume_from_checkpoint and folder.is_dir() and get_last_checkpoint(folder):
        raise ValueError(
            f"{folder} holds checkpoints already. Continue with --resume_from_checkpoint last, or choose another --output_dir."
        )


def new_trainer(
    arguments: "FinetuneArguments", train: SegmentationData, val: SegmentationData | None
) -> SegmentationTrainer:
    if arguments.train_batch_size > len(train):
        raise ValueError(
            f"a batch of {arguments.train_batch_size} is larger than the data set of {len(train)} images. "
            f"Pass --per_device_train_batch_size {len(train)} or less."
        )
    model = new_model(arguments, train)
    processor = processor_of(train, model_folder(arguments.model))
    can_pad = "pixel_mask" in inspect.signature(model.forward).parameters
    if arguments.lora:
        if arguments.fsdp or arguments.deepspeed:
            raise ValueError(
                "--lora is merged into the model at the end, which FSDP and DeepSpeed spread over processes. Leave out --fsdp "
                "and --deepspeed: LoRA trains few weights."
            )
        model = add_lora(model, arguments.lora)
        arguments.hub_strategy = HubStrategy.END  # checkpoints are adapters; what is published is merged
    if arguments.process_index == 0:
        print(f"{describe(model)}, {len(train.classes)} classes, {len(train)} images")
    return SegmentationTrainer(
        model,
        arguments,
        data_collator=SegmentationCollator(processor, train.ignore_index, can_pad=can_pad),
        train_dataset=AugmentedDataset(train, new_augmentation(arguments, processor)),
        eval_dataset=val,
        processing_class=processor,
        compute_metrics=TrainerScores(len(train.classes), train.ignore_index, train.classes),
        callbacks=[SetEpoch()],
    )


def new_augmentation(
    arguments: "FinetuneArguments", processor: SegmentationImageProcessor
) -> JointAugmentation:
    is_full = arguments.augmentation
    return JointAugmentation(
        crop_size(arguments.crop_size),
        scale_range=(arguments.min_scale, arguments.max_scale) if is_full else (1.0, 1.0),
        flip_probability=0.5 if is_full and arguments.flip else 0.0,
        use_colour_distortion=is_full,
        fill=tuple(round(mean / processor.rescale_factor) for mean in processor.image_mean),
        ignore_index=processor.ignore_index,
        seed=arguments.seed,
    )


def new_model(arguments: "FinetuneArguments", data: SegmentationData) -> PreTrainedModel:
    """The checkpoint with a classifier for the classes of `data`, and a loss that ignores what they ignore."""
    config = AutoConfig.from_pretrained(model_folder(arguments.model))
    model = build_model(
        SEGMENTER,
        config.model_type,
        None,
        class_names=list(data.classes),
        options={ignore_index_field(config): data.ignore_index},
        weights=arguments.model,
    )
    # The losses are means over pixels. Trainer would sum them over accumulated batches for models that do not say so.
    model.accepts_loss_kwargs = False
    return model


def record(arguments: "FinetuneArguments", argv: Sequence[str], result: TrainOutput) -> dict[str, Any]:
    """What the model's card tells of the run; Trainer's part of the card lists its own settings."""
    own = {field.name for field in fields(arguments)} - {field.name for field in fields(TrainingArguments)}
    data = [public_data(source) for source in (arguments.train, arguments.val) if source]
    program = ["contextseg-finetune"]
    if arguments.world_size > 1:
        program = f"torchrun --nproc-per-node {arguments.world_size} -m contextseg.scripts.finetune".split()
    return {
        "command": [*program, *without_token(argv)],
        "arguments": {name: getattr(arguments, name) for name in sorted(own)},
        "hub_names": {
            "datasets": list(dict.fromkeys(filter(None, data))),
            "base_model": public_model(arguments.model),
        },
        "seed": arguments.seed,
        "steps_done": result.global_step,
        "seconds": round(result.metrics["train_runtime"], 1),
        **environment(),
    }


def without_token(argv: Sequence[str]) -> list[str]:
    """The words of a command line but --hub_token and its value: a card is public."""
    words, given = [], iter(argv)
    for word in given:
        name, equals, _ = word.partition("=")
        if name.replace("-", "_") != "__hub_token":
            words.append(word)
        elif not equals:
            next(given, None)
    return words


def evaluate(trainer: SegmentationTrainer, arguments: "FinetuneArguments") -> None:
    """Scores of the model as it will be saved, printed and written for its card."""
    trainer.evaluate()
    scores = trainer.compute_metrics.last
    if trainer.is_world_process_zero():
        print(f"{scores_table(scores)}\n\nmIoU {percent(scores['mean_iou'])} %")
        facts = {"model": arguments.output_dir, "data": arguments.val, "images": len(trainer.eval_dataset)}
        write_json(Path(arguments.output_dir) / "evaluation.json", {**facts, **scores, **environment()})
