"""What every model of this package shares: initialisation, checks of the input, and how it is saved."""

import os
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel


class HubHooks(NamedTuple):
    """What saves a model so that its repository holds its own code. Where contextseg is installed, `registration.py` sets it.

    save: called with the model, transformers' own `save_pretrained`, the folder, and the options of `save_pretrained`.
    push: called with the model, the repository's name on the Hub, and the options of `push_to_hub`.
    """

    save: Callable[..., None]
    push: Callable[..., Any]


class ContextsegPreTrainedModel(PreTrainedModel):
    """Base of all models. Modules that own bare parameters fill them in `reset_own_weights`."""

    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # our losses are means: Trainer must keep averaging over accumulated batches
    _supports_sdpa = True
    _supports_attention_backend = True
    # None in a repository's copy of this code: there transformers itself copies the files along.
    hub_hooks: HubHooks | None = None

    def save_pretrained(
        self, save_directory: str | os.PathLike, is_main_process: bool = True, **options: Any
    ) -> None:
        """Writes a repository of its own: weights, settings, code and model card."""
        write = super().save_pretrained
        if self.hub_hooks is None or not is_main_process or options.get("distributed_checkpoint"):
            write(save_directory, is_main_process, **options)
        else:
            self.hub_hooks.save(self, write, save_directory, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:
        """`save_pretrained` into a repository on the Hub, in one commit."""
        if self.hub_hooks is None:
            return super().push_to_hub(repo_id, **options)
        return self.hub_hooks.push(self, repo_id, **options)

    def get_input_embeddings(self) -> None:
        """None: pixels come in through layers, not through a table. FSDP in accelerate asks."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if hasattr(module, "reset_own_weights"):
            module.reset_own_weights(self.config.initializer_range)


def library_module(name: str) -> ModuleType:
    """A module of the installed library, such as "modeling.swin_checkpoints", imported when it is called for.

    What reads other people's checkpoints stays at home when a model is saved with its code. Raises ImportError without contextseg.
    """
    try:
        return import_module(f"contextseg.{name}")
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] != "contextseg":
            raise
        raise ImportError(
            "reading other checkpoints needs the contextseg library, of which a model's repository holds a part only. "
            "Install it with `pip install contextseg`."
        ) from error


def check_images(
    config: PreTrainedConfig,
    pixel_values: Tensor,
    pixel_mask: Tensor | None = None,
    output_attentions: bool | None = None,
) -> None:
    """Raises unless `pixel_values` is (B, num_channels, H, W), the mask (B, H, W), and attentions can be had."""
    shape, num_channels = (
        tuple(pixel_values.shape),
        getattr(config, "num_channels", 3),
    )  # a user's may not say
    if len(shape) != 4 or shape[1] != num_channels:
        raise ValueError(
            f"pixel_values has shape {shape}; (batch, {num_channels}, height, width) is required. "
            "Prepare images with the model's image processor, or set num_channels."
        )
    if pixel_mask is not None and tuple(pixel_mask.shape) != (shape[0], *shape[2:]):
        raise ValueError(
            f"pixel_mask has shape {tuple(pixel_mask.shape)}; {(shape[0], *shape[2:])} is required, one where there is image."
        )
    if output_attentions and config._attn_implementation != "eager":
        raise ValueError(
            f"attn_implementation '{config._attn_implementation}' never holds the attention matrices. "
            "Call model.set_attn_implementation('eager') before asking for output_attentions=True."
        )
