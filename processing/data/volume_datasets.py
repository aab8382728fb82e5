"""Data sets of volumes with labels, as they lie on disk: nnU-Net, Medical Segmentation Decathlon, or two folders.

A sample is {"name": text, "image": Volume with values (C, D, H, W), "mask": (D, H, W) class indices}, both in
canonical orientation, on the file's own grid. Legend: C channels, D slices, H rows, W columns.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from ..label_maps import IGNORE, LabelMap
from ..plain_text import counted
from ..volumes.volume_geometry import VolumeGeometry
from ..volumes.volume_reading import Volume, read_label_volume, read_volume, read_volume_geometry
from .class_table import ClassTable, find_class_table
from .inspection import count_values
from .pairing import listed
from .volume_folders import FoundCases, VolumeCase
from .volume_layouts import find_volume_folder, find_volume_table, is_volume_folder
from .volume_splits import split_of
from .volume_table import BACKGROUND, VolumeTable, read_volume_table, table_of_classes

VOXELS_AT_ONCE = 1 << 22  # whose ids are looked up


class VolumeData(Dataset):
    """Cases of one or several channels with labels.

    Args:
        cases: The cases.
        table: Classes and channels.
        num_channels: Channels of each case. Default: those of the table, or of the first case.
        slice_axis: Body axis along which slices lie, "z", "y" or "x". Default: "z".
        path: Folder of the data. Default: the working folder.
        problems: What leaves cases out, in words. Default: nothing.
        warnings: What may be wrong, in words. Default: nothing.

    Attributes:
        classes: Names, the background first.
        palette: Color of each class, or None.
        label_map: Id in the label files -> class index, or "ignore"; every id that may occur.
        ignore_index: Value of voxels without a class in masks.
        regions: Name of a region -> indices of its classes; empty without regions.
        channel_names: Names of the channels; empty if they are unknown.
        origin: The file with the classes, for messages; None without.
    """

    def __init__(
        self,
        cases: Sequence[VolumeCase],
        table: VolumeTable,
        *,
        num_channels: int | None = None,
        slice_axis: str = "z",
        path: Path = Path(),
        problems: Sequence[str] = (),
        warnings: Sequence[str] = (),
    ) -> None:
        self.cases, self.path, self.slice_axis = list(cases), path, slice_axis
        self.problems, self.warnings = list(problems), [*table.warnings, *warnings]
        classes = table.classes
        self.classes, self.palette = list(classes.names), classes.palette
        self.ignore_index, self.label_map = classes.ignore_index, dict(classes.label_map or {})
        self.regions, self.channel_names, self.origin = dict(table.regions), table.channel_names, table.origin
        self.decoder = LabelMap(self.label_map, self.ignore_index, num_classes=len(self.classes))
        self.num_channels = num_channels or len(self.channel_names) or self._channels_of_first()
        if self.channel_names and len(self.channel_names) != self.num_channels:
            raise ValueError(
                f"'{path}' has the channels {', '.join(self.channel_names)}, but num_channels={self.num_channels} is needed. Use "
                "other data, or a model for these channels."
            )

    def __len__(self) -> int:
        return len(self.cases)

    def case(self, index: int) -> VolumeCase:
        """The name and the files of a case."""
        return self.cases[index]

    def name(self, index: int) -> str:
        """The name of a case."""
        return self.cases[index].name

    def __getitem__(self, index: int) -> dict[str, Any]:
        case = self.cases[index]
        image = self.read_image(index)
        mask = None if case.label is None else self.decode(self.read_stored_label(index, image), index)
        return {"name": case.name, "image": image, "mask": mask}

    def read_image(self, index: int) -> Volume:
        """The channels of a case. Raises `VolumeReadError` for what cannot be read, or has other channels."""
        return read_volume(self._source(index), self.num_channels, self.slice_axis)

    def geometry(self, index: int) -> VolumeGeometry:
        """How the first file of a case lies, from its header alone."""
        return read_volume_geometry(self.cases[index].images[0], self.slice_axis)

    def read_stored_label(self, index: int, like: Volume | VolumeGeometry | None = None) -> np.ndarray:
        """The ids (D, H, W) as stored. Raises `VolumeReadError` if they cannot be read, or have another grid.

        Args:
            index: Number of the case.
            like: Its image, whose grid the label must have. Default: any grid is taken.
        """
        return read_label_volume(self.cases[index].label, like, self.slice_axis)

    def decode(self, stored: np.ndarray, index: int) -> np.ndarray:
        """Ids (D, H, W) as stored -> class indices of the smallest signed type. Raises ValueError for unknown ids."""
        kind = np.int16 if max(len(self.classes), self.ignore_index) <= np.iinfo(np.int16).max else np.int32
        mask = np.empty(stored.shape, kind)
        try:
            for slices in slabs(stored.shape):
                rows = stored[slices].reshape(-1, stored.shape[-1])
                mask[slices] = self.decoder.decode(rows).reshape(mask[slices].shape)
        except ValueError as error:
            unknown = {key: n for key, n in count_ids(stored).items() if key not in self.decoder.ids}
            shown = [
                f"{key} ({counted(number, 'voxel', 'voxels')})"
                for key, number in Counter(unknown).most_common()
            ]
            raise ValueError(
                f"the label of '{self.name(index)}' has {unknown_ids(shown, self.origin)}"
            ) from error
        return mask

    def number_classes_as(self, names: Sequence[str]) -> None:
        """Numbers the classes as in `names`, the same names in another order."""
        order = [list(names).index(name) for name in self.classes]
        self.label_map = {
            key: label if label == IGNORE else order[label] for key, label in self.label_map.items()
        }
        self.decoder = self.decoder.renumbered(order)
        self.palette = self.palette and [self.palette[order.index(label)] for label in range(len(order))]
        self.regions = {name: tuple(sorted(order[k] for k in of)) for name, of in self.regions.items()}
        self.classes = list(names)

    def _source(self, index: int) -> Path | list[Path]:
        images = self.cases[index].images
        return images[0] if len(images) == 1 else list(images)

    def _channels_of_first(self) -> int:
        images = self.cases[0].images
        return len(images) if len(images) > 1 else read_volume_geometry(images[0]).num_channels


def open_volume_data(
    source: str | Path,
    split: str | None = None,
    *,
    classes: Sequence[str] | Mapping[int, str] | str | Path | None = None,
    default_table: ClassTable | VolumeTable | None = None,
    needs_all_pairs: bool = True,
    num_channels: int | None = None,
    slice_axis: str = "z",
) -> VolumeData:
    """Opens volumes with labels as they lie on disk.

    Args:
        source: One of: a folder as of nnU-Net (imagesTr/, labelsTr/, dataset.json); one whose `dataset.json` lists the
            cases, as of the Medical Segmentation Decathlon; such a file; a folder with images/ and labels/ or masks/.
            The split may follow after a colon: "train" and "val" are those of fold 0 in `splits_final.json`, or of the
            division that nnU-Net makes; "train@3" and "val@3" those of fold 3; "test" are the test cases, with
            labels if there are any; and any other is a subfolder. Default: all cases with labels.
        split: The split, if it is not in the source.
        classes: Class names, names by id, or path of a `dataset.json` or `classes.json`. Default: the file of the
            folder or its parent; without one, `default_table`, and then the ids in the labels, which are read.
        default_table: Classes for data that has none, such as those of a trained model. Default: none.
        needs_all_pairs: Whether incomplete cases are an error, rather than listed in `problems`.
        num_channels: Channels of each case. Default: those of `dataset.json`, or of the first case.
        slice_axis: Body axis along which slices lie: "z", "y" or "x".

    Returns:
        A dataset with the attributes `classes`, `palette`, `label_map`, `ignore_index`, `regions`, `channel_names` and
        `num_channels`. Its samples are dicts of `name`, `image` (a `Volume`) and `mask` ((D, H, W) class indices, or
        None without a label). Reading one raises `VolumeReadError` if a file is damaged or the label has another grid
        than the image, and ValueError if it has an unknown id.

    Raises:
        ValueError: If the source does not exist, has no complete case, or is not described as it should be.
    """
    place, asked = split_of(str(source)) if split is None else (str(source), split_of(f"..:{split}")[1])
    folder, asked = find_volume_folder(Path(place).expanduser(), asked)
    table = find_volume_table(folder.root) if classes is None else _given_table(classes)
    found = folder.cases(asked, *((table.channel_names, table.file_ending) if table else ()))
    if needs_all_pairs and found.problems:
        raise ValueError(f"'{folder.root}': " + " ".join(found.problems))
    if table is None:
        table = default_table if default_table is not None else _table_of_ids(found)
    if isinstance(table, ClassTable):
        table = table_of_classes(table)
    return VolumeData(
        found.cases,
        table,
        num_channels=num_channels,
        slice_axis=slice_axis,
        path=folder.root,
        problems=found.problems,
        warnings=found.warnings,
    )


def slabs(shape: Sequence[int]) -> Iterator[slice]:
    """Ranges of slices with few voxels."""
    step = max(1, VOXELS_AT_ONCE // max(1, shape[1] * shape[2]))
    for start in range(0, shape[0], step):
        yield slice(start, start + step)


def count_ids(stored: np.ndarray) -> Counter[int]:
    """(D, H, W) ids -> number of voxels by id."""
    counts: Counter[int] = Counter()
    for slices in slabs(stored.shape):
        counts.update(count_values(stored[slices].reshape(-1, stored.shape[-1])))
    return counts


def unknown_ids(shown: Sequence[str], origin: str | None) -> str:
    """Says that these ids have no class, and what to do; `origin` is the file of the classes, if there is one."""
    remedy = (
        f"Add them to {origin}, or correct the files."
        if origin
        else "Correct the files, or give a dataset.json with a class for each id."
    )
    return f"{counted(len(shown), 'id', 'ids')} without a class: {listed(shown)}. {remedy}"


def _given_table(classes: Sequence[str] | Mapping[int, str] | str | Path) -> VolumeTable:
    if isinstance(classes, str | Path):
        return read_volume_table(Path(classes))
    return table_of_classes(find_class_table(Path(), classes))


def _table_of_ids(found: FoundCases) -> VolumeTable:
    """Classes named by the ids in the labels, which are read. Raises ValueError if there are none."""
    ids = sorted(
        set().union(*(count_ids(read_label_volume(case.label)) for case in found.cases if case.label))
    )
    if not ids:
        raise ValueError("there are no class names. Write a dataset.json or classes.json, or pass `classes`.")
    names = {index: BACKGROUND if index == 0 else f"label {index}" for index in ids}
    table = ClassTable(list(names.values()), label_map={str(key): place for place, key in enumerate(ids)})
    return VolumeTable(
        table, warnings=(f"no class names were found, so the {len(ids)} ids in the labels name the classes.",)
    )


__all__ = ["VolumeCase", "VolumeData", "is_volume_folder", "open_volume_data"]
