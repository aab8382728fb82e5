"""Checkpoints of models that transformers saves under other names than those of their modules, such as SegFormer.

`from_pretrained` translates the names. Trainer reads the file itself, and keeps what it does not find there: the
best model and a resumed run would silently have other weights than the checkpoint.
"""

from typing import Any

from torch import nn
from transformers import PreTrainedModel


class LoadsRenamedWeights:
    """Mixin for Trainer: loads a checkpoint again through `from_pretrained` if its names are not the modules'."""

    names_differ = False

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        self.names_differ = bool(load_result.missing_keys) and isinstance(self.model, PreTrainedModel)
        if not self.names_differ:
            super()._issue_warnings_after_load(load_result)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.load_renamed(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self.load_renamed(self.state.best_model_checkpoint)

    def load_renamed(self, folder: str) -> None:
        """Loads the weights in `folder` if Trainer did not find all of them."""
        if self.names_differ:
            self.names_differ = False
            self.model.load_state_dict(type(self.model).from_pretrained(folder).state_dict())
