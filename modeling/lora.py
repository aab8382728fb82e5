"""Parameter-efficient fine-tuning: LoRA (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models",
ICLR 2022) on the linear layers of a segmenter's backbone, with the optional package peft.

Modules that are small or newly initialized are trained in full: decoder and heads, norms, and bare parameters
such as tokens and position tables. peft saves the LoRA weights and, besides them, only whole modules. Bare
parameters and running statistics are neither, so `LoraSegmenter` saves them itself.
"""

import os
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

try:
    from peft import LoraConfig, PeftModel
    from peft.tuners.lora import LoraLayer
    from peft.utils import SAFETENSORS_WEIGHTS_NAME
    from safetensors.torch import load_file, save_file
except ImportError:  # reported by `add_lora`
    LoraConfig, LoraLayer, PeftModel = None, (), nn.Module

from .model_parts import backbone_name

FROZEN = (nn.Linear, nn.modules.conv._ConvNd, nn.Embedding)


class LoraSegmenter(PeftModel):
    """A model with LoRA, trained and saved like any peft model, for example with transformers' Trainer.

    The saved adapter contains everything that training changes, so that peft's
    `PeftModel.from_pretrained(model, folder)` restores it. `merge_and_unload()` returns the plain model,
    which does not need peft; publish that one.
    """

    def save_pretrained(
        self, save_directory: str | os.PathLike, is_main_process: bool = True, **options: Any
    ) -> None:
        """Saves the adapter: LoRA weights, all other trained weights, and buffers.

        Args:
            save_directory: Folder to write to.
            is_main_process: Whether this process writes; pass False on all others in distributed training.
            **options: Further arguments of peft's `save_pretrained`.
        """
        options.setdefault("save_embedding_layers", False)  # "auto" queries the Hub for the vocabulary
        super().save_pretrained(str(save_directory), is_main_process=is_main_process, **options)
        if is_main_process:
            path = Path(save_directory) / SAFETENSORS_WEIGHTS_NAME
            others = self.trained_besides_lora(options.get("state_dict") or self.state_dict())
            save_file(load_file(path) | others, path, metadata={"format": "pt"})

    def trained_besides_lora(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The trained entries that peft does not save: all but LoRA and frozen weights."""
        frozen = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        return {
            name: tensor.detach().cpu().contiguous()
            for name, tensor in state.items()
            if name not in frozen and ".lora_" not in name
        }


def add_lora(
    model: PreTrainedModel,
    r: int = 8,
    lora_alpha: int | None = None,
    lora_dropout: float = 0.0,
    **options: Any,
) -> LoraSegmenter:
    """Adds LoRA to the linear layers of a model's backbone.

    The backbone's linear layers, convolutions and embeddings are frozen, and each linear layer gets a
    trainable update of rank `r`; everything else is trained in full. The model is modified in place, and its
    outputs do not change until the first training step.

    Args:
        model: A segmenter of this package or of transformers, or any model with a head and a backbone.
        r: Rank of the updates.
        lora_alpha: Updates are scaled by lora_alpha / r; `r` by default, a scale of 1.
        lora_dropout: Dropout rate of the input of the updates.
        **options: Further fields of peft's `LoraConfig`.

    Returns:
        The model wrapped by peft.

    Raises:
        ImportError: If peft is not installed.
        ValueError: If the model has no backbone, or the backbone no linear layers.
    """
    if LoraConfig is None:
        raise ImportError("add_lora needs the package peft. Install it with: pip install 'contextseg[lora]'.")
    name = backbone_name(model)
    targets = [
        f"{name}.{layer}"
        for layer, module in getattr(model, name).named_modules()
        if isinstance(module, nn.Linear)
    ]
    if not targets:
        raise ValueError(
            f"the backbone of {type(model).__name__} has no linear layers, which LoRA needs. Fine-tune all weights."
        )
    trained = [parameter for parameter in weights_to_train(model, name) if parameter.requires_grad]
    config = LoraConfig(
        r=r,
        lora_alpha=r if lora_alpha is None else lora_alpha,
        lora_dropout=lora_dropout,
        target_modules=targets,
        **options,
    )
    config.base_model_name_or_path = model.config._name_or_path or None
    with warnings.catch_warnings():  # peft reads a property by the name that transformers will drop
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        adapted = LoraSegmenter(model, config)
    for parameter in trained:
        parameter.requires_grad_(True)
    return adapted


def merged_weights(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Merges the LoRA updates of a model into its weights.

    Args:
        model: A model with LoRA layers, such as `add_lora(...).get_base_model()`; it is not changed.
        weights: Its state dict, which may be that of other weights or lie on another device.

    Returns:
        The state dict of the model without LoRA: base + scaling * B A for each layer.
    """
    merged = dict(weights)
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        base = {part: merged.pop(f"{name}.base_layer.{part}", None) for part in ("weight", "bias")}
        update = merged.pop(f"{name}.lora_B.default.weight") @ merged.pop(f"{name}.lora_A.default.weight")
        base["weight"] = base["weight"] + layer.scaling["default"] * update
        merged |= {f"{name}.{part}": value for part, value in base.items() if value is not None}
    return merged


def weights_to_train(model: nn.Module, backbone: str) -> list[nn.Parameter]:
    """All parameters except those of linear layers, convolutions and embeddings in the backbone."""
    trained = []
    for name, module in model.named_modules():
        is_inside = f"{name}.".startswith(f"{backbone}.")
        if not (is_inside and isinstance(module, FROZEN)):
            trained += module.parameters(recurse=False)
    return trained


__all__ = ["add_lora", "merged_weights"]
