"""Rows of `datasets`: loading a split, finding columns by type, and reading a cell without decoding it."""

import io
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from huggingface_hub import metadata_load
from yaml import YAMLError

from ..image_reading import Source

if TYPE_CHECKING:
    import datasets

TABLES = {
    ".parquet": "parquet",
    ".arrow": "arrow",
}  # by suffix: the builder of `datasets` that reads the files
PATHS = ("string", "large_string")  # types of a column with the paths of images
ENCODED = ("binary", "large_binary")  # types of a column with whole image files


def load_rows(source: Path | str, split: str | None) -> "datasets.Dataset":
    """Loads one split with `datasets`. Raises ValueError if the source or the split does not exist."""
    loaded = load_splits(source)
    if not isinstance(loaded, Mapping):
        return loaded
    if split is None and len(loaded) == 1:
        return next(iter(loaded.values()))
    if split not in loaded:
        raise ValueError(
            f"'{source}' has the splits {', '.join(loaded)}. Choose one, as in '{source}:{next(iter(loaded))}'."
        )
    return loaded[split]


def load_splits(source: Path | str) -> "datasets.Dataset | datasets.DatasetDict":
    """Loads all splits of a folder (Path) or of a name on the Hub (str)."""
    import datasets

    try:
        if isinstance(source, str):
            return datasets.load_dataset(source)
        if (source / "dataset_dict.json").is_file() or (source / "state.json").is_file():
            return datasets.load_from_disk(source)
        if suffix := table_suffix(source):
            return load_tables(source, suffix)
        return datasets.load_dataset("imagefolder", data_dir=str(source))
    except (ConnectionError, FileNotFoundError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"`datasets` cannot load '{source}': {error} Check the path (relative to '{Path.cwd()}') or the name, "
            "and the connection to the Hub."
        ) from error


def split_names(folder: Path) -> list[str]:
    """The splits in a folder of `save_to_disk` or of tables; none if it has only one, and for other folders."""
    if not (folder / "dataset_dict.json").is_file() and table_suffix(folder) is None:
        return []
    loaded = load_splits(folder)
    return list(loaded) if isinstance(loaded, Mapping) and len(loaded) > 1 else []


def table_suffix(folder: Path) -> str | None:
    """The suffix of a table, or of the tables in a folder or up to two folders deeper, such as ".parquet"; or None."""
    if folder.is_file():
        return folder.suffix if folder.suffix in TABLES else None
    if (folder / "state.json").is_file():
        return None
    places = ("", "*/", "*/*/")
    return next((s for s in TABLES for place in places if next(folder.glob(f"{place}[!.]*{s}"), None)), None)


def load_tables(folder: Path, suffix: str) -> "datasets.DatasetDict":
    """Loads a parquet or arrow file, or a folder of them, as downloaded from the Hub.

    The files of each split come from the README.md if it lists them, else from their names.
    """
    import datasets
    from datasets.data_files import DataFilesDict, get_data_patterns

    if folder.is_file():
        return datasets.load_dataset(TABLES[suffix], data_files=str(folder))
    if lists_files(folder / "README.md"):
        return datasets.load_dataset(str(folder))
    patterns = get_data_patterns(str(folder))
    files = DataFilesDict.from_patterns(patterns, base_path=str(folder), allowed_extensions=[suffix])
    return datasets.load_dataset(
        TABLES[suffix], data_files={name: list(paths) for name, paths in files.items()}
    )


def lists_files(card: Path) -> bool:
    """Whether the front matter of a dataset card lists the files of each split."""
    try:
        return bool(card.is_file() and (metadata_load(card) or {}).get("configs"))
    except (ValueError, YAMLError):
        return False


def check_rows(dataset: Any, name: str) -> None:
    """Raises ValueError for anything but a `datasets.Dataset` with rows."""
    import datasets

    if isinstance(dataset, datasets.Dataset):
        if not len(dataset):
            raise ValueError(
                f"{name} has no rows. Choose another split, or check how its rows were selected."
            )
        return
    kind = type(dataset).__name__
    if isinstance(dataset, Mapping):
        raise ValueError(
            f"{name} is a {kind} with the splits {', '.join(map(str, dataset))}. Pass one of them, without streaming."
        )
    if isinstance(dataset, datasets.IterableDataset):
        raise ValueError(
            f"{name} is a streaming dataset ({kind}), which has neither a length nor rows by index. Load it without "
            "streaming=True; to keep only some rows, save them first with datasets.Dataset.from_list(list(rows.take(N)))."
        )
    raise ValueError(
        f"{name} is a {kind}, not a datasets.Dataset. Convert it with datasets.Dataset.from_dict."
    )


def picture_columns(dataset: "datasets.Dataset", names: Collection[str]) -> list[str]:
    """The columns that can be images or masks: encoded files, and arrays if they have one of these names."""
    return [
        column
        for column, feature in dataset.features.items()
        if is_encoded(feature) or (column in names and array_type(feature))
    ]


def is_encoded(feature: Any) -> bool:
    """Whether the cells of a column are image files: decoded by `datasets`, as bytes, or as bytes and path."""
    from datasets import Image

    is_struct = isinstance(feature, Mapping) and set(feature) == {"bytes", "path"}
    return isinstance(feature, Image) or is_struct or getattr(feature, "dtype", None) in ENCODED


def array_type(feature: Any) -> str | None:
    """The type of the values in a column of arrays or of lists of lists, such as "uint8"; else None."""
    from datasets import Array2D, Array3D

    if isinstance(feature, Array2D | Array3D):
        return feature.dtype
    depth = 0
    while hasattr(feature, "feature"):
        feature, depth = feature.feature, depth + 1
    return getattr(feature, "dtype", None) if depth in (2, 3) else None


def undecoded(rows: "datasets.Dataset", column: str) -> "datasets.Dataset":
    """The rows with a column of image files as bytes or paths, so that errors can name the row.

    Raises ValueError for a column of anything but images, paths and arrays.
    """
    from datasets import Image

    feature = rows.features[column]
    if array_type(feature) is not None:
        return rows
    if not is_encoded(feature) and getattr(feature, "dtype", None) not in PATHS:
        raise ValueError(
            f"column '{column}' has values of the type {getattr(feature, 'dtype', feature)}, not images. Choose a column of "
            "images, of paths to images, or of arrays."
        )
    return rows.cast_column(column, Image(decode=False))


def row_source(rows: "datasets.Dataset", index: int, column: str, name: str) -> Source:
    """The path, file or array of an image in a cell. Raises ValueError if the cell is empty."""
    cell = rows[index][column]
    if cell is None:
        raise ValueError(f"{name}[{index}] has no '{column}'. Remove such rows before training.")
    if kind := array_type(rows.features[column]):
        return np.asarray(cell, dtype=kind)
    return cell_source(cell, f"{name}[{index}]['{column}'] {cell['path'] or ''}".strip())


def columns_of(dataset: "datasets.Dataset", kind: type) -> list[str]:
    """The columns whose feature is of this kind."""
    return [column for column, feature in dataset.features.items() if isinstance(feature, kind)]


def cell_source(cell: dict[str, Any], name: str) -> Source:
    """The path in a cell of an image column that is not decoded, or its bytes as a file called `name`."""
    if cell["bytes"] is None:
        return cell["path"]
    file = io.BytesIO(cell["bytes"])
    file.name = name
    return file
