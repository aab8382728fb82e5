"""Class names, colors and ignore index of a dataset, read from `classes.json` in any of its usual forms.

    {"classes": ["road", "car"], "ignore_index": 255, "palette": [[128, 64, 128], [0, 0, 142]]}
    {"classes": [{"index": 7, "name": "road", "color": [128, 64, 128]}, ...], "ignore_color": [0, 0, 0]}
    {"classes": ["road", "car"], "label_map": {"7": 0, "26": 1, "0": "ignore"}}
    {"0": "road", "1": "car"}        or just        ["road", "car"]

An `index` is the id in the mask files. It may differ from the position in the list, which is the class id of
the model.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..label_maps import (
    IGNORE,
    LabelMap,
    check_ignore_index,
    colors_of_classes,
    default_ignore_index,
    normalize_label_map,
)
from ..palettes import shown
from .class_file import ClassFile, parse_class_file, read_json

FILE_NAME = "classes.json"


@dataclass(frozen=True)
class ClassTable:
    """The classes of a dataset, in the order of the model's class ids.

    Args:
        names: Class names.
        palette: RGB color of each class.
        ignore_index: Label of unlabeled pixels, which is not a class id. Default: 255, or 65535 where 255 is
            a class.
        label_map: Id or "#rrggbb" in the mask files -> class id or "ignore". None if the ids are class ids.
        ignored_colors: RGB colors of unlabeled pixels in color masks.

    Raises:
        ValueError: If the names are not different texts, `palette` has another number of colors, or `ignore_index` is
            not an integer, or is a class id.
    """

    names: list[str]
    palette: list[tuple[int, int, int]] | None = None
    ignore_index: int | None = None
    label_map: dict[str, int | str] | None = None
    ignored_colors: list[tuple[int, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        names, count = self.names, len(self.names)
        is_list = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
        if not is_list or not names or len(set(names)) < count:
            raise ValueError(f"names={shown(names)} is not a list of different class names.")
        if self.palette is not None and len(self.palette) != count:
            raise ValueError(f"there are {len(self.palette)} colors for {count} classes. Give one per class.")
        given = default_ignore_index(count) if self.ignore_index is None else self.ignore_index
        object.__setattr__(self, "ignore_index", check_ignore_index(given, count))

    def decoder(self) -> LabelMap:
        """The allowed mask values: `label_map` if there is one, else class ids and ignore index; and colors."""
        return LabelMap(
            self.label_map,
            self.ignore_index,
            palette=self.palette,
            ignored_colors=self.ignored_colors,
            num_classes=len(self.names),
        )


def find_class_table(
    folder: Path,
    classes: "str | Path | Sequence[str] | Mapping[int, str] | ClassTable | None",
    label_map: Mapping | None = None,
) -> ClassTable | None:
    """Finds the class table of a dataset.

    Args:
        folder: Folder of the dataset, in which (or in whose parent) `classes.json` is looked for if `classes`
            is None.
        classes: Class names, names by id, path of a file that lists them, or the table itself.
        label_map: Replaces the label map of the table.

    Returns:
        The table, or None if there are neither `classes` nor a `classes.json`.

    Raises:
        ValueError: If the file is missing or not valid.
    """
    if isinstance(classes, ClassTable):
        return classes
    if isinstance(classes, str | Path):
        return read_class_table(Path(classes), label_map)
    if classes is not None:
        return class_table(
            dict(classes) if isinstance(classes, Mapping) else list(classes), label_map, "classes"
        )
    for place in (folder, folder.resolve().parent):
        if folder.exists() and (place / FILE_NAME).is_file():
            return read_class_table(place / FILE_NAME, label_map)
    return None


def read_class_table(path: Path, label_map: Mapping | None = None) -> ClassTable:
    """Reads a `classes.json`, with `label_map` in place of its own. Raises ValueError if it is not valid."""
    return class_table(read_json(path), label_map, f"'{path}'")


def class_table(content: Any, label_map: Mapping | None, origin: str) -> ClassTable:
    """Builds the table from a parsed `classes.json`; `origin` names it in error messages."""
    try:
        return _table(parse_class_file(content), label_map)
    except ValueError as error:
        raise ValueError(f"{origin} is not valid: {error}") from None


def _table(file: ClassFile, label_map: Mapping | None) -> ClassTable:
    names, ids = [row.name for row in file.rows], [row.index for row in file.rows]
    ignore_index = file.ignore_index
    label_map = file.label_map if label_map is None else label_map
    if label_map is None and ids != list(range(len(ids))):
        ignore_index, label_map = _map_of_ids(ids, ignore_index)
    if label_map is not None:
        label_map = normalize_label_map(label_map)
        check_label_map(label_map, names)
    palette = file.palette
    if palette is None and label_map:
        colors = colors_of_classes(label_map)
        palette = colors if colors and len(colors) == len(names) else None
    return ClassTable(names, palette, ignore_index, label_map, file.ignored_colors)


def _map_of_ids(ids: list[int], ignored: Any) -> tuple[int | None, dict[int, int | str]]:
    """The ignore index and the label map for ids that are not 0..K-1.

    `ignored` is an id in the files, like the others; it is the label of ignored pixels, too, unless it is
    one of the class ids 0..K-1.
    """
    label_map: dict[int, int | str] = {index: place for place, index in enumerate(ids)}
    if ignored is None:
        default = default_ignore_index(len(ids))
        return None, label_map if default in label_map else label_map | {default: IGNORE}
    ignored = check_ignore_index(ignored, 0)
    if ignored in label_map:
        raise ValueError(f"it has ignore_index={ignored}, which is the index of a class. Give another one.")
    return ignored if ignored not in range(len(ids)) else None, label_map | {ignored: IGNORE}


def check_label_map(label_map: dict[str, int | str], names: list[str]) -> None:
    """Raises ValueError if a value is mapped to a class that has no name."""
    for value, label in label_map.items():
        if label != IGNORE and label >= len(names):
            raise ValueError(
                f"its label map maps {value} to class {label}, but the classes are 0..{len(names) - 1}: "
                f'{shown(names)}. Add the class, or map the value to "ignore".'
            )


def example(names: Sequence[str] = ("background", "road"), ignore_index: int = 255) -> str:
    """An example of a `classes.json`, for messages."""
    return json.dumps({"classes": list(names), "ignore_index": ignore_index})
