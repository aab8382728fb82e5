"""Which part of a model is trained: frozen modules, and low-rank updates (LoRA)."""

import logging
from collections.abc import Sequence
from types import MethodType

from torch import Tensor, nn
from transformers import PreTrainedModel

from ..modeling.model_parts import backbone_name

logger = logging.getLogger(__name__)

MILLION = 1e6
BACKBONE = "backbone"


def select_trained(model: PreTrainedModel, freeze: Sequence[str], lora: int) -> PreTrainedModel:
    """Freezes modules and adds LoRA, as --freeze and --lora ask for.

    Args:
        model: The model, changed in place.
        freeze: Names of modules, see `frozen_modules`. They stay in evaluation mode, which fixes the statistics
            of batch norm and switches off dropout and drop path, and get no gradients.
        lora: Rank of the updates of the backbone's linear layers; 0 adds none.

    Returns:
        The model itself, with LoRA layers in place of linear ones if `lora` is not 0.

    Raises:
        ValueError: If there is no such module, or nothing is left to train.
    """
    for module in frozen_modules(model, freeze):
        module.requires_grad_(False).train(False)
        module.train = MethodType(stay_evaluating, module)
    if lora:
        from ..modeling.lora import add_lora  # peft takes seconds to import

        model = add_lora(model, lora).get_base_model()
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    if not trained:
        raise ValueError(f"--freeze {' '.join(freeze)} leaves nothing to train. Freeze fewer modules.")
    if freeze or lora:
        total = sum(weight.numel() for weight in model.parameters())
        logger.warning(
            "%.1f M of %.1f M parameters are trained%s%s",
            trained / MILLION,
            total / MILLION,
            f"; frozen: {', '.join(freeze)}" if freeze else "",
            f"; LoRA of rank {lora}" if lora else "",
        )
    return model


def frozen_modules(model: PreTrainedModel, names: Sequence[str]) -> list[nn.Module]:
    """Returns the modules with these names.

    A name is a whole path such as "backbone.encoder.stages.0", or its end, such as "stages.0"; "backbone" is the
    encoder of any model. Raises ValueError for a name without a module.
    """
    found = []
    for name in names:
        path = backbone_name(model) if name == BACKBONE else name
        fitting = [module for at, module in model.named_modules() if at == path or at.endswith(f".{path}")]
        if not fitting:
            parts = ", ".join(part for part, _ in model.named_children())
            inside = next(at for at, _ in model.named_modules() if at.count(".") > 1)
            raise ValueError(
                f"--freeze {name}: no module of {type(model).__name__} has this name. Its parts are {parts}; name one of them, "
                f"or a module inside, such as {inside}."
            )
        found += fitting
    return found


def stay_evaluating(module: nn.Module, mode: bool = True) -> nn.Module:  # noqa: ARG001 - of `nn.Module.train`
    """Takes the place of `train` in a frozen module: whoever calls it, also for the whole model."""
    return nn.Module.train(module, False)


def without_lora(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights of the plain model to save, into which LoRA updates are merged, if there are any."""
    if not any(".lora_A." in name for name in weights):
        return weights
    from ..modeling.lora import merged_weights

    return merged_weights(model, weights)
