"""Data sets of images with one label each: a folder with one subfolder for each class, or any data set of `datasets`.

Both give samples {"image": RGB picture, "label": index of the class, "name": text} and tell `classes`, their names. A file
that cannot be read raises an error that names it.
"""

import io
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset

from ..image_reading import ImageReadError, Source, read_image
from .datasets import is_known_to_datasets, is_path, load_rows, split_source
from .pairing import contents, files_by_name, listed

if TYPE_CHECKING:
    import datasets

LABEL_COLUMNS = ("label", "labels", "class", "target", "fine_label", "category")
THREADS = 8


class LabelledImages(Dataset, ABC):
    """What both kinds share; subclasses say where the image of an index is."""

    classes: list[str]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def source(self, index: int) -> tuple[Source, int, str]:
        """Where an image can be read from, the index of its class, and what messages call it."""

    def empty_classes(self) -> list[str]:
        """Classes that are known to have no image."""
        return []

    def __getitem__(self, index: int) -> dict[str, Any]:
        source, label, name = self.source(index)
        return {"image": read_image(source), "label": label, "name": name}


class ClassFolders(LabelledImages):
    """ImageNet's layout: CLASS/IMAGE for every class, whose index is its place among the sorted folder names."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        folders = class_folders(self.path)
        self.classes = [folder.name for folder in folders]
        self.files = [
            (file, label, f"{folder.name}/{name}")
            for label, folder in enumerate(folders)
            for name, file in files_by_name(folder).items()
        ]
        if not self.files:
            raise ValueError(
                f"'{path}' has the folders {listed(self.classes)}, but no images in them. Check the path."
            )

    def __len__(self) -> int:
        return len(self.files)

    def source(self, index: int) -> tuple[Source, int, str]:
        return self.files[index]

    def empty_classes(self) -> list[str]:
        filled = {label for _, label, _ in self.files}
        return [name for label, name in enumerate(self.classes) if label not in filled]


class LabelledRows(LabelledImages):
    """A data set of `datasets` with a column of images and a column of labels."""

    def __init__(self, dataset: "datasets.Dataset", name: str = "data set") -> None:
        from datasets import ClassLabel
        from datasets import Image as ImageFeature

        self.name = name
        self.image_column, self.label_column = find_columns(dataset, name)
        kind = dataset.features[self.label_column]
        if isinstance(kind, ClassLabel):
            self.classes = list(kind.names)
        else:
            self.classes = sorted({str(value) for value in dataset.unique(self.label_column)})
        self.has_indices = isinstance(kind, ClassLabel)
        raw = dataset.with_format(None).select_columns([self.image_column, self.label_column])
        self.rows = raw.cast_column(self.image_column, ImageFeature(decode=False))

    def __len__(self) -> int:
        return len(self.rows)

    def source(self, index: int) -> tuple[Source, int, str]:
        row, name = self.rows[index], f"{self.name}[{index}]"
        cell, label = row[self.image_column], row[self.label_column]
        label = label if self.has_indices else self.classes.index(str(label))
        if cell is None or label is None or label < 0:
            raise ValueError(f"{name} has no image or no label. Filter such rows out before training.")
        if cell["bytes"] is None:
            return cell["path"], label, name
        file = io.BytesIO(cell["bytes"])
        file.name = name
        return file, label, name


class GeneratedImages(LabelledImages):
    """Two pictures of noise."""

    def __init__(self, size: tuple[int, int], num_classes: int) -> None:
        self.size = size
        self.classes = [f"class {index}" for index in range(num_classes)]

    def __len__(self) -> int:
        return 2

    def source(self, index: int) -> tuple[Source, int, str]:
        random = np.random.default_rng(index)
        label = int(random.integers(len(self.classes)))
        return random.integers(0, 256, (*self.size, 3), dtype=np.uint8), label, f"noise {index}"


def unreadable(data: Dataset, sample: int) -> list[str]:
    """What is wrong with images, `sample` of them spread evenly."""

    def complaint(index: int) -> str | None:
        try:
            data[index]
        except (ImageReadError, OSError, ValueError) as error:
            return str(error)
        return None

    indices = np.linspace(0, len(data) - 1, min(sample, len(data))).round().astype(int).tolist()
    with ThreadPoolExecutor(THREADS) as threads:
        return list(filter(None, threads.map(complaint, indices)))


def open_labelled_images(source: str, split: str | None = None) -> LabelledImages:
    """A folder with one subfolder for each class, a folder that `datasets` knows, or a data set of the Hub.

    The split can be a part of the source, as in "me/birds:train"; of a folder it is a subfolder.
    """
    source, split = split_source(source, split)
    folder = Path(source).expanduser()
    if split and (folder / split).is_dir():
        folder, split = folder / split, None
    if is_path(folder) and not is_known_to_datasets(folder):
        return ClassFolders(folder)
    return LabelledRows(load_rows(folder if folder.exists() else source, split), source)


def class_folders(path: Path) -> list[Path]:
    """The folders of the classes, sorted by name."""
    if not path.is_dir():
        near = next(parent for parent in path.absolute().parents if parent.exists())
        raise ValueError(f"'{path}' is no folder; '{near}' holds {contents(near)}. Check the path.")
    folders = sorted(sub for sub in path.iterdir() if sub.is_dir() and not sub.name.startswith("."))
    if len(folders) < 2:
        raise ValueError(
            f"'{path}' needs one folder of images for each class, two or more; it holds {contents(path)}. "
            "Sort the images into CLASS/IMAGE.jpg."
        )
    names = {folder.name for folder in folders}
    if names <= {"train", "val", "valid", "validation", "test"}:
        raise ValueError(f"'{path}' holds splits, not classes. Give one of them, such as '{folders[0]}'.")
    if names == {"images", "masks"}:
        raise ValueError(f"'{path}' is for segmentation: it has images/ and masks/. Leave out --task.")
    return folders


def find_columns(dataset: "datasets.Dataset", name: str) -> tuple[str, str]:
    """The one column of images and that of labels, by type and usual names."""
    from datasets import ClassLabel
    from datasets import Image as ImageFeature

    kinds = dataset.features
    images = [column for column, kind in kinds.items() if isinstance(kind, ImageFeature)]
    labels = [column for column, kind in kinds.items() if isinstance(kind, ClassLabel)]
    labels = labels if len(labels) == 1 else [column for column in LABEL_COLUMNS if column in kinds]
    if len(images) != 1 or not labels:
        raise ValueError(
            f"{name} has the columns {listed(list(kinds))}: one column of images and one of class labels are required. "
            "Select and rename columns so that they are 'image' and 'label'."
        )
    return images[0], labels[0]
