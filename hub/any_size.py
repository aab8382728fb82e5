"""What is replaced in models of transformers while they are traced, where they are written for one size of images.

The replacements compute the same. They leave out what a program for any size cannot decide or solve: whether sides
need padding, nested remainders, and which cells a bin of adaptive pooling covers.

Legend: B batch, C channels, h, w cells of a feature map.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental import _config
from torch.overrides import TorchFunctionMode

from ..modeling.decoder_upernet import averaged

PADDED = (0, 0, 0, 1, 0, 1)  # for Swin's layers: cells were added, so that the result is cropped


def contiguous_copy(
    features: Tensor, *, memory_format: torch.memory_format = torch.contiguous_format
) -> Tensor:
    """What `Tensor.contiguous` gives, as a copy in any case."""
    return features.clone(memory_format=memory_format)


def copied_slice(
    features: Tensor, axis: int = 0, start: int | None = None, stop: int | None = None, step: int = 1
) -> Tensor:
    """What a slice up to a size of the image gives, as a copy: a view of the whole would have another layout."""
    if isinstance(stop, torch.SymInt) and start in (None, 0) and step == 1 and stop <= features.shape[axis]:
        return features.index_select(axis, torch.arange(stop, device=features.device))
    return torch.ops.aten.slice(features, axis, start, stop, step)


def repeated(features: Tensor, *sizes: int | Sequence[int]) -> Tensor:
    """What `Tensor.expand` gives, as a copy along axes that are repeated a free number of times: it might be one."""
    sizes = sizes[0] if isinstance(sizes[0], Sequence) else sizes
    features = features[(None,) * (len(sizes) - features.ndim)]
    counts = [
        size if isinstance(size, torch.SymInt) and side == 1 else 1
        for size, side in zip(sizes, features.shape, strict=True)
    ]
    if not any(isinstance(count, torch.SymInt) for count in counts):
        return torch.ops.aten.expand(features, sizes)
    known = [
        -1 if isinstance(count, torch.SymInt) else size for count, size in zip(counts, sizes, strict=True)
    ]
    return torch.ops.aten.expand(features.repeat(counts), known)


class ForAnySize(TorchFunctionMode):
    """Functions of torch in a form that holds for all sizes."""

    replaced: dict[Callable, Callable] = {
        F.adaptive_avg_pool2d: averaged,
        Tensor.contiguous: contiguous_copy,
        Tensor.expand: repeated,
        torch.ops.aten.slice: copied_slice,
    }

    def __torch_function__(
        self, func: Callable, _types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        return self.replaced.get(func, func)(*args, **(kwargs or {}))


@contextmanager
def for_any_size(model: nn.Module) -> Iterator[None]:
    """Context manager in which a model can be traced for any size of images."""
    padding = [module for module in model.modules() if hasattr(module, "maybe_pad")]
    for module in padding:
        module.maybe_pad = partial(padded, module)
    try:
        # As torch's exporter to ONNX does: otherwise the program is for sizes with more than one window or cell.
        with ForAnySize(), _config.patch(backed_size_oblivious=True):
            yield
    finally:
        for module in padding:
            del module.maybe_pad


def padded(module: nn.Module, features: Tensor, height: int, width: int) -> Any:
    """What `maybe_pad` of the parts of Swin and its kin does, with zeros on the right and at the bottom.

    Layers take and return (B, h, w, C), padded to whole windows, and return `PADDED` too; so does patch merging, to
    whole pairs; patch embeddings take (B, C, H, W), padded to whole patches.
    """
    if hasattr(module, "window_size"):
        return F.pad(features, (0, 0, *missing((height, width), (module.window_size,) * 2))), PADDED
    if hasattr(module, "patch_size"):
        return F.pad(features, missing((height, width), module.patch_size))
    return F.pad(features, (0, 0, *missing((height, width), (2, 2))))


def missing(sides: tuple[int, int], steps: tuple[int, int]) -> tuple[int, int, int, int]:
    """(h, w), steps -> what `F.pad` takes to make each side a multiple of its step."""
    rows, columns = ((side + step - 1) // step * step - side for side, step in zip(sides, steps, strict=True))
    return 0, columns, 0, rows
