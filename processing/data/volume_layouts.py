"""Tells which layout a source of volumes has, and finds the cases of its splits and its table of classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..image_files import image_files
from ..plain_text import counted
from .class_file import read_json
from .class_table import FILE_NAME as CLASSES_FILE
from .class_table import find_class_table
from .pairing import contents
from .volume_folders import TEST, TRAIN, FoundCases, case_folders, find_cases, holds_volumes
from .volume_lists import listed_cases, listed_splits, lists_cases
from .volume_splits import Split, names_of_split, split_of
from .volume_table import EXAMPLE, VolumeTable, table_of_classes, volume_table

DATASET_FILE = "dataset.json"
SUFFIX = ".json"


@dataclass(frozen=True)
class VolumeFolder:
    """A folder of volumes.

    Args:
        root: The folder.
        listing: The parsed `dataset.json` of the folder. Default: none.
    """

    root: Path
    listing: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_listed(self) -> bool:
        """Whether `dataset.json` lists the cases."""
        return lists_cases(self.listing)

    def splits(self) -> list[str]:
        """The splits with cases of their own, "train" first."""
        if self.is_listed:
            return listed_splits(self.listing)
        return [name for name, part in (("train", TRAIN), ("test", TEST)) if case_folders(self.root, part)]

    def cases(
        self, split: Split | None, channels: Sequence[str] = (), file_ending: str | None = None
    ) -> FoundCases:
        """The cases of a split; None: all with labels. Raises ValueError if there are none."""
        name = "train" if split is None else split.name
        if name not in ("train", "val", "test"):
            raise ValueError(f"'{self.root}' has no split '{name}'. Choose from train, val and test.")
        if name == "test":
            return self._cases_of_part("test", channels, file_ending)
        if self.is_listed and name == "val" and "val" in self.splits():
            return self._cases_of_part("val", channels, file_ending)
        found = self._cases_of_part("train", channels, file_ending)
        if split is None or (self.is_listed and "val" in self.splits()):
            return found
        names = set(names_of_split(self.root, split, [case.name for case in found.cases]))
        found.cases = [case for case in found.cases if case.name in names]
        return found

    def _cases_of_part(self, name: str, channels: Sequence[str], file_ending: str | None) -> FoundCases:
        if self.is_listed:
            if name not in self.splits():
                raise ValueError(f"'{self.root / DATASET_FILE}' lists no cases for '{name}'.")
            return listed_cases(self.listing, self.root, name, channels)
        folders = case_folders(self.root, TEST if name == "test" else TRAIN)
        if folders is None:
            raise ValueError(
                f"'{self.root}' has no folder of images for '{name}'; it holds {contents(self.root)}. Give a folder with "
                "imagesTr/ and labelsTr/, or images/ and labels/."
            )
        found = find_cases(*folders, channels, file_ending)
        if folders[1] is None and name != "test":
            found.problems.append(
                f"'{self.root}' has no labels beside {folders[0].name}/. Add the labels; contextseg-predict needs none."
            )
        return found


def is_volume_folder(source: str | Path) -> bool:
    """Whether a source, with or without a split, holds volumes: imagesTr/, a list of cases, or images/ of volumes."""
    place, split = split_of(str(source))
    root = folder_of(Path(place).expanduser())
    if split is not None and is_root(root / split.name):
        return True
    return is_root(root)


def folder_of(path: Path) -> Path:
    """The folder of a `dataset.json`; another path itself."""
    return path.parent if path.name == DATASET_FILE and path.is_file() else path


def is_root(folder: Path) -> bool:
    """Whether this is the folder of a data set of volumes."""
    if not folder.is_dir():
        return False
    if any(case_folders(folder, part) for part in (TRAIN, TEST) if (folder / f"images{part}").is_dir()):
        return True
    if holds_volumes(folder / "images"):
        return True
    return (folder / DATASET_FILE).is_file() and lists_cases(_listing(folder))


def find_volume_folder(root: Path, split: Split | None) -> tuple[VolumeFolder, Split | None]:
    """The folder, or its subfolder that has the name of the split. Raises ValueError if it has no volumes."""
    root = folder_of(root)
    if split is not None and is_root(root / split.name):
        root, split = root / split.name, None
    if not is_root(root):
        held = f"it holds {contents(root)}" if root.is_dir() else "there is no such folder"
        if root.is_dir() and (pictures := image_files(root, on_error=lambda _: None)):
            raise ValueError(
                f"'{root}' has no volumes but {counted(len(pictures), 'image', 'images')}, such as {pictures[0].name}. Use a "
                "model of images, such as glam_swin, or give a folder of NIfTI files."
            )
        raise ValueError(
            f"'{root}' has no volumes: {held}. Give a folder with imagesTr/ and labelsTr/, or images/ and labels/."
        )
    return VolumeFolder(root, _listing(root)), split


def find_volume_table(root: Path) -> VolumeTable | None:
    """The table of `dataset.json` or `classes.json` in a folder or its parent; None without."""
    for place in (root, root.resolve().parent):
        if isinstance(content := _listing(place), Mapping) and "labels" in content:
            return volume_table(content, f"'{place / DATASET_FILE}'")
        if (place / CLASSES_FILE).is_file():
            path = place / CLASSES_FILE
            return table_of_classes(find_class_table(place, path), f"'{path}'")
    return None


def _listing(folder: Path) -> Mapping[str, Any]:
    path = folder / DATASET_FILE
    content = read_json(path, EXAMPLE) if path.is_file() else {}
    return content if isinstance(content, Mapping) else {}
