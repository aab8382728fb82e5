"""Fine-tuning with few weights: LoRA (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022) on the
linear layers of a segmenter's backbone, by the optional package peft.

What has few weights or starts fresh trains in full: decoder and heads, norms, and bare parameters such as tokens and position
tables. peft saves LoRA's weights only and knows whole modules besides, which bare parameters and running statistics are not;
so `LoraSegmenter` saves these itself.
"""

import os
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

try:
    from peft import LoraConfig, PeftModel
    from peft.utils import SAFETENSORS_WEIGHTS_NAME
    from safetensors.torch import load_file, save_file
except ImportError:  # `add_lora` says what to do
    LoraConfig, PeftModel = None, nn.Module

FROZEN = (nn.Linear, nn.modules.conv._ConvNd, nn.Embedding)


class LoraSegmenter(PeftModel):
    """A model with LoRA, trained and saved as every one of peft: Trainer knows it, and its folder is an adapter.

    The adapter holds all that training changes, so that peft's own `PeftModel.from_pretrained(model, folder)` restores it.
    `merge_and_unload()` returns the plain model, which needs no peft: publish that one.
    """

    def save_pretrained(
        self, save_directory: str | os.PathLike, is_main_process: bool = True, **options: Any
    ) -> None:
        """Writes the adapter: what peft saves, and the other trained weights and buffers beside it."""
        options.setdefault("save_embedding_layers", False)  # "auto" asks the Hub for a vocabulary
        super().save_pretrained(str(save_directory), is_main_process=is_main_process, **options)
        if is_main_process:
            path = Path(save_directory) / SAFETENSORS_WEIGHTS_NAME
            others = self.trained_besides_lora(options.get("state_dict") or self.state_dict())
            save_file(load_file(path) | others, path, metadata={"format": "pt"})

    def trained_besides_lora(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The part of a state dict that training changes and peft leaves out: all but LoRA and frozen weights."""
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
    """Freezes the backbone's linear layers and convolutions, and gives each linear layer a trainable update of rank `r`.

    It changes `model` itself, whose outputs stay as they are until the first training step.

    model: a segmenter of this package or of transformers, any model with a backbone.
    lora_alpha: updates are scaled by lora_alpha / r; by default with 1.
    options: further settings of peft's `LoraConfig`.
    """
    if LoraConfig is None:
        raise ImportError("add_lora needs the package peft. Install it: pip install 'contextseg[lora]'.")
    name = backbone_name(model)
    targets = [
        f"{name}.{layer}"
        for layer, module in getattr(model, name).named_modules()
        if isinstance(module, nn.Linear)
    ]
    if not targets:
        raise ValueError(
            f"the backbone of {type(model).__name__} has no linear layers, which LoRA updates. Fine-tune all its weights."
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
    adapted = LoraSegmenter(model, config)
    for parameter in trained:
        parameter.requires_grad_(True)
    return adapted


def backbone_name(model: PreTrainedModel) -> str:
    """The attribute that holds the backbone."""
    for name in (model.base_model_prefix, "backbone"):
        if name and hasattr(model, name):
            return name
    raise ValueError(
        f"{type(model).__name__} has no backbone that could be told from its head. Give a model with a head, such as "
        "SegDeformerForSemanticSegmentation."
    )


def weights_to_train(model: nn.Module, backbone: str) -> list[nn.Parameter]:
    """Everything outside the backbone, and in it all that belongs to no linear layer, convolution or embedding."""
    trained = []
    for name, module in model.named_modules():
        is_inside = f"{name}.".startswith(f"{backbone}.")
        if not (is_inside and isinstance(module, FROZEN)):
            trained += module.parameters(recurse=False)
    return trained


__all__ = ["add_lora"]
