"""Converts checkpoints of other code to our names by a table; no tensor may be left over on either side."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn
from transformers.modeling_utils import load_state_dict

StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class RenamingTable:
    """Rules for renaming, splitting and dropping tensors, as regular expressions searched anywhere in a name.

    Args:
        renamed: (pattern, replacement) pairs, all applied, top to bottom.
        split: (pattern, parts) pairs: a tensor whose new name matches is split into equal parts along its
            first axis; for part k, parts[k] replaces the match.
        dropped: Patterns of tensors to leave out, matched against names in the checkpoint.
        transposed: Patterns of tensors whose first two axes are exchanged, matched against our names.
    """

    renamed: tuple[tuple[str, str | Callable[[re.Match], str]], ...]
    split: tuple[tuple[str, tuple[str, ...]], ...] = ()
    dropped: tuple[str, ...] = ()
    transposed: tuple[str, ...] = ()

    def with_dropped(self, patterns: Iterable[str]) -> "RenamingTable":
        """Returns this table with further patterns of dropped tensors."""
        return replace(self, dropped=(*self.dropped, *patterns))

    def apply(self, state_dict: Mapping[str, Tensor]) -> StateDict:
        """Returns the tensors under our names. Raises ValueError if two tensors get the same name."""
        converted: StateDict = {}
        for source, tensor in state_dict.items():
            if any(re.search(pattern, source) for pattern in self.dropped):
                continue
            for name, part in self.cut(self.rename(source), tensor):
                if name in converted:
                    raise ValueError(
                        f"'{source}' is renamed to '{name}', as is another tensor. Correct the table."
                    )
                is_transposed = any(re.search(pattern, name) for pattern in self.transposed)
                converted[name] = part.transpose(0, 1).contiguous() if is_transposed else part
        return converted

    def rename(self, name: str) -> str:
        for pattern, replacement in self.renamed:
            name = re.sub(pattern, replacement, name)
        return name

    def cut(self, name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
        for pattern, parts in self.split:
            if re.search(pattern, name):
                names = [re.sub(pattern, part, name) for part in parts]
                return list(zip(names, tensor.chunk(len(parts)), strict=True))
        return [(name, tensor)]


def read_weights(path: str | Path) -> StateDict:
    """Reads the tensors of a .safetensors or pickle (.pth, .pt, .bin) file, also of a training checkpoint.

    Raises FileNotFoundError if there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no weights file {path}. Check the path.")
    contents = load_state_dict(path, weights_only=True)
    # keys of the weights in checkpoints of CSWin (averaged weights), mmsegmentation and Swin
    for key in ("state_dict_ema", "state_dict", "model"):
        contents = contents.get(key, contents)
    return {name: tensor for name, tensor in contents.items() if isinstance(tensor, Tensor)}


def fill(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Loads converted weights. Raises ValueError with all missing, unexpected and wrongly shaped tensors."""
    wanted = module.state_dict()
    problems = [
        *section("in the checkpoint, but not in the model", weights, weights.keys() - wanted.keys()),
        *section("in the model, but not in the checkpoint", wanted, wanted.keys() - weights.keys()),
        *mismatches(weights, wanted),
    ]
    if problems:
        raise ValueError(
            "the checkpoint does not fit the model. Check that the weights belong to these arguments.\n"
            + "\n".join(problems)
        )
    module.load_state_dict(weights)


def section(title: str, tensors: Mapping[str, Tensor], names: Iterable[str]) -> list[str]:
    lines = [f"    {name} {tuple(tensors[name].shape)}" for name in sorted(names)]
    return [f"  {title}:", *lines] if lines else []


def mismatches(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    lines = [
        f"    {name} {tuple(weights[name].shape)}, the model has {tuple(wanted[name].shape)}"
        for name in sorted(weights.keys() & wanted.keys())
        if weights[name].shape != wanted[name].shape
    ]
    return ["  of different shape:", *lines] if lines else []
