"""transformers' Trainer for segmentation: epoch-dependent augmentation, and evaluation on images of any size.

Legend: B batch, K classes, H, W height and width of an image.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction
from transformers.training_args import trainer_log_levels

from ..configuration.ranges import Range, check_number, whole
from ..hub.model_card import ask_for_license
from ..hub.repositories import complete_card
from ..modeling.losses import segmentation_loss
from ..processing.mask_models import MaskSegmenter, is_mask_model
from ..processing.metrics import PADDING, reduce_logits
from .command_line import option
from .mask_training import with_targets
from .model_files import check_finite
from .models import ignore_index_field
from .renamed_weights import LoadsRenamedWeights


class SetEpoch(TrainerCallback):
    """Trainer callback that calls `set_epoch` of the training dataset at the start of every epoch.

    With an `AugmentedDataset`, augmentation then differs from epoch to epoch, and a resumed run draws the
    same samples as an uninterrupted one. accelerate's data loaders also call `set_epoch`, but not with
    several processes or after resuming.

    The training dataset must have a method `set_epoch(epoch: int)`.
    """

    def on_epoch_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        *,
        train_dataloader: DataLoader,
        **_: Any,
    ) -> None:
        """Called by Trainer; sets the epoch of `train_dataloader.dataset`."""
        train_dataloader.dataset.set_epoch(int(state.epoch or 0))


# Numbers of TrainingArguments that Trainer itself does not check, or takes for "not given". A default is always
# allowed.
NOT_NEGATIVE, POSITIVE, COUNT = Range(minimum=0), Range(above=0), whole(1, 10**9)
TRAINER_RANGES = {
    "adam_beta1": Range(minimum=0, below=1),
    "adam_beta2": Range(minimum=0, below=1),
    "adam_epsilon": NOT_NEGATIVE,
    "data_seed": whole(0, 2**32 - 1),
    "dataloader_num_workers": whole(0, 1024),
    "dataloader_prefetch_factor": COUNT,
    "ddp_bucket_cap_mb": COUNT,
    "ddp_timeout": COUNT,
    "eval_accumulation_steps": COUNT,
    "eval_delay": NOT_NEGATIVE,
    "eval_steps": POSITIVE,
    "gradient_accumulation_steps": COUNT,
    "label_smoothing_factor": Range(minimum=0, below=1),
    "learning_rate": NOT_NEGATIVE,
    "logging_steps": POSITIVE,
    "max_grad_norm": NOT_NEGATIVE,  # 0 is no clipping
    "max_steps": COUNT,
    "neftune_noise_alpha": NOT_NEGATIVE,
    "num_train_epochs": Range(above=0, maximum=10**6),
    "per_device_eval_batch_size": COUNT,
    "per_device_train_batch_size": COUNT,
    "save_steps": POSITIVE,
    "save_total_limit": COUNT,
    "seed": whole(0, 2**32 - 1),
    "torch_empty_cache_steps": COUNT,
    "warmup_steps": NOT_NEGATIVE,
    "weight_decay": NOT_NEGATIVE,
}


@dataclass
class SegmentationTrainingArguments(TrainingArguments):
    """TrainingArguments with defaults for segmentation. All other fields are those of transformers.

    Raises:
        ValueError: If a number is out of range, an option is for texts, `remove_unused_columns` is true or
            `batch_eval_metrics` is false.
    """

    remove_unused_columns: bool = option(False, "must stay false: the collator reads images and masks")
    batch_eval_metrics: bool = option(True, "must stay true: scores are computed batch by batch")
    per_device_eval_batch_size: int = option(
        1, "images in one forward pass of evaluation; a model without pixel_mask needs images of one size"
    )
    dataloader_drop_last: bool = option(
        True, "train on full batches only; evaluation always uses every image"
    )
    log_level: str = option("warning", "level of log messages", choices=trainer_log_levels)

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in TRAINER_RANGES and value != field.default:
                check_number(f"--{field.name}", value, TRAINER_RANGES[field.name])
        super().__post_init__()
        if self.neftune_noise_alpha or getattr(self, "train_sampling_strategy", None) == "group_by_length":
            raise ValueError(
                "--neftune_noise_alpha and --train_sampling_strategy group_by_length are for texts: images have neither "
                "embeddings of tokens nor input_ids. Leave out both options."
            )
        if self.remove_unused_columns or not self.batch_eval_metrics:
            raise ValueError(
                "the collator needs --remove_unused_columns false, and the metrics need --batch_eval_metrics true. "
                "Leave out both options."
            )


class SegmentationTrainer(LoadsRenamedWeights, Trainer):
    """Trainer for semantic segmentation, with evaluation on images of any size and several processes.

    Predictions are resized to their masks before they are padded and gathered. Trainer itself pads the height
    of label maps first, resizes logits to the padded map, and cannot gather maps of different widths.

    The constructor is that of `transformers.Trainer`; `preprocess_logits_for_metrics` is not needed.

    Args:
        model: Any model that `AutoModelForSemanticSegmentation` loads.
        args: Settings, a `SegmentationTrainingArguments`.
        data_collator: A `SegmentationCollator`.
        train_dataset: Image-mask pairs, augmented by an `AugmentedDataset`.
        eval_dataset: Image-mask pairs of any size.
        processing_class: The image processor, which is saved with the model.
        compute_metrics: A `TrainerScores`.
        callbacks: Callbacks; `SetEpoch()` is one of them if the training data is augmented.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.classifies_masks = is_mask_model(getattr(self.model, "config", None))
        if self.classifies_masks:
            self.label_names = ["labels"]  # of which `compute_loss` makes those of its loss
        # Whole images have no `context_labels`, and Trainer takes a batch that lacks one of the names for unlabeled.
        self.label_names = [name for name in self.label_names if name != "context_labels"]

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        """As in Trainer, but with every image: `dataloader_drop_last` applies to training only."""
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = drop_last

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """As in Trainer, but `label_smoothing_factor` smooths over the classes, and keeps the model's own loss."""
        smoother, self.label_smoother = self.label_smoother, None
        if self.classifies_masks:
            inputs = with_targets(inputs, self.model.config)
        try:
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        finally:
            self.label_smoother = smoother
        if smoother is not None and self.compute_loss_func is None and "labels" in inputs:
            config = self.accelerator.unwrap_model(model).config
            logits = outputs["logits"] if isinstance(outputs, dict) else outputs[1]
            ignore_index = getattr(config, ignore_index_field(config))
            loss = smoothed_loss(loss, logits, inputs["labels"], smoother.epsilon, ignore_index)
        return (loss, outputs) if return_outputs else loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in Trainer, but weights that are infinite or NaN never replace a saved model or checkpoint."""
        check_finite(self.model, f"step {self.state.global_step} was not saved")
        super().save_model(output_dir, _internal_call)

    def evaluation_loop(self, *arguments: Any, **options: Any) -> EvalLoopOutput:
        """As in Trainer, after broadcasting the buffers: batch norm statistics differ between processes.

        Predictions and labels of images of different sizes are padded with -100 to one array.
        """
        for buffer in self.model.buffers():
            broadcast(buffer)
        with self.batches_apart() as join:
            output = super().evaluation_loop(*arguments, **options)
        return output._replace(predictions=join(output.predictions), label_ids=join(output.label_ids))

    @contextmanager
    def batches_apart(self) -> Iterator[Callable[[Any], Any]]:
        """Makes Trainer keep batches in a list, because it cannot join maps of different widths.

        Yields the function that joins them, which `compute_metrics` gets the result of, too; it changes nothing
        with `eval_do_concat_batches=False`.
        """
        joins, metrics = self.args.eval_do_concat_batches, self.compute_metrics
        join = joined if joins else lambda batches: batches

        def metrics_of_all(evaluation: EvalPrediction) -> dict[str, Any]:
            parts = (evaluation.predictions, evaluation.label_ids, evaluation.inputs, evaluation.losses)
            return metrics(EvalPrediction(*map(join, parts)))

        self.args.eval_do_concat_batches = False
        if metrics is not None and not self.args.batch_eval_metrics:
            self.compute_metrics = metrics_of_all
        try:
            yield join
        finally:
            self.args.eval_do_concat_batches, self.compute_metrics = joins, metrics

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Computes loss and predictions of one evaluation batch.

        Returns:
            Loss; predicted class ids (B, H, W) at the size of the masks; labels (B, H, W). Ids and labels are
            padded to the same size on all processes. Without labels, logits (B, K, H, W) and None.
        """
        if self.classifies_masks:
            loss, logits, labels = self.mask_step(model, inputs)
        else:
            loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if logits is None or labels is None:
            return loss, logits, labels
        return loss, *(self.padded(ids) for ids in (reduce_logits(logits, labels), labels))

    def mask_step(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[None, Tensor, Tensor | None]:
        """No loss, scores (B, K, h, w) and labels (B, H, W) of a model that classifies masks; images may have any size."""
        inputs = self._prepare_inputs(inputs)
        segmenter = MaskSegmenter(self.accelerator.unwrap_model(model)).eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            scores = segmenter(inputs["pixel_values"]).logits
        return None, scores, inputs.get("labels")

    def padded(self, ids: Tensor) -> Tensor:
        """(B, H, W) -> (B, H', W'), padded to the largest of all processes with an id that metrics ignore."""
        for axis in (1, 2):
            ids = self.accelerator.pad_across_processes(ids, dim=axis, pad_index=PADDING)
        return ids

    def create_model_card(self, *arguments: Any, **options: Any) -> None:
        """Writes Trainer's model card, completed by our own sections if the model is one of contextseg."""
        super().create_model_card(*arguments, **options)
        if self.is_world_process_zero():
            complete_card(Path(self.args.output_dir))
            if self.args.push_to_hub:
                ask_for_license(Path(self.args.output_dir))


def smoothed_loss(loss: Tensor, logits: Tensor, labels: Tensor, factor: float, ignore_index: int) -> Tensor:
    """Mixes a loss with the cross-entropy towards equal probabilities of all classes.

    For the mean cross-entropy this is `torch.nn.CrossEntropyLoss(label_smoothing=factor)`; other terms, such as
    the loss of an auxiliary head, keep the share 1 - factor.

    Args:
        loss: Scalar, the loss of the model.
        logits: Logits (B, K, h, w) of the model, at any stride.
        labels: Class ids (B, H, W).
        factor: Share of the uniform distribution, from 0 to 1.
        ignore_index: Label of pixels that are not counted.
    """
    uniform = segmentation_loss(logits, labels, ignore_index=ignore_index, label_smoothing=1.0)
    return (1 - factor) * loss + factor * uniform


def joined(batches: Any) -> Any:
    """A list of arrays (B, ...), or of tuples of them -> one array, or tuple of them, padded with -100."""
    if not isinstance(batches, list) or not batches:
        return batches
    if isinstance(batches[0], tuple | list):
        return tuple(joined(list(part)) for part in zip(*batches, strict=True))
    sizes = [max(sides) for sides in zip(*(batch.shape[1:] for batch in batches), strict=True)]
    padded = [
        np.pad(
            batch,
            [(0, 0), *((0, size - side) for size, side in zip(sizes, batch.shape[1:], strict=True))],
            constant_values=PADDING,
        )
        for batch in batches
    ]
    return np.concatenate(padded)
