"""Turns a foreign checkpoint into ours by a table, and accepts no tensor that is left over on either side."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from transformers.modeling_utils import load_state_dict

StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class RenamingTable:
    """What becomes of each tensor. Patterns are regular expressions, searched anywhere in a name.

    renamed: (pattern, replacement) pairs, all applied, top to bottom.
    split: (pattern, parts): a tensor whose new name matches is cut into equal parts along its first axis; part k
        replaces the match by parts[k].
    dropped: tensors whose name in the checkpoint matches are left out.
    """

    renamed: tuple[tuple[str, str | Callable[[re.Match], str]], ...]
    split: tuple[tuple[str, tuple[str, ...]], ...] = ()
    dropped: tuple[str, ...] = ()

    def with_dropped(self, patterns: Iterable[str]) -> "RenamingTable":
        """The same table with further tensors left out."""
        return RenamingTable(self.renamed, self.split, (*self.dropped, *patterns))

    def apply(self, state_dict: Mapping[str, Tensor]) -> StateDict:
        """The checkpoint under our names."""
        converted: StateDict = {}
        for source, tensor in state_dict.items():
            if any(re.search(pattern, source) for pattern in self.dropped):
                continue
            for name, part in self.cut(self.rename(source), tensor):
                if name in converted:
                    raise ValueError(
                        f"'{source}' becomes '{name}', which another tensor became before. Mend the table."
                    )
                converted[name] = part
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
    """The tensors of a .safetensors file or of a pickled one (.pth, .pt, .bin), training checkpoints included."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no weights file at {path}.")
    contents = load_state_dict(path, weights_only=True)
    # where the CSWin authors keep the averaged weights, mmsegmentation and the Swin authors theirs
    for key in ("state_dict_ema", "state_dict", "model"):
        contents = contents.get(key, contents)
    return {name: tensor for name, tensor in contents.items() if isinstance(tensor, Tensor)}


def fill(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Loads converted weights, or raises with every name and shape that is left over or does not fit."""
    wanted = module.state_dict()
    problems = [
        *section("in the checkpoint, but not in the model", weights, weights.keys() - wanted.keys()),
        *section("in the model, but not in the checkpoint", wanted, wanted.keys() - weights.keys()),
        *mismatches(weights, wanted),
    ]
    if problems:
        raise ValueError(
            "the checkpoint does not fit the model. Check that weights and arguments belong together.\n"
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
    return ["  of another shape:", *lines] if lines else []
