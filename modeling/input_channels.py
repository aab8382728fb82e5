"""Pretrained weights for images with another number of channels than the checkpoint was trained on.

The first convolution keeps the weights of the channels that it knows, here RGB; each further channel starts
with their mean, and all are scaled by 3 / C', so that an image with the same values in every channel gives
the same features as before. With fewer channels, each has the scaled mean: for one, the sum of R, G and B.

Legend: C channels of the checkpoint, C' channels of the model, D channels of the first feature map.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ..configuration.field_rules import check_field_range

logger = logging.getLogger(__name__)

# Options of `from_pretrained` that concern where the final model is placed, not how its checkpoint is read.
PLACEMENT = {
    "device_map",
    "max_memory",
    "offload_folder",
    "output_loading_info",
    "quantization_config",
    "tp_plan",
}


def channels_of(config: PreTrainedConfig) -> int:
    """The number of channels of a model's images, which some configurations have in that of their encoder."""
    backbone = getattr(config, "backbone_config", None)
    return getattr(config, "num_channels", None) or getattr(backbone, "num_channels", None) or 3


def fit_channels(kernel: Tensor, num_channels: int) -> Tensor:
    """(D, C, ...) -> (D, C', ...), the weights of a first convolution for `num_channels` channels."""
    known = kernel.shape[1]
    mean = kernel.float().mean(dim=1, keepdim=True)
    kept = kernel.float() if num_channels > known else mean[:, :0]
    added = mean.expand(-1, num_channels - kept.shape[1], *kernel.shape[2:])
    return (torch.cat([kept, added], dim=1) * (known / num_channels)).to(kernel.dtype)


def fit_stem(weights: Mapping[str, Tensor], fresh: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Adapts the first convolution of a checkpoint to the number of channels of a model, and logs it.

    Args:
        weights: Tensors of the checkpoint, named as in the model.
        fresh: Tensors of the model, also on the meta device.

    Returns:
        The tensors, in which every convolution that differs only in its input channels fits the model.

    Raises:
        ValueError: If another tensor of the same name has another shape.
    """
    fitted = dict(weights)
    for name in weights.keys() & fresh.keys():
        stored, wanted = weights[name], fresh[name].shape
        if stored.shape == wanted:
            continue
        if stored.ndim < 3 or (stored.shape[0], *stored.shape[2:]) != (wanted[0], *wanted[2:]):
            raise ValueError(
                f"'{name}' has shape {tuple(stored.shape)} in the checkpoint and {tuple(wanted)} in the model, which "
                "no choice of channels explains. Leave out num_channels and the options that change sizes."
            )
        fitted[name] = fit_channels(stored, wanted[1])
        more, known = wanted[1] > stored.shape[1], stored.shape[1]
        logger.warning(
            "first convolution adapted from %d to %d channels: %s, scaled by %d/%d",
            known, wanted[1],
            f"{known} keep their weights and the others start with the mean" if more else "the mean for each",
            known, wanted[1],
        )  # fmt: skip
    return fitted


def with_num_channels(config: PreTrainedConfig, num_channels: int) -> PreTrainedConfig:
    """A copy of a configuration, or of the backbone's inside it, with this number of channels.

    Raises ValueError if it has no such field, or the number is out of range.
    """
    check_field_range("num_channels", num_channels)
    config = deepcopy(config)
    backbone = getattr(config, "backbone_config", None) or config
    if not hasattr(backbone, "num_channels"):
        raise ValueError(
            f"the configuration of '{backbone.model_type}' has no num_channels, so that its input is fixed. Leave "
            "num_channels out, or use another encoder."
        )
    backbone.num_channels = num_channels
    return config


def adapt_channels(
    model: PreTrainedModel, num_channels: int, missing: Iterable[str] = (), **options: Any
) -> Any:
    """Builds a loaded model anew for images with another number of channels.

    Args:
        model: Model of this library or of transformers.
        num_channels: Channels of the images.
        missing: Names of the tensors that its checkpoint lacks; they are newly initialized.
        **options: Options of `from_pretrained` for the new model.
    """
    config = with_num_channels(model.config, num_channels)
    with torch.device("meta"):
        fresh = type(model)(deepcopy(config)).state_dict()
    weights = {name: tensor for name, tensor in model.state_dict().items() if name not in set(missing)}
    source = model.config._name_or_path
    adapted = type(model).from_pretrained(None, config=config, state_dict=fit_stem(weights, fresh), **options)
    (adapted[0] if isinstance(adapted, tuple) else adapted).config._name_or_path = source
    return adapted


def load_for_channels(load: Callable[..., Any], stored: int, name: Any, *args: Any, **options: Any) -> Any:
    """Loads a checkpoint for another number of channels than it was trained on.

    Args:
        load: `from_pretrained` of transformers.
        stored: Number of channels of the checkpoint.
        name: Local folder, or name on the Hub.
        *args: Further arguments of `load`.
        **options: Options of `load`, with the wanted number as `num_channels` or in a `config`.
    """
    config = options.get("config")
    wanted = options.pop("num_channels", getattr(config, "num_channels", None))
    if isinstance(config, PreTrainedConfig):
        options["config"] = with_num_channels(config, stored)
    reading = {option: value for option, value in options.items() if option not in PLACEMENT}
    model, info = load(name, *args, **reading, output_loading_info=True)
    placement = {option: options[option] for option in (PLACEMENT | {"dtype"}) & options.keys()}
    return adapt_channels(model, wanted, info["missing_keys"], **placement)
