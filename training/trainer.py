"""What transformers' Trainer lacks for segmentation: epochs that the augmentation knows, and scores over images of any size.

Legend: B batch, H, W image axes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput
from transformers.training_args import trainer_log_levels

from ..hub.model_card import ask_for_license
from ..hub.repositories import complete_card
from ..processing.metrics import PADDING, reduce_logits
from .command_line import option


class SetEpoch(TrainerCallback):
    """Tells an `AugmentedDataset` which epoch begins, so that its samples differ from epoch to epoch and a resumed run's are those
    of an uninterrupted one. Accelerate's loaders do so too, but not on several processes, nor after resuming.
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
        train_dataloader.dataset.set_epoch(int(state.epoch or 0))


@dataclass
class SegmentationTrainingArguments(TrainingArguments):
    """TrainingArguments with the defaults that segmentation needs."""

    remove_unused_columns: bool = option(False, "must stay false: the collator reads images and masks")
    batch_eval_metrics: bool = option(True, "must stay true: scores are computed batch by batch")
    per_device_eval_batch_size: int = option(
        1, "images in one forward pass of evaluation; a model without pixel_mask needs images of one size"
    )
    dataloader_drop_last: bool = option(True, "train on full batches only; evaluation takes every image")
    log_level: str = option("warning", "level of log messages", choices=trainer_log_levels)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.remove_unused_columns or not self.batch_eval_metrics:
            raise ValueError(
                "the collator needs --remove_unused_columns false, and the scores --batch_eval_metrics true. "
                "Leave both options out."
            )


class SegmentationTrainer(Trainer):
    """Trainer whose evaluation takes images of any sizes on any number of processes, and counts each of them once.

    Trainer itself pads the height of label maps before it gathers them, then resizes logits to the padded map, and cannot
    gather maps of different widths. Pass `TrainerScores` as `compute_metrics`; `preprocess_logits_for_metrics` is not needed.
    """

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        """All images: `dataloader_drop_last` is for training."""
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = drop_last

    def evaluation_loop(self, *arguments: Any, **options: Any) -> EvalLoopOutput:
        """On all processes the model that is saved, the first one's: running statistics are each process's own."""
        for buffer in self.model.buffers():
            broadcast(buffer)
        return super().evaluation_loop(*arguments, **options)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Loss, class ids (B, H, W) at the size of the masks, and labels (B, H, W), of one size on all processes."""
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if logits is None or labels is None:
            return loss, logits, labels
        return loss, *(self.padded(ids) for ids in (reduce_logits(logits, labels), labels))

    def padded(self, ids: Tensor) -> Tensor:
        """(B, H, W) -> the largest H and W of all processes, filled with an id that no score counts."""
        for axis in (1, 2):
            ids = self.accelerator.pad_across_processes(ids, dim=axis, pad_index=PADDING)
        return ids

    def create_model_card(self, *arguments: Any, **options: Any) -> None:
        """Trainer's card, with what our own cards say where the model is ours."""
        super().create_model_card(*arguments, **options)
        if self.is_world_process_zero():
            complete_card(Path(self.args.output_dir))
            if self.args.push_to_hub:
                ask_for_license(Path(self.args.output_dir))
