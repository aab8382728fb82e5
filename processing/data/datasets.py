"""Data sets of (image, mask) pairs: two folders of files, or any data set of `datasets` with two image columns.

Both give samples {"image": RGB picture or (H, W, bands) array, "mask": (H, W) int64 class ids, "name": text}, and tell
`classes` (names), `palette`, `ignore_index` and `label_map`. A file that cannot be read raises an error that names it.
"""

import io
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from ..image_reading import Source, read_bands, read_image, read_mask
from ..label_maps import LabelMap
from .class_table import ClassTable, example, find_class_table
from .official_layouts import Layout, check_place, find_layout
from .pairing import Pair, Pairing, missing_table, pair_files

if TYPE_CHECKING:
    import datasets

IMAGE_COLUMNS = ("image", "images", "pixel_values", "img", "photo", "input")
MASK_COLUMNS = (
    "mask",
    "masks",
    "label",
    "labels",
    "annotation",
    "segmentation",
    "segmentation_mask",
    "semantic_mask",
)


class SegmentationData(Dataset, ABC):
    """What every data set of pairs shares; subclasses say where image and mask of an index are."""

    def __init__(
        self, table: ClassTable, num_bands: int = 3, value_range: tuple[float, float] | None = None
    ) -> None:
        self.table = table
        self.num_bands = num_bands
        self.value_range = value_range
        self.classes, self.palette = table.names, table.palette
        self.ignore_index, self.label_map = table.ignore_index, table.label_map

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def sources(self, index: int) -> Pair:
        """Where the image and the mask of this index can be read from, and what messages call them."""

    @cached_property
    def decoder(self) -> LabelMap:
        return self.table.decoder()

    def __getitem__(self, index: int) -> dict[str, Any]:
        pair = self.sources(index)
        image, stored = self.read_image(pair.image), self.read_stored_mask(pair.mask)
        check_sizes(image_size(image), stored.shape[:2], pair.name)
        return {
            "image": image,
            "mask": self.decoder.decode(stored, f"the mask of '{pair.name}'"),
            "name": pair.name,
        }

    def read_image(self, source: Source) -> Image.Image | np.ndarray:
        if self.num_bands == 3:
            return read_image(source, value_range=self.value_range)
        return read_bands(source, self.num_bands, value_range=self.value_range)

    def read_stored_mask(self, source: Source) -> np.ndarray:
        """The mask as it is in the file: (H, W) ids or (H, W, 3) colours."""
        return read_mask(source, decode_palette=self.decoder.needs_colours)


class PairedFiles(SegmentationData):
    """Image files with the mask files that belong to them."""

    def __init__(
        self,
        pairing: Pairing,
        table: ClassTable,
        num_bands: int = 3,
        value_range: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(table, num_bands, value_range)
        self.pairing = pairing

    def __len__(self) -> int:
        return len(self.pairing.pairs)

    def sources(self, index: int) -> Pair:
        return self.pairing.pairs[index]


class SegmentationFolder(PairedFiles):
    """A folder with `images/` and `masks/`, whose files have equal names up to the suffix; subfolders count as names.

    `classes` are names, or the path of a `classes.json`; without it one is looked for here and in the parent folder.
    """

    def __init__(
        self,
        path: str | Path,
        classes: Sequence[str] | str | Path | None = None,
        label_map: Mapping | None = None,
        *,
        num_bands: int = 3,
        value_range: tuple[float, float] | None = None,
        needs_all_pairs: bool = True,
    ) -> None:
        self.path = Path(path)
        pairing = pair_files(self.path)
        check_pairing(pairing, self.path, needs_all_pairs)
        table = find_class_table(self.path, classes, label_map)
        if table is None:
            raise ValueError(missing_table(self.path, pairing.pairs))
        super().__init__(pairing, table, num_bands, value_range)


class DatasetPairs(SegmentationData):
    """A data set of `datasets` (Hub, imagefolder, `load_from_disk`) with one column of images and one of masks."""

    def __init__(
        self,
        dataset: "datasets.Dataset",
        table: ClassTable | None = None,
        *,
        image_column: str | None = None,
        mask_column: str | None = None,
        num_bands: int = 3,
        value_range: tuple[float, float] | None = None,
        name: str = "data set",
    ) -> None:
        from datasets import Image as ImageFeature

        table = table or table_of_features(dataset, name)
        super().__init__(table, num_bands, value_range)
        self.image_column, self.mask_column = find_columns(dataset, image_column, mask_column, name)
        self.name = name
        raw = dataset.with_format(None).select_columns([self.image_column, self.mask_column])
        for column in raw.column_names:  # bytes or paths: reading is ours, so that errors have names
            raw = raw.cast_column(column, ImageFeature(decode=False))
        self.rows = raw

    def __len__(self) -> int:
        return len(self.rows)

    def sources(self, index: int) -> Pair:
        row = self.rows[index]
        image, mask = (
            self.file(row[column], index, column) for column in (self.image_column, self.mask_column)
        )
        return Pair(image, mask, f"{self.name}[{index}]")

    def file(self, cell: dict[str, Any] | None, index: int, column: str) -> Source:
        """The path of a cell, or its bytes as a file with a name for messages."""
        if cell is None:
            raise ValueError(f"{self.name}[{index}] has no '{column}'. Filter such rows out before training.")
        if cell["bytes"] is None:
            return cell["path"]
        file = io.BytesIO(cell["bytes"])
        file.name = f"{self.name}[{index}]['{column}'] {cell['path'] or ''}".strip()
        return file


def open_data(
    source: str | Path,
    split: str | None = None,
    *,
    classes: Sequence[str] | str | Path | None = None,
    image_column: str | None = None,
    mask_column: str | None = None,
    num_bands: int = 3,
    value_range: tuple[float, float] | None = None,
    needs_all_pairs: bool = True,
) -> SegmentationData:
    """Opens pairs of images and masks.

    Samples are `{"image": PIL image or (H, W, channels) array, "mask": (H, W) int64 class ids, "name": text}`. The data set has
    `classes`, `palette`, `ignore_index` and `label_map`.

    Args:
        source: Folder with images/ and masks/, folder of ADE20K, Cityscapes or COCO-Stuff as published, folder that `datasets`
            knows, or name of a data set on the Hub. The split may follow after a colon: "me/streets:train".
        split: The split; of a folder it is a subfolder.
        classes: Class names, or the path of a classes.json; by default the one beside the data, or the data set's own.
        image_column: Column of the images in a data set of `datasets`; by default found by type and name.
        mask_column: The same for masks.
        num_bands: Channels of the images; 3 makes RGB of every image.
        value_range: Values of black and white in images of more than 8 bits.
        needs_all_pairs: Whether an image without a mask, or a mask without an image, is an error.

    Raises:
        ValueError: There is no such data, it has no class names, or its files do not form pairs.
    """
    source, split = split_source(str(source), split)
    reading = {"num_bands": num_bands, "value_range": value_range}
    folder = Path(source).expanduser()
    if layout := find_layout(folder):
        return open_official(layout, folder, split, classes, needs_all_pairs=needs_all_pairs, **reading)
    if split and (folder / split).is_dir():
        folder, split = folder / split, None
    if (folder / "images").is_dir() or (is_path(folder) and not is_known_to_datasets(folder)):
        check_place(folder)
        return SegmentationFolder(folder, classes, needs_all_pairs=needs_all_pairs, **reading)
    rows = load_rows(folder if folder.exists() else source, split)
    table = find_class_table(folder, classes)
    columns = {"image_column": image_column, "mask_column": mask_column}
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
    """A split of a published data set; `classes` take the place of its own."""
    pairing, table = layout.pair_files(root, layout.split_named(split, root))
    check_pairing(pairing, root, needs_all_pairs)
    return PairedFiles(pairing, table if classes is None else find_class_table(root, classes), **reading)


def check_pairing(pairing: Pairing, folder: Path, needs_all_pairs: bool) -> None:
    if needs_all_pairs and pairing.problems:
        raise ValueError(f"'{folder}': " + " ".join(pairing.problems))


def split_source(source: str, split: str | None) -> tuple[str, str | None]:
    """ "me/streets:train" -> "me/streets", "train"; what exists on disk is left whole."""
    name, colon, last = source.rpartition(":")
    if split is None and colon and len(name) > 1 and last.isidentifier() and not Path(source).exists():
        return name, last
    return source, split


def is_path(folder: Path) -> bool:
    """Whether a folder is meant rather than a name on the Hub: its first part exists, or it has more than two."""
    return (
        folder.is_absolute() or len(folder.parts) > 2 or any(Path(part).exists() for part in folder.parts[:1])
    )


def is_known_to_datasets(folder: Path) -> bool:
    """Saved by `save_to_disk`, or an imagefolder with metadata."""
    marks = ("dataset_info.json", "dataset_dict.json", "state.json")
    return any((folder / mark).is_file() for mark in marks) or any(
        next(folder.glob(f"{place}metadata.{suffix}"), None)
        for place in ("", "*/")
        for suffix in ("jsonl", "csv", "parquet")
    )


def load_rows(source: Path | str, split: str | None) -> "datasets.Dataset":
    """The rows of one split."""
    import datasets

    try:
        if isinstance(source, str):
            loaded = datasets.load_dataset(source)
        elif (source / "dataset_dict.json").is_file() or (source / "state.json").is_file():
            loaded = datasets.load_from_disk(source)
        else:
            loaded = datasets.load_dataset("imagefolder", data_dir=str(source))
    except (ConnectionError, FileNotFoundError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"'{source}' is no folder here, and `datasets` cannot load it: {error} Check the path (seen from "
            f"'{Path.cwd()}') or the name, and the connection to the Hub."
        ) from error
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded
    if split is None and len(loaded) == 1:
        return next(iter(loaded.values()))
    if split not in loaded:
        raise ValueError(
            f"'{source}' has the splits {', '.join(loaded)}. Name one, as in '{source}:{next(iter(loaded))}'."
        )
    return loaded[split]


def find_columns(
    dataset: "datasets.Dataset", image_column: str | None, mask_column: str | None, name: str
) -> tuple[str, str]:
    """The columns of images and masks: as named, or by their type and usual names."""
    from datasets import Image as ImageFeature

    columns = [column for column, kind in dataset.features.items() if isinstance(kind, ImageFeature)]
    for wanted in (image_column, mask_column):
        if wanted is not None and wanted not in columns:
            raise ValueError(f"{name} has no image column '{wanted}'; it has {', '.join(columns) or 'none'}.")
    mask = mask_column or next((c for c in MASK_COLUMNS if c in columns and c != image_column), None)
    image = image_column or next((c for c in IMAGE_COLUMNS if c in columns and c != mask), None)
    rest = [column for column in columns if column not in (image, mask)]
    image = image or (rest.pop() if mask and len(rest) == 1 else None)
    mask = mask or (rest.pop() if image and len(rest) == 1 else None)
    if image is None or mask is None or image == mask:
        raise ValueError(
            f"{name} has the image columns {', '.join(columns) or '(none)'}: which holds images and which masks? "
            "Pass image_column and mask_column. (An imagefolder needs metadata.jsonl with file_name and mask_file_name.)"
        )
    return image, mask


def table_of_features(dataset: "datasets.Dataset", name: str) -> ClassTable:
    """Class names from the one list of class labels among the columns."""
    from datasets import ClassLabel

    inner = (getattr(kind, "feature", None) for kind in dataset.features.values())
    labels = [kind for kind in inner if isinstance(kind, ClassLabel)]
    if len(labels) != 1:
        raise ValueError(
            f"{name} does not tell its class names. Pass a file for `classes` that holds for example {example()}."
        )
    return ClassTable(list(labels[0].names))


def image_size(image: Image.Image | np.ndarray) -> tuple[int, int]:
    """Height and width."""
    return image.size[::-1] if isinstance(image, Image.Image) else image.shape[:2]


def check_sizes(image: Sequence[int], mask: Sequence[int], name: str) -> None:
    if tuple(image) != tuple(mask):
        raise ValueError(
            f"the mask of '{name}' is {mask[1]}x{mask[0]}, but its image is {image[1]}x{image[0]} (upright). "
            "Make them the same size; resize masks without interpolation."
        )
