"""Class names, colors and ignore index of a dataset, read from `classes.json` in any of its usual forms.

    {"classes": ["road", "car"], "ignore_index": 255, "palette": [[128, 64, 128], [0, 0, 142]]}
    {"classes": [{"index": 7, "name": "road", "color": [128, 64, 128]}, ...], "ignore_color": [0, 0, 0]}
    {"classes": ["road", "car"], "label_map": {"7": 0, "26": 1, "0": "ignore"}}
    {"0": "road", "1": "car"}        or just        ["road", "car"]

An `index` is the id in the mask files. It may differ from the position in the list, which is the class id of
the model.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..label_maps import IGNORE, LabelMap, normalize_label_map

FILE_NAME = "classes.json"
COLOR_KEYS = ("color", "colour")


@dataclass(frozen=True)
class ClassTable:
    """The classes of a dataset, in the order of the model's class ids.

    Args:
        names: Class names.
        palette: RGB color of each class.
        ignore_index: Class id of unlabeled pixels.
        label_map: Id or "#rrggbb" in the mask files -> class id or "ignore". None if the ids are class ids.
        ignored_colors: RGB colors of unlabeled pixels in color masks.
    """

    names: list[str]
    palette: list[tuple[int, int, int]] | None = None
    ignore_index: int = 255
    label_map: dict[str, int | str] | None = None
    ignored_colors: list[tuple[int, int, int]] = field(default_factory=list)

    def decoder(self) -> LabelMap:
        """The allowed mask values: `label_map` if there is one, else class ids, ignore index and colors."""
        if self.label_map is not None:
            return LabelMap(self.label_map, self.ignore_index)
        entries: dict[Any, int | str] = {self.ignore_index: IGNORE}
        entries |= {index: index for index in range(len(self.names))}
        if self.palette and len({*self.palette, *self.ignored_colors}) == len(self.palette) + len(
            self.ignored_colors
        ):
            entries |= dict.fromkeys(self.ignored_colors, IGNORE)
            entries |= {color: index for index, color in enumerate(self.palette)}
        return LabelMap(entries, self.ignore_index)


def find_class_table(
    folder: Path, classes: str | Path | Sequence[str] | None, label_map: Mapping | None = None
) -> ClassTable | None:
    """Finds the class table of a dataset.

    Args:
        folder: Folder of the dataset, in which (or in whose parent) `classes.json` is looked for if `classes`
            is None.
        classes: Class names, or path of a file that lists them.
        label_map: Replaces the label map of the table.

    Returns:
        The table, or None if there are neither `classes` nor a `classes.json`.

    Raises:
        ValueError: If the file is missing or not valid.
    """
    if isinstance(classes, str | Path):
        return read_class_table(Path(classes), label_map)
    if classes is not None:
        return class_table(list(classes), label_map, "classes")
    for place in (folder, folder.resolve().parent):
        if folder.exists() and (place / FILE_NAME).is_file():
            return read_class_table(place / FILE_NAME, label_map)
    return None


def read_class_table(path: Path, label_map: Mapping | None = None) -> ClassTable:
    """Reads a `classes.json`, with `label_map` in place of its own. Raises ValueError if it is not valid."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ValueError(
            f"'{path}' does not exist. Pass the path of the file that lists the classes, or the class names."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"'{path}' is not valid JSON: {error}. Correct it; {example()} is enough."
        ) from error
    return class_table(content, label_map, f"'{path}'")


def class_table(content: Any, label_map: Mapping | None, origin: str) -> ClassTable:
    """Builds the table from a parsed `classes.json`; `origin` names it in error messages."""
    options = content if isinstance(content, dict) else {}
    rows = options.get("classes", options.get("id2label", content))
    if isinstance(rows, dict):
        rows = [{"index": index, "name": name} for index, name in rows.items()]
    if not isinstance(rows, list) or not rows or not all(is_row(row) for row in rows):
        raise ValueError(f"{origin} does not list classes. Write for example {example()}.")
    rows = [row if isinstance(row, dict) else {"name": row} for row in rows]
    try:
        ids = [int(row.get("index", place)) for place, row in enumerate(rows)]
        rows = [rows[place] for place in sorted(range(len(rows)), key=ids.__getitem__)]
        palette = read_palette(rows, options.get("palette"))
        ignored = [color(options[f"ignore_{key}"]) for key in COLOR_KEYS if f"ignore_{key}" in options]
        ignore_index = int(options.get("ignore_index", 255))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{origin} is not valid: {error}. Write for example {example()}.") from error
    names = [str(row["name"]) for row in rows]
    check_table(names, ids, palette, options, origin)
    label_map = label_map if label_map is not None else options.get("label_map")
    if label_map is None and sorted(ids) != list(range(len(ids))):
        label_map = {index: place for place, index in enumerate(sorted(ids))} | {ignore_index: IGNORE}
    if label_map is not None:
        label_map = normalize_label_map(label_map)
        check_label_map(label_map, names, origin)
    return ClassTable(names, palette, ignore_index, label_map, ignored)


def is_row(row: Any) -> bool:
    return isinstance(row, str) or (isinstance(row, dict) and "name" in row)


def read_palette(rows: list[dict], palette: list | None) -> list[tuple[int, int, int]] | None:
    """The color of each class, from the palette or from the rows; None if a row has no color."""
    if palette is None:
        palette = [row[key] for row in rows for key in COLOR_KEYS if key in row]
        palette = palette if len(palette) == len(rows) else None
    return None if palette is None else [color(value) for value in palette]


def color(value: str | Iterable[int]) -> tuple[int, int, int]:
    """ "#rrggbb" or three numbers -> (red, green, blue), each in 0..255."""
    levels = (
        bytes.fromhex(value.removeprefix("#")) if isinstance(value, str) else [int(level) for level in value]
    )
    if len(levels) != 3 or not all(0 <= level <= 255 for level in levels):
        raise ValueError(f"{value!r} is not a color such as [128, 64, 128] or '#804080'")
    return tuple(levels)


def check_table(names: list[str], ids: list[int], palette: list | None, options: dict, origin: str) -> None:
    """Raises ValueError if the parts of a table contradict each other."""
    count = options.get("num_classes", len(names))
    if count != len(names):
        raise ValueError(
            f"{origin} says num_classes={count}, but lists {len(names)} classes. Correct one of them."
        )
    for what, values in (("name", names), ("index", ids)):
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise ValueError(
                f"{origin} gives the {what} {twice[0]!r} to two classes. Give each class its own {what}."
            )
    if palette is not None and len(palette) != len(names):
        raise ValueError(
            f"{origin} has {len(palette)} colors for {len(names)} classes. Give one color per class."
        )


def check_label_map(label_map: dict[str, int | str], names: list[str], origin: str) -> None:
    """Raises ValueError if a value is mapped to a class that has no name."""
    for value, label in label_map.items():
        if label != IGNORE and label >= len(names):
            raise ValueError(
                f"the label map of {origin} maps {value} to class {label}, but the classes are 0..{len(names) - 1}: "
                f'{", ".join(names)}. Add the class, or map the value to "ignore".'
            )


def example(names: Sequence[str] = ("background", "road"), ignore_index: int = 255) -> str:
    """An example of a `classes.json`, for messages."""
    return json.dumps({"classes": list(names), "ignore_index": ignore_index})
