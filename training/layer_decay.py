"""Layer-wise learning rate decay over the backbone's layers (Bao et al., "BEiT", ICLR 2022, appendix).

With L layers, weights of layer i learn at decay^(L + 1 - i) times the rate of everything outside the backbone;
i is 0 for what comes before the first layer. Neither layers nor their order are listed for each family of
encoders: a layer is an entry of a repeated list of blocks, and the order is that of a forward pass.
"""

import torch
from torch import nn
from transformers import PreTrainedModel

from ..modeling.model_parts import backbone_name

FEWEST_PARTS = 3  # modules with weights in a block; a projection with its norm is none
USUAL_SIDE = 224


def layer_factors(model: PreTrainedModel, decay: float) -> dict[str, float]:
    """Returns the factor of the learning rate of every parameter of the backbone, by name.

    Args:
        model: The model; its backbone runs once on an empty image.
        decay: Factor from each layer to the one before it, above 0 and at most 1.

    Raises:
        ValueError: If the backbone has no repeated blocks, or is frozen.
    """
    if not any(weight.requires_grad for weight in model.get_submodule(backbone_name(model)).parameters()):
        raise ValueError(
            "--layer-decay changes nothing in a backbone that is frozen. Leave it out, or freeze less."
        )
    layers = layer_of_parameters(model)
    count = max(layers.values())
    if not count:
        raise ValueError(
            f"--layer-decay: the backbone of {type(model).__name__} has no repeated blocks. Use --lr-factor instead."
        )
    return {name: decay ** (count + 1 - layer) for name, layer in layers.items()}


def layer_of_parameters(model: PreTrainedModel) -> dict[str, int]:
    """Returns the layer, from 0, of every parameter of the backbone, by name.

    Weights between two layers, such as patch merging, belong to the layer before them.
    """
    backbone = model.get_submodule(backbone_name(model))
    order, blocks = execution_order(backbone), block_names(backbone)
    layer, layer_of_owner, layer_of_block = 0, {}, {}
    for owner in order:
        block = next((name for name in blocks if is_inside(name, owner)), None)
        if block is not None:
            layer = layer_of_block.setdefault(block, len(layer_of_block) + 1)
        layer_of_owner[owner] = layer
    found = {}
    for name, _ in backbone.named_parameters():
        inside = [layer for block, layer in layer_of_block.items() if is_inside(block, name)]
        # A table of positions may be read without a call of its module.
        found[name] = inside[0] if inside else layer_of_owner.get(name.rpartition(".")[0], 0)
    return {f"{backbone_name(model)}.{name}": layer for name, layer in found.items()}


def execution_order(backbone: nn.Module) -> list[str]:
    """Returns the names of the modules with own parameters, in the order in which a forward pass calls them."""
    order: dict[str, None] = {}
    handles = [
        module.register_forward_pre_hook(lambda _, __, name=name: order.setdefault(name))
        for name, module in backbone.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]
    was_training = backbone.training
    backbone.eval()
    fixed = getattr(getattr(backbone, "facts", None), "fixed_size", None)
    side = fixed or getattr(backbone.config, "image_size", None) or USUAL_SIDE
    size = side if isinstance(side, list | tuple) else (side, side)
    size = (*(1,) * (getattr(backbone.config, "num_axes", 2) - len(size)), *size)  # one slice of a volume
    weight = next(backbone.parameters())
    try:
        with torch.no_grad():
            backbone(weight.new_zeros(1, getattr(backbone.config, "num_channels", 3), *size))
    finally:
        backbone.train(was_training)
        for handle in handles:
            handle.remove()
    return list(order)


def block_names(backbone: nn.Module) -> list[str]:
    """Returns the names of the innermost repeated blocks: entries of lists that contain no such list themselves.

    A first entry of a class of its own is an embedding.
    """
    entries = {
        f"{name}.{index}".lstrip("."): type(entry)
        for name, module in backbone.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
        for index, entry in module.named_children()
        if num_parts(entry) >= FEWEST_PARTS
    }
    names = [
        name for name in entries if not any(is_inside(name, other) for other in entries if other != name)
    ]
    first, *others = names or [None]
    is_embedding = bool(others) and entries[first] not in {entries[name] for name in others}
    return others if is_embedding else names


def num_parts(module: nn.Module) -> int:
    return sum(any(True for _ in part.parameters(recurse=False)) for part in module.modules())


def is_inside(outer: str, name: str) -> bool:
    return f"{name}.".startswith(f"{outer}.")
