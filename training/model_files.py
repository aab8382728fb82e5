"""Loading of models for the commands: damaged files, missing weights and values that are not finite are refused.

transformers fills missing weights with random values and loads NaN as it is; both give a mask of nonsense.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import (
    AutoImageProcessor,
    AutoModelForUniversalSegmentation,
    AutoTokenizer,
    BaseImageProcessor,
    PreTrainedModel,
)
from transformers.utils import (
    CONFIG_NAME,
    IMAGE_PROCESSOR_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    cached_file,
)

from ..processing.plain_text import one_line
from .records import read_json

logger = logging.getLogger(__name__)

COPY_AGAIN = "Copy it again from where it was intact."
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
COUNTERS = ("num_batches_tracked",)  # of batch norm; files of old versions lack them


class WeightsError(ValueError):
    """Weights are damaged, incomplete, of another size, or not finite; the message names the file or weight."""


def load_model(auto_class: type, source: str) -> PreTrainedModel:
    """Loads a model whose weights must be complete and finite.

    Args:
        auto_class: An Auto class of transformers.
        source: A folder written by `save_pretrained`, or a name on the Hub.

    Returns:
        The model in evaluation mode.

    Raises:
        WeightsError: If a file is damaged, or weights are missing, of another size or type, or not finite.
        ImportError: If the model classifies masks, and scipy is not installed.
    """
    if auto_class is AutoModelForUniversalSegmentation and find_spec("scipy") is None:
        raise ImportError(
            "models that classify masks need scipy, for their loss. Run: pip install 'contextseg[masks]'"
        )
    with explained_values(source), explained_damage(source):
        model, found = auto_class.from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True
        )
    check_complete(found, source)
    check_types(model, Path(source))
    check_finite(model, f"{source} cannot be used")
    return model.eval()


@contextmanager
def explained_damage(source: str) -> Iterator[None]:
    """Context manager for the loading of a model, that raises WeightsError with the path of a damaged file."""
    check_model_files(Path(source))
    try:
        yield
    except (SafetensorError, RuntimeError, LookupError, EOFError) as error:
        raise WeightsError(
            f"the weights of {source} cannot be loaded ({brief(error)}). {COPY_AGAIN}"
        ) from error


@contextmanager
def explained_values(source: str) -> Iterator[None]:
    """Context manager for the reading of a saved model's settings, that raises ValueError with their path."""
    try:
        yield
    except (ValueError, StrictDataclassError) as error:
        text = " ".join(str(error).split())
        if source in text and text == str(error):
            raise
        raise ValueError(text if source in text else f"{source} cannot be loaded: {text}") from error
    except (TypeError, AttributeError, LookupError) as error:
        raise ValueError(f"{source} is damaged ({brief(error)}). {COPY_AGAIN}") from error


def load_processor(source: str) -> BaseImageProcessor:
    """Loads the image processor of a model. Raises ValueError if its file is damaged."""
    check_settings(Path(source) / IMAGE_PROCESSOR_NAME, "image_processor_type")
    with explained_values(str(Path(source) / IMAGE_PROCESSOR_NAME)):
        return AutoImageProcessor.from_pretrained(source)


def with_tokenizer(source: str, processor: BaseImageProcessor) -> Any:
    """What `MaskSegmenter` takes for a OneFormer: the image processor, and the tokenizer that writes its task."""
    found = (
        cached_file(source, name, _raise_exceptions_for_missing_entries=False) for name in TOKENIZER_FILES
    )
    tokenizer = AutoTokenizer.from_pretrained(source) if any(found) else None
    if tokenizer is None:
        logger.warning("%s has no tokenizer: its task, semantic, is written in CLIP's tokens", source)
    return SimpleNamespace(image_processor=processor, tokenizer=tokenizer)


def check_model_files(folder: Path) -> None:
    """Raises an error with its path for a damaged file of a saved model; does nothing for a name on the Hub."""
    check_settings(folder / CONFIG_NAME, "model_type")
    for path in weight_files(folder):
        if not path.is_file():
            raise WeightsError(
                f"{path} is missing, which {folder / SAFE_WEIGHTS_INDEX_NAME} names. {COPY_AGAIN}"
            )
        headers(path)


def check_all_settings(folder: Path) -> None:
    """Raises ValueError if the settings of a saved model or of its image processor are damaged."""
    check_settings(folder / CONFIG_NAME, "model_type")
    check_settings(folder / IMAGE_PROCESSOR_NAME, "image_processor_type")


def check_settings(path: Path, kind: str) -> None:
    """Raises ValueError if a JSON file of settings exists and is damaged; `kind` is its key that holds a text."""
    if path.exists() and not isinstance(read_json(path).get(kind, ""), str):
        raise ValueError(f"{path} is damaged: its {kind} is not a text. {COPY_AGAIN}")


def weight_files(folder: Path) -> list[Path]:
    """Returns the files in which the weights of a saved model are, in the order of their names."""
    if (folder / SAFE_WEIGHTS_NAME).is_file():
        return [folder / SAFE_WEIGHTS_NAME]
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if not index.is_file():
        return []
    content = read_json(index)
    names = content.get("weight_map")
    is_map = isinstance(names, dict) and all(isinstance(name, str) for name in names.values())
    if not is_map or not isinstance(content.get("metadata", {}), dict):
        raise WeightsError(f"{index} is damaged: it does not say in which file each weight is. {COPY_AGAIN}")
    return [folder / name for name in sorted(set(names.values()))]


def headers(path: Path) -> dict[str, str]:
    """Returns the type of each tensor in a .safetensors file, such as "F32". Raises WeightsError if it is damaged."""
    try:
        path.open("rb").close()  # safetensors says of a file without permission that it does not exist
        with safe_open(path, framework="pt") as tensors:
            return {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    except PermissionError as error:
        raise WeightsError(f"{path} cannot be read: permission denied. Change its permissions.") from error
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path} is damaged ({brief(error)}; it has {path.stat().st_size} bytes). {COPY_AGAIN}"
        ) from error


def check_complete(found: Mapping[str, Any], source: str) -> None:
    """Raises WeightsError for weights that were missing or had another shape, from transformers' loading info."""
    wrong = sorted(name for name, *_ in found["mismatched_keys"])
    missing = sorted(name for name in found["missing_keys"] if not name.endswith(COUNTERS))
    for names, what in ((missing, "lacks"), (wrong, "has, in another shape than config.json describes,")):
        if names:
            raise WeightsError(
                f"{source} {what} {len(names)} weights of the model, such as {names[0]}. Use the folder of a complete "
                "model, or train the model first with contextseg-train --init-from."
            )


def check_types(model: PreTrainedModel, folder: Path) -> None:
    """Raises WeightsError if a file has integers for a weight that is a fraction."""
    if getattr(model.config, "quantization_config", None):
        return
    floating = {name for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    for path in weight_files(folder):
        for name, kind in headers(path).items():
            if name in floating and not kind.startswith(("F", "BF")):
                raise WeightsError(
                    f"{path} has {name} as whole numbers ({kind}), so it is damaged. {COPY_AGAIN}"
                )


def check_finite(weights: nn.Module | Mapping[str, Tensor], what: str) -> None:
    """Raises WeightsError, beginning with `what`, if a weight or buffer is infinite or NaN."""
    name = first_not_finite(weights)
    if name is not None:
        raise WeightsError(f"{what}: the weight {name} has values that are infinite or not numbers.")


def first_not_finite(weights: nn.Module | Mapping[str, Tensor]) -> str | None:
    """Returns the name of a weight or buffer that has infinite or NaN values; None if there is none.

    If all are finite, a device is synchronized once.
    """
    named = dict(floating_tensors(weights))
    if not named:
        return None
    if math.isfinite(torch.nn.utils.get_total_norm(list(named.values()), norm_type=math.inf)):
        return None
    return next((name for name, tensor in named.items() if not tensor.isfinite().all()), None)


def floating_tensors(weights: nn.Module | Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yields the fractions among weights and buffers, without empty ones, by name; of shards, the own part."""
    named = weights.state_dict() if isinstance(weights, nn.Module) else weights
    for name, tensor in named.items():
        tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if tensor.is_floating_point() and tensor.numel() and not tensor.is_meta:
            yield name, tensor


def brief(error: Exception) -> str:
    """Returns an error's message on one line, shortened if it is long."""
    return one_line(str(error), 200) or type(error).__name__
