"""Base class of all models: initialization, input checks, saving and pushing."""

import os
from collections.abc import Callable
from importlib import import_module
from json import JSONDecodeError
from types import ModuleType
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel


class HubHooks(NamedTuple):
    """Functions that save a model with its code; `registration.py` sets them if contextseg is installed.

    Args:
        save: Called with the model, transformers' own `save_pretrained`, the folder, and the options of
            `save_pretrained`.
        push: Called with the model, the name of the repository on the Hub, and the options of `push_to_hub`.
    """

    save: Callable[..., None]
    push: Callable[..., Any]


class ContextsegPreTrainedModel(PreTrainedModel):
    """Base class of all models. Modules with their own parameters initialize them in `reset_own_weights`."""

    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # our losses are means: Trainer must average over accumulated batches
    _supports_sdpa = True
    _supports_attention_backend = True
    # None in the copy of this code in a Hub repository: there transformers itself copies the files.
    hub_hooks: HubHooks | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Loads a checkpoint as transformers does, but names the folder whose weights are damaged.

        Args:
            pretrained_model_name_or_path: Local folder, or name on the Hub.
            *args: Further arguments of transformers.
            **kwargs: Options of transformers, and configuration fields.

        Raises:
            OSError: If a file of the checkpoint is missing or damaged.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except (SafetensorError, JSONDecodeError) as error:
            raise OSError(
                f"the weights in {pretrained_model_name_or_path} (model*.safetensors) are damaged: {error}. "
                "Copy them again from where they were intact."
            ) from error

    def save_pretrained(
        self, save_directory: str | os.PathLike, is_main_process: bool = True, **options: Any
    ) -> None:
        """Saves a self-contained repository: weights, configuration, code and model card.

        Args:
            save_directory: Folder to write to; created if missing.
            is_main_process: Whether this process writes code and model card; False for all but one in
                distributed runs.
            **options: `license` of the weights for the model card, in the Hub's spelling; `push_to_hub=True`
                with the options of `push_to_hub`; and those of transformers, such as `max_shard_size`.
        """
        write = super().save_pretrained
        if self.hub_hooks is None or not is_main_process or options.get("distributed_checkpoint"):
            write(save_directory, is_main_process, **options)
        else:
            self.hub_hooks.save(self, write, save_directory, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:
        """Pushes what `save_pretrained` writes to the Hub in one commit; creates the repository if needed.

        Args:
            repo_id: Repository on the Hub, such as "me/streets".
            **options: `license` of the weights for the model card, in the Hub's spelling; `token`, `private`,
                `revision`, `create_pr`, `commit_message`, `commit_description` and `tags`; and those of
                `save_pretrained`.

        Returns:
            The commit, a `huggingface_hub.CommitInfo`.

        Raises:
            HubError: If the upload fails, or somebody else pushed meanwhile. Nothing is committed then.
        """
        if self.hub_hooks is None:
            return super().push_to_hub(repo_id, **options)
        return self.hub_hooks.push(self, repo_id, **options)

    def get_input_embeddings(self) -> None:
        """Returns None: pixels have no embedding table. FSDP in accelerate calls this."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if hasattr(module, "reset_own_weights"):
            module.reset_own_weights(self.config.initializer_range)


def library_module(name: str) -> ModuleType:
    """Imports a module of the installed library, such as "modeling.swin_checkpoints".

    Code that loads other checkpoints is not exported with a model. Raises ImportError without contextseg.
    """
    try:
        return import_module(f"contextseg.{name}")
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] != "contextseg":
            raise
        raise ImportError(
            "loading other checkpoints needs the contextseg library; a model's repository has only a part. "
            "Install it with `pip install contextseg`."
        ) from error


def check_images(
    config: PreTrainedConfig,
    pixel_values: Tensor,
    pixel_mask: Tensor | None = None,
    output_attentions: bool | None = None,
) -> None:
    """Raises ValueError unless `pixel_values` is (B, num_channels, H, W) and `pixel_mask` (B, H, W).

    Also raises it if `output_attentions` is set and the attention implementation does not return them.
    """
    shape, num_channels = (
        tuple(pixel_values.shape),
        getattr(config, "num_channels", 3),
    )  # configurations of users may lack it
    if len(shape) != 4 or shape[1] != num_channels:
        raise ValueError(
            f"pixel_values has shape {shape}; (batch, {num_channels}, height, width) is required. "
            "Prepare images with the model's image processor, or set num_channels."
        )
    if pixel_mask is not None and tuple(pixel_mask.shape) != (shape[0], *shape[2:]):
        raise ValueError(
            f"pixel_mask has shape {tuple(pixel_mask.shape)}; {(shape[0], *shape[2:])} is required, "
            "with 1 for image and 0 for padding."
        )
    if output_attentions and config._attn_implementation != "eager":
        raise ValueError(
            f"attn_implementation '{config._attn_implementation}' does not compute attention matrices. "
            "Call model.set_attn_implementation('eager') before using output_attentions=True."
        )
