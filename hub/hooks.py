"""How models and image processors come to save their code: two functions that import the Hub's code when something is saved."""

import os
from collections.abc import Callable
from typing import Any

from huggingface_hub import CommitInfo
from transformers import PreTrainedModel
from transformers.image_processing_base import ImageProcessingMixin

from ..modeling.pretrained import ContextsegPreTrainedModel
from ..modeling.pretrained import HubHooks as ModelHooks
from ..processing.saving import HubHooks as ProcessorHooks
from ..processing.saving import SavedWithCode

Saved = PreTrainedModel | ImageProcessingMixin


def register_hub_hooks() -> None:
    """Makes models and image processors of this package save through `hub/repositories.py`."""
    ContextsegPreTrainedModel.hub_hooks = ModelHooks(save, push)
    SavedWithCode.hub_hooks = ProcessorHooks(save, push)


def save(saved: Saved, write: Callable[..., Any], folder: str | os.PathLike, **options: Any) -> None:
    from .repositories import save

    save(saved, write, folder, **options)


def push(saved: Saved, repo_id: str, **options: Any) -> CommitInfo:
    from .repositories import push

    return push(saved, repo_id, **options)
