"""Rows of `datasets`: loading a split, finding columns by type, and reading an image cell without decoding it."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..image_reading import Source

if TYPE_CHECKING:
    import datasets


def load_rows(source: Path | str, split: str | None) -> "datasets.Dataset":
    """Loads one split with `datasets`. Raises ValueError if the source or the split does not exist."""
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
            f"'{source}' is not a folder, and `datasets` cannot load it: {error} Check the path (relative to "
            f"'{Path.cwd()}') or the name, and the connection to the Hub."
        ) from error
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded
    if split is None and len(loaded) == 1:
        return next(iter(loaded.values()))
    if split not in loaded:
        raise ValueError(
            f"'{source}' has the splits {', '.join(loaded)}. Choose one, as in '{source}:{next(iter(loaded))}'."
        )
    return loaded[split]


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
