"""Finds the cases that a `dataset.json` lists, as in the Medical Segmentation Decathlon, MONAI and nnU-Net.

    {"training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}], "test": ["./imagesTs/b.nii.gz"]}
    {"training": [...], "validation": [...], "testing": [...]}                      lists of MONAI
    {"dataset": {"a": {"images": ["a_0000.nii.gz"], "label": "a.nii.gz"}}}          nnU-Net

Paths are relative to the folder of the file. Files that are not listed are not read.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..image_files import same_name
from ..palettes import shown
from ..volumes.volume_reading import volume_name
from .pairing import listed
from .volume_folders import FoundCases, VolumeCase

PARTS = {"train": ("training",), "val": ("validation",), "test": ("test", "testing")}  # split -> keys
MOST_CHANNELS = 10_000  # four digits


def lists_cases(content: Mapping[str, Any]) -> bool:
    """Whether a `dataset.json` lists its training cases."""
    return bool(_entries(content, "train"))


def listed_splits(content: Mapping[str, Any]) -> list[str]:
    """The splits, of "train", "val" and "test", that a `dataset.json` lists."""
    return [split for split in PARTS if _entries(content, split)]


def listed_cases(
    content: Mapping[str, Any], folder: Path, split: str, channel_names: Sequence[str] = ()
) -> FoundCases:
    """Returns the listed cases whose files exist; the others are problems.

    Args:
        content: The parsed `dataset.json`.
        folder: Its folder.
        split: "train", "val" or "test".
        channel_names: Names of the channels. Default: unknown.

    Raises:
        ValueError: If an entry has no image, or no case is left.
    """
    entries = _entries(content, split)
    found = FoundCases([])
    cases = [_case(name, entry, folder) for name, entry in entries]
    cases = _named(cases, folder)
    missing = [
        str(path) for case in cases for path in (*case.images, case.label) if path and not path.exists()
    ]
    if missing:
        found.problems.append(
            f"{len(missing)} files that dataset.json lists do not exist: {listed(missing)}. Add them, or correct the list."
        )
    count = len(channel_names)
    wrong = [case.name for case in cases if count and len(case.images) not in (1, count)]
    if wrong:
        found.problems.append(
            f"{len(wrong)} cases do not have one file for each of the {count} channels: {listed(wrong)}. Correct their files, "
            "or the channels in dataset.json."
        )
    twice = [name for name, number in Counter(case.name for case in cases).items() if number > 1]
    if twice:
        found.problems.append(
            f"{len(twice)} cases are listed twice: {listed(twice)}. Keep one entry of each."
        )
    left = {*missing, *wrong, *twice}
    found.cases = sorted(c for c in cases if not left & {c.name, *map(str, c.images), str(c.label)})
    if not found.cases:
        raise ValueError(f"'{folder}' has no complete case. " + " ".join(found.problems))
    return found


def fold_numbers(content: Mapping[str, Any]) -> dict[str, int]:
    """Name of a training case -> number of its fold, for lists that give one to each case; empty for others."""
    entries = [entry for _, entry in _entries(content, "train")]
    if not all(isinstance(entry, Mapping) and isinstance(entry.get("fold"), int) for entry in entries):
        return {}
    return {_case(None, entry, Path()).name: entry["fold"] for entry in entries}


def _entries(content: Mapping[str, Any], split: str) -> list[tuple[str | None, Any]]:
    """The entries of a split, each with its name or None."""
    if split == "train" and isinstance(content.get("dataset"), Mapping):
        return list(content["dataset"].items())
    given = next((content[key] for key in PARTS[split] if isinstance(content.get(key), list)), [])
    return [(None, entry) for entry in given]


def _case(name: str | None, entry: Any, folder: Path) -> VolumeCase:
    """A case of an entry: the path of its image, or a table with the paths of images and label."""
    table = entry if isinstance(entry, Mapping) else {"image": entry}
    images = table.get("images", table.get("image"))
    images = [images] if isinstance(images, str) else images
    label = table.get("label")
    paths = [*images, label] if isinstance(images, list) and images else [None]
    if not all(isinstance(path, str) and path for path in paths[:-1]) or not isinstance(label, str | None):
        raise ValueError(
            f'dataset.json lists {shown(entry)}. Write for example {{"image": "./imagesTr/a.nii.gz", "label": '
            '"./labelsTr/a.nii.gz"}.'
        )
    files = tuple(folder / path for path in images)
    if len(files) == 1 and not files[0].exists():
        files = _files_of_channels(files[0]) or files
    name = volume_name(images[0]) if name is None else name
    return VolumeCase(same_name(name), files, folder / label if label else None)


def _files_of_channels(path: Path) -> tuple[Path, ...]:
    """The files a_0000.nii.gz, a_0001.nii.gz, ... for "a.nii.gz", as nnU-Net 1 lists them."""
    stem = volume_name(path)
    ending = path.name[len(stem) :]
    files = []
    while (file := path.with_name(f"{stem}_{len(files):04d}{ending}")).exists() and len(
        files
    ) < MOST_CHANNELS:
        files.append(file)
    return tuple(files)


def _named(cases: list[VolumeCase], folder: Path) -> list[VolumeCase]:
    """The same cases, with the path in the names of files that share their name with another folder's."""
    number = Counter(case.name for case in cases)
    paths = Counter(case.images for case in cases)
    return [
        case._replace(name=same_name((case.images[0].parent.relative_to(folder) / case.name).as_posix()))
        if number[case.name] > 1 and paths[case.images] == 1 and case.images[0].is_relative_to(folder)
        else case
        for case in cases
    ]
