"""Splits the cases of a data set into training and validation, as nnU-Net does: by `splits_final.json`, or by its rule.

    [{"train": ["case_a", ...], "val": ["case_b", ...]}, ...]       one entry per fold

"DATA:train" and "DATA:val" are those of fold 0, "DATA:train@3" that of fold 3. Without the file, the cases are divided
into five folds as nnU-Net divides them when it first trains, so both compare on the same cases.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..image_files import same_name
from ..palettes import shown
from ..volumes.volume_reading import volume_name
from .class_file import read_json
from .pairing import listed

FILE_NAME = "splits_final.json"
OLD_FILE = "splits_final.pkl"
FOLDS, SEED = 5, 12345  # nnU-Net's
EXAMPLE = '[{"train": ["case_a"], "val": ["case_b"]}]'
SPLIT = re.compile(r"(?P<name>[^\W\d]\w*)(?:@(?P<fold>[0-9]{1,4}))?")


class Split(NamedTuple):
    """A part of a data set, "train", "val", "test" or the name of a subfolder, and its fold."""

    name: str
    fold: int | None = None


def split_of(source: str) -> tuple[str, Split | None]:
    """ "data:train@3" -> ("data", Split("train", 3)); a source that exists is not split."""
    place, colon, last = source.rpartition(":")
    if (
        len(place) < 2
        or not colon
        or Path(source).expanduser().exists()
        or not (match := SPLIT.fullmatch(last))
    ):
        return source, None
    return place, Split(match["name"], None if match["fold"] is None else int(match["fold"]))


def names_of_split(folder: Path, split: Split, cases: Sequence[str]) -> list[str]:
    """The names of the cases of "train" or "val" of a fold, sorted.

    Args:
        folder: Folder of the data, in which `splits_final.json` may lie.
        split: The split and its fold. Default: fold 0.
        cases: The names of all cases with labels.

    Raises:
        ValueError: If the fold does not exist, `splits_final.json` is not valid or names other cases, or there are too
            few cases to divide.
    """
    folds = read_folds(folder)
    if folds is None:
        folds = default_folds(cases, folder)
    number = split.fold or 0
    if number >= len(folds):
        raise ValueError(
            f"'{folder}' has no fold {number}: there are {len(folds)} folds. Choose from 0 to {len(folds) - 1}."
        )
    check_fold(folds[number], cases, f"fold {number} of '{folder / FILE_NAME}'")
    return sorted(folds[number][split.name])


def read_folds(folder: Path) -> list[dict[str, list[str]]] | None:
    """The folds in `splits_final.json`; None without the file. Raises ValueError if it is not valid."""
    path = folder / FILE_NAME
    if not path.is_file():
        if (folder / OLD_FILE).is_file():
            raise ValueError(
                f"'{folder / OLD_FILE}' is not read, because a pickle can run any code. Save it as {FILE_NAME}, "
                f"for example {EXAMPLE}."
            )
        return None
    content = read_json(path, EXAMPLE)
    content = [content] if isinstance(content, Mapping) else content
    if not isinstance(content, list) or not content or not all(map(_is_fold, content)):
        raise ValueError(
            f"'{path}' is not a list of folds, but {shown(content)}. Write for example {EXAMPLE}."
        )
    return [
        {part: [same_name(volume_name(name)) for name in fold[part]] for part in ("train", "val")}
        for fold in content
    ]


def default_folds(cases: Sequence[str], folder: Path) -> list[dict[str, list[str]]]:
    """The five folds into which nnU-Net divides these cases. Raises ValueError for fewer than five cases."""
    names = sorted(cases)
    if len(names) < FOLDS:
        raise ValueError(
            f"'{folder}' has {len(names)} cases, too few for {FOLDS} folds, and no {FILE_NAME}. Write this file, for "
            f"example {EXAMPLE}."
        )
    order = np.arange(len(names))
    np.random.RandomState(SEED).shuffle(order)
    folds = []
    for chosen in np.array_split(order, FOLDS):
        val = {names[place] for place in chosen}
        folds.append({"train": [name for name in names if name not in val], "val": sorted(val)})
    return folds


def check_fold(fold: Mapping[str, Sequence[str]], cases: Sequence[str], origin: str) -> None:
    """Raises ValueError if a fold names a case that does not exist, or one on both sides."""
    if both := sorted(set(fold["train"]) & set(fold["val"])):
        raise ValueError(
            f"{origin} has {len(both)} cases to train on that are also for validation: {listed(both)}. Remove them from one "
            "of the two."
        )
    unknown = sorted({*fold["train"], *fold["val"]} - set(cases))
    if unknown:
        raise ValueError(
            f"{origin} names {len(unknown)} cases that the data does not have: {listed(unknown)}. Add their files, or "
            "correct the file."
        )


def _is_fold(fold: Any) -> bool:
    return isinstance(fold, Mapping) and all(
        isinstance(fold.get(part), list) and all(isinstance(name, str) for name in fold[part])
        for part in ("train", "val")
    )
