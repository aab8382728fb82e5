"""Datasets of (image, mask) pairs: two folders of files, or any dataset of `datasets` with two image columns.

Samples are {"image": RGB image or (H, W, C) array, "mask": (H, W) int64 class ids, "name": text}. The
datasets have the attributes `classes` (names), `palette`, `ignore_index` and `label_map`. Errors name the
file that cannot be read.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from ..image_reading import PIXEL_LIMIT, Source, image_size, read_channels, read_image
from ..label_maps import LabelMap
from ..mask_reading import read_mask
from ..processor_numbers import check_processor_numbers
from ..rasters.files import check_pair_grid, unlabeled_pixels
from ..samples import MASK_COLUMNS, check_sizes, scale_of
from .class_table import ClassTable, find_class_table
from .dataset_rows import check_rows, load_rows, picture_columns, row_source, table_suffix, undecoded
from .official_layouts import Layout, check_place, find_layout
from .pairing import MASKS_TO_GUESS_FROM, Pair, Pairing, missing_table, pair_files, propose_table
from .windowed_pairs import windowed_pair

if TYPE_CHECKING:
    import datasets

IMAGE_COLUMNS = ("image", "images", "pixel_values", "img", "photo", "input")


class Reading(TypedDict, total=False):
    """How images are read: options of every data set.

    num_channels: Number of channels of the images; with 3, the default, every image is converted to RGB.
    value_range: The values of black and white in images of more than 8 bits.
    pixel_limit: Most pixels of an image or mask; larger ones are rejected before they are decoded.
    """

    num_channels: int
    value_range: tuple[float, float] | None
    pixel_limit: int


class SegmentationData(Dataset, ABC):
    """Base of all datasets of pairs; subclasses implement `__len__` and `sources`."""

    def __init__(
        self,
        table: ClassTable,
        num_channels: int = 3,
        value_range: tuple[float, float] | None = None,
        pixel_limit: int = PIXEL_LIMIT,
    ) -> None:
        check_processor_numbers(
            {"num_channels": num_channels, "value_range": value_range, "pixel_limit": pixel_limit}
        )
        self.table = table
        self.num_channels = num_channels
        self.value_range = value_range
        self.pixel_limit = pixel_limit
        self.classes, self.palette = list(table.names), table.palette
        self.ignore_index, self.label_map = table.ignore_index, table.label_map
        self.checked_masks: set[int] = set()  # hashes of the files whose values are all known

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def sources(self, index: int) -> Pair:
        """The files (or file objects) of the image and the mask at this index, and their name in messages."""

    @cached_property
    def decoder(self) -> LabelMap:
        return self.table.decoder()

    def number_classes_as(self, names: Sequence[str]) -> None:
        """Numbers the classes as in `names`, the same names in another order."""
        order = [list(names).index(name) for name in self.classes]
        self.decoder = self.decoder.renumbered(order)
        self.palette = self.palette and [self.palette[order.index(label)] for label in range(len(order))]
        self.classes = list(names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pair = self.sources(index)
        image, stored = self.read_image(pair.image), self.read_stored_mask(pair.mask)
        check_sizes(image_size(image), stored.shape[:2], pair.name)
        check_pair_grid(pair.image, pair.mask, pair.name)
        mask = self.decode(stored, pair)
        if (unlabeled := unlabeled_pixels(pair.image, self.num_channels)) is not None:
            mask[unlabeled] = self.ignore_index
        return {"image": image, "mask": mask, "name": pair.name, **scale_of(image)}

    def windowed(self, index: int) -> dict[str, Any]:
        """As `self[index]`, but image and mask are not decoded if their files can be read by windows."""
        return windowed_pair(self, self.sources(index))

    def decode(self, stored: np.ndarray, pair: Pair, *, keeps_bytes: bool = False) -> np.ndarray:
        return self.decoder.decode(stored, f"the mask of '{pair.name}'", keeps_bytes=keeps_bytes)

    def read_image(self, source: Source) -> Image.Image | np.ndarray:
        if self.num_channels == 3:
            return read_image(source, value_range=self.value_range, pixel_limit=self.pixel_limit)
        return read_channels(
            source, self.num_channels, value_range=self.value_range, pixel_limit=self.pixel_limit
        )

    def read_stored_mask(self, source: Source) -> np.ndarray:
        """The mask as stored in the file: (H, W) ids or (H, W, 3) colors."""
        return read_mask(source, table=self.decoder, pixel_limit=self.pixel_limit)


class PairedFiles(SegmentationData):
    """A dataset of image files and mask files."""

    def __init__(
        self,
        pairing: Pairing,
        table: ClassTable,
        **reading: Unpack[Reading],
    ) -> None:
        super().__init__(table, **reading)
        self.pairing = pairing

    def __len__(self) -> int:
        return len(self.pairing.pairs)

    def sources(self, index: int) -> Pair:
        return self.pairing.pairs[index]


class SegmentationFolder(PairedFiles):
    """A folder with `images/` and `masks/`.

    An image and its mask have the same relative path up to the suffix. `classes` is a list of names or the
    path of a `classes.json`; by default it is looked for in the folder and its parent.
    """

    def __init__(
        self,
        path: str | Path,
        classes: Sequence[str] | str | Path | ClassTable | None = None,
        label_map: Mapping | None = None,
        *,
        needs_all_pairs: bool = True,
        **reading: Unpack[Reading],
    ) -> None:
        self.path = Path(path)
        pairing = pair_files(self.path)
        check_pairing(pairing, self.path, needs_all_pairs)
        table = find_class_table(self.path, classes, label_map)
        if table is None:
            raise ValueError(missing_table(self.path, pairing.pairs))
        super().__init__(pairing, table, **reading)


class DatasetPairs(SegmentationData):
    """A dataset of `datasets` (Hub, imagefolder, `load_from_disk`) with columns of images and masks."""

    def __init__(
        self,
        dataset: "datasets.Dataset",
        table: ClassTable | None = None,
        *,
        image_column: str | None = None,
        mask_column: str | None = None,
        name: str = "dataset",
        **reading: Unpack[Reading],
    ) -> None:
        check_rows(dataset, name)
        self.image_column, self.mask_column = pair_columns(dataset, image_column, mask_column, name)
        self.name = name
        self.rows = dataset.with_format(None).select_columns([self.image_column, self.mask_column])
        for column in (self.image_column, self.mask_column):
            self.rows = undecoded(self.rows, column)
        table = table or table_of_features(dataset)
        if table is None:
            raise ValueError(self.missing_table())
        super().__init__(table, **reading)

    def __len__(self) -> int:
        return len(self.rows)

    def sources(self, index: int) -> Pair:
        return Pair(
            *(
                row_source(self.rows, index, column, self.name)
                for column in (self.image_column, self.mask_column)
            ),
            f"{self.name}[{index}]",
        )

    def missing_table(self) -> str:
        """An error message that proposes a `classes.json`, made from the first masks."""
        found = propose_table(
            [self.sources(index).mask for index in range(min(len(self), MASKS_TO_GUESS_FROM))]
        )
        return (
            f"{self.name} has no class names. Write a classes.json, for example {found.proposal}, and pass its path: "
            f"--classes classes.json (in Python, classes='classes.json'). {found.contents}"
        )


def open_data(
    source: "str | Path | datasets.Dataset",
    split: str | None = None,
    *,
    classes: Sequence[str] | Mapping[int, str] | str | Path | None = None,
    image_column: str | None = None,
    mask_column: str | None = None,
    needs_all_pairs: bool = True,
    default_table: ClassTable | None = None,
    **reading: Unpack[Reading],
) -> SegmentationData:
    """Opens a dataset of images and masks.

    Args:
        source: One of: a folder with images/ and masks/; the folder of ADE20K, Cityscapes or COCO-Stuff as
            published; a folder or parquet file that `datasets` can load; a `datasets.Dataset`; the name of a
            dataset on the Hub. The split may follow after a colon, as in "me/streets:train".
        split: Name of the split; for a folder with images/ and masks/, a subfolder.
        classes: Class names, names by id, or path of a `classes.json`. Defaults to the one in the folder or its
            parent, or to the class names of the dataset.
        image_column: Column of the images in a dataset of `datasets`. Found by type and name by default.
        mask_column: Column of the masks, in the same way.
        needs_all_pairs: Whether an image without a mask, or a mask without an image, is an error.
        default_table: Class table for data that has none, such as that of a trained model.
        **reading: `num_channels` (default: 3, every image is converted to RGB); `value_range`, the values of black
            and white in images of more than 8 bits; `pixel_limit`, the most pixels of an image or mask.

    Returns:
        A dataset with the attributes `classes`, `palette`, `ignore_index` and `label_map`. Its samples are
        dicts of `image` (RGB PIL image, or (H, W, C) uint8 or float32 array in 0..255), `mask` ((H, W) int64
        class ids), `name`, and for float arrays `value_range`, (0, 255), as image processors take it. Reading a
        sample raises `ImageReadError` if a file is damaged, and ValueError if the mask has another size than
        the image or an unknown value.

    Raises:
        ValueError: If the source does not exist, has no class names, or its files do not form pairs.
    """
    columns = {"image_column": image_column, "mask_column": mask_column}
    if not isinstance(source, str | Path):
        table = None if classes is None else find_class_table(Path(), classes)
        return DatasetPairs(source, table or default_table, **columns, **reading)
    source, split = split_source(str(source), split)
    folder = Path(source).expanduser()
    if layout := find_layout(folder):
        return open_official(layout, folder, split, classes, needs_all_pairs=needs_all_pairs, **reading)
    if split and (folder / split).is_dir():
        folder, split = folder / split, None
    if (folder / "images").is_dir() or (is_path(source) and not is_known_to_datasets(folder)):
        check_place(folder)
        classes = default_table if classes is None and find_class_table(folder, None) is None else classes
        return SegmentationFolder(folder, classes, needs_all_pairs=needs_all_pairs, **reading)
    rows = load_rows(folder if folder.exists() else source, split)
    table = find_class_table(folder, classes) or table_of_features(rows) or default_table
    return DatasetPairs(rows, table, name=source, **columns, **reading)


def open_official(
    layout: Layout,
    root: Path,
    split: str | None,
    classes: Sequence[str] | str | Path | None,
    *,
    needs_all_pairs: bool,
    **reading: Any,
) -> PairedFiles:
    """Opens a split of a published dataset; `classes` replaces its class table."""
    pairing, table = layout.pair_files(root, layout.split_named(split, root))
    check_pairing(pairing, root, needs_all_pairs)
    return PairedFiles(pairing, table if classes is None else find_class_table(root, classes), **reading)


def check_pairing(pairing: Pairing, folder: Path, needs_all_pairs: bool) -> None:
    if needs_all_pairs and pairing.problems:
        raise ValueError(f"'{folder}': " + " ".join(pairing.problems))


def split_source(source: str, split: str | None) -> tuple[str, str | None]:
    """ "me/streets:train" -> ("me/streets", "train"); a source that exists on disk is not split."""
    name, colon, last = source.rpartition(":")
    if split is None and colon and len(name) > 1 and last.isidentifier() and not Path(source).exists():
        return name, last
    return source, split


def is_path(source: str) -> bool:
    """Whether this is a path and not a name on the Hub: it starts with a dot, "~" or "/", its first part exists, or
    it has three or more.
    """
    folder = Path(source)
    return (
        source.startswith((".", "~", "/"))
        or len(folder.parts) > 2
        or any(map(os.path.exists, folder.parts[:1]))
    )


def is_known_to_datasets(folder: Path) -> bool:
    """Whether it is a table, or a folder that was written by `save_to_disk`, has tables, or is an imagefolder with metadata."""
    marks = ("dataset_info.json", "dataset_dict.json", "state.json")
    if any((folder / mark).is_file() for mark in marks) or table_suffix(folder):
        return True
    return any(
        next(folder.glob(f"{place}metadata.{suffix}"), None)
        for place in ("", "*/")
        for suffix in ("jsonl", "csv", "parquet")
    )


def pair_columns(
    dataset: "datasets.Dataset", image_column: str | None, mask_column: str | None, name: str
) -> tuple[str, str]:
    """The columns of images and masks: the given names, or else by type and usual name."""
    usual = {*IMAGE_COLUMNS, *MASK_COLUMNS, image_column, mask_column}
    columns = picture_columns(dataset, usual)
    for wanted in (image_column, mask_column):
        if wanted is not None and wanted not in dataset.features:
            raise ValueError(
                f"{name} has no column '{wanted}'. Choose from: {', '.join(columns or dataset.features)}."
            )
    mask = mask_column or next((c for c in MASK_COLUMNS if c in columns and c != image_column), None)
    image = image_column or next((c for c in IMAGE_COLUMNS if c in columns and c != mask), None)
    rest = [column for column in columns if column not in (image, mask)]
    image = image or (rest.pop() if mask and len(rest) == 1 else None)
    mask = mask or (rest.pop() if image and len(rest) == 1 else None)
    if image is None or mask is None or image == mask:
        raise ValueError(
            f"{name} has the image columns {', '.join(columns) or '(none)'} (of {', '.join(dataset.features)}), and it is "
            "unclear which one contains images and which one masks. Pass --image-column and --mask-column (in Python, "
            "image_column and mask_column). An imagefolder needs a metadata.jsonl with file_name and mask_file_name."
        )
    return image, mask


def table_of_features(dataset: "datasets.Dataset") -> ClassTable | None:
    """Reads the class names from the only column that is a list of class labels, if there is one."""
    from datasets import ClassLabel

    inner = (getattr(kind, "feature", None) for kind in dataset.features.values())
    labels = [kind for kind in inner if isinstance(kind, ClassLabel)]
    return ClassTable(list(labels[0].names)) if len(labels) == 1 else None
