"""Datasets for image classification: a folder with one subfolder per class, or any dataset of `datasets`.

Samples are {"image": RGB image, "label": class index, "name": text}; `classes` lists the class names. Errors
name the file that cannot be read.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset

from ..failures import reason
from ..image_files import same_name, subfolders
from ..image_reading import PIXEL_LIMIT, Source, read_image
from .dataset_rows import cell_source, columns_of, load_rows
from .datasets import is_known_to_datasets, is_path, split_source
from .pairing import contents, files_by_name, listed

if TYPE_CHECKING:
    import datasets

LABEL_COLUMNS = ("label", "labels", "class", "target", "fine_label", "category")
THREADS = 8


class LabeledImages(Dataset, ABC):
    """Base of the classification datasets; subclasses implement `__len__` and `source`."""

    classes: list[str]
    num_channels = 3  # every image is read as RGB
    value_range: tuple[float, float] | None = None  # black and white in images that are not 8-bit
    pixel_limit: int = PIXEL_LIMIT  # most pixels of a file
    numbers: Sequence[int] | None = None  # label of each class index of `source`, after `number_classes_as`

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def source(self, index: int) -> tuple[Source, int, str]:
        """The file (or file object) of an image, its class index, and its name in messages."""

    @abstractmethod
    def name_of(self, index: int) -> str:
        """The name of an image in messages."""

    def image_source(self, index: int) -> Source:
        """The file of an image, or a file object."""
        return self.source(index)[0]

    def empty_classes(self) -> list[str]:
        """Names of the classes that are known to have no images."""
        return []

    def __getitem__(self, index: int) -> dict[str, Any]:
        source, label, name = self.source(index)
        label = label if self.numbers is None else self.numbers[label]
        image = read_image(source, value_range=self.value_range, pixel_limit=self.pixel_limit)
        return {"image": image, "label": label, "name": name}

    def number_classes_as(self, names: Sequence[str]) -> None:
        """Numbers the classes, all of which are among `names`, by their positions there."""
        self.numbers, self.classes = [list(names).index(name) for name in self.classes], list(names)


class ClassFolders(LabeledImages):
    """ImageNet's layout, CLASS/IMAGE. A class index is a position among the sorted folder names."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        folders = class_folders(self.path)
        self.classes = [same_name(folder.name) for folder in folders]
        if len(set(self.classes)) < len(folders):
            twice = [name for name in self.classes if self.classes.count(name) > 1]
            raise ValueError(
                f"'{path}' has several folders {twice[0]!r}, in two Unicode normal forms. Merge them."
            )
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

    def name_of(self, index: int) -> str:
        return self.files[index][2]

    def empty_classes(self) -> list[str]:
        filled = {label for _, label, _ in self.files}
        return [name for label, name in enumerate(self.classes) if label not in filled]


class LabeledRows(LabeledImages):
    """A dataset of `datasets` with a column of images and a column of labels."""

    def __init__(self, dataset: "datasets.Dataset", name: str = "dataset") -> None:
        from datasets import ClassLabel
        from datasets import Image as ImageFeature

        self.name = name
        self.image_column, self.label_column = label_columns(dataset, name)
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
        row, name = self.rows[index], self.name_of(index)
        cell, label = row[self.image_column], row[self.label_column]
        label = label if self.has_indices else self.classes.index(str(label))
        if cell is None or label is None or label < 0:
            raise ValueError(f"{name} has no image or no label. Remove such rows before training.")
        return cell_source(cell, name), label, name

    def name_of(self, index: int) -> str:
        return f"{self.name}[{index}]"


class GeneratedImages(LabeledImages):
    """Two images of noise, for runs without data."""

    def __init__(self, size: tuple[int, int], num_classes: int) -> None:
        self.size = size
        self.classes = [f"class {index}" for index in range(num_classes)]

    def __len__(self) -> int:
        return 2

    def source(self, index: int) -> tuple[Source, int, str]:
        random = np.random.default_rng(index)
        label = int(random.integers(len(self.classes)))
        pixels = random.integers(0, 256, (*self.size, 3), dtype=np.uint8)
        return pixels, label, self.name_of(index)

    def name_of(self, index: int) -> str:
        return f"noise {index}"


def unreadable(data: Dataset, sample: int) -> list[str]:
    """Error messages of the images that cannot be read, among `sample` evenly spaced ones."""

    def complaint(index: int) -> str | None:
        try:
            data[index]
        except Exception as error:
            return reason(error)
        return None

    indices = np.linspace(0, len(data) - 1, min(sample, len(data))).round().astype(int).tolist()
    with ThreadPoolExecutor(THREADS) as threads:
        return list(filter(None, threads.map(complaint, indices)))


def open_labeled_images(
    source: str,
    split: str | None = None,
    *,
    value_range: tuple[float, float] | None = None,
    pixel_limit: int = PIXEL_LIMIT,
) -> LabeledImages:
    """Opens a dataset for image classification.

    Args:
        source: Folder with one subfolder per class, folder that `datasets` can load, or name of a dataset on
            the Hub. The split may follow after a colon, as in "me/birds:train".
        split: Name of the split; for a folder with one subfolder per class, a subfolder.
        value_range: (low, high), black and white in images that are not 8-bit.
        pixel_limit: Most pixels of an image; reading a larger one raises `ImageReadError`.

    Raises:
        ValueError: If the source does not exist, or has no images or no labels.
    """
    source, split = split_source(str(source), split)
    folder = Path(source).expanduser()
    if split and (folder / split).is_dir():
        folder, split = folder / split, None
    if is_path(source) and not is_known_to_datasets(folder):
        data = ClassFolders(folder)
    else:
        data = LabeledRows(load_rows(folder if folder.exists() else source, split), source)
    data.value_range, data.pixel_limit = value_range, pixel_limit
    return data


def class_folders(path: Path) -> list[Path]:
    """The class folders sorted by name. Raises ValueError if the path is not a folder of classes."""
    if not path.is_dir():
        near = next(parent for parent in path.absolute().parents if parent.exists())
        raise ValueError(f"'{path}' is not a folder; '{near}' holds {contents(near)}. Check the path.")
    folders = subfolders(path)
    if len(folders) < 2:
        raise ValueError(
            f"'{path}' must have one folder of images per class, for at least two classes; it holds "
            f"{contents(path)}. Sort the images into CLASS/IMAGE.jpg."
        )
    names = {folder.name for folder in folders}
    if names <= {"train", "val", "valid", "validation", "test"}:
        raise ValueError(f"'{path}' holds splits, not classes. Give one of them, such as '{folders[0]}'.")
    if names == {"images", "masks"}:
        raise ValueError(
            f"'{path}' is for segmentation: it has images/ and masks/. Give a folder of images per class, or leave out "
            "--task where it was given."
        )
    return folders


def label_columns(dataset: "datasets.Dataset", name: str) -> tuple[str, str]:
    """The only column of images, and the column of labels by type or usual name."""
    from datasets import ClassLabel
    from datasets import Image as ImageFeature

    images, labels = columns_of(dataset, ImageFeature), columns_of(dataset, ClassLabel)
    if len(labels) != 1:
        labels = [column for column in LABEL_COLUMNS if column in dataset.features]
    if len(images) != 1 or not labels:
        raise ValueError(
            f"{name} has the columns {listed(list(dataset.features))}. One column of images and one of class labels are "
            "required. Select these columns and rename them to 'image' and 'label'."
        )
    return images[0], labels[0]
