"""Names, colours and ignore index of a data set: what `classes.json` says, in any of its usual forms.

    {"classes": ["road", "car"], "ignore_index": 255, "palette": [[128, 64, 128], [0, 0, 142]]}
    {"classes": [{"index": 7, "name": "road", "color": [128, 64, 128]}, ...], "ignore_color": [0, 0, 0]}
    {"classes": ["road", "car"], "label_map": {"7": 0, "26": 1, "0": "ignore"}}
    {"0": "road", "1": "car"}        or plainly        ["road", "car"]

An `index` is the id in the mask files; it need not be the place in the list, which is the class the model learns.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..label_maps import IGNORE, LabelMap, normalize_label_map

FILE_NAME = "classes.json"
COLOUR_KEYS = ("color", "colour")


@dataclass(frozen=True)
class ClassTable:
    """The classes of a data set, in the order in which the model learns them."""

    names: list[str]
    palette: list[tuple[int, int, int]] | None = None
    ignore_index: int = 255
    label_map: dict[str, int | str] | None = (
        None  # id or "#rrggbb" in the files -> class or "ignore"; None: ids are classes
    )
    ignored_colours: list[tuple[int, int, int]] = field(default_factory=list)

    def decoder(self) -> LabelMap:
        """Knows every value a mask may hold: the label map alone where there is one, else classes, ignore index, colours."""
        if self.label_map is not None:
            return LabelMap(self.label_map, self.ignore_index)
        entries: dict[Any, int | str] = {self.ignore_index: IGNORE}
        entries |= {index: index for index in range(len(self.names))}
        if self.palette and len({*self.palette, *self.ignored_colours}) == len(self.palette) + len(
            self.ignored_colours
        ):
            entries |= dict.fromkeys(self.ignored_colours, IGNORE)
            entries |= {colour: index for index, colour in enumerate(self.palette)}
        return LabelMap(entries, self.ignore_index)


def find_class_table(
    folder: Path, classes: str | Path | Sequence[str] | None, label_map: Mapping | None = None
) -> ClassTable | None:
    """From names, from a file, or from `classes.json` in the folder or its parent; None where there is none of them."""
    if isinstance(classes, str | Path):
        return read_class_table(Path(classes), label_map)
    if classes is not None:
        return class_table(list(classes), label_map, "classes")
    for place in (folder, folder.resolve().parent):
        if folder.exists() and (place / FILE_NAME).is_file():
            return read_class_table(place / FILE_NAME, label_map)
    return None


def read_class_table(path: Path, label_map: Mapping | None = None) -> ClassTable:
    """A `classes.json`; `label_map` takes the place of its own."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ValueError(
            f"'{path}' does not exist. Name the file that lists the classes, or their names."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"'{path}' is not valid JSON: {error}. Correct it; {example()} is enough."
        ) from error
    return class_table(content, label_map, f"'{path}'")


def class_table(content: Any, label_map: Mapping | None, origin: str) -> ClassTable:
    """The table that a parsed `classes.json` means; `origin` names it in errors."""
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
        ignored = [colour(options[f"ignore_{key}"]) for key in COLOUR_KEYS if f"ignore_{key}" in options]
        ignore_index = int(options.get("ignore_index", 255))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{origin} cannot be understood: {error}. Write for example {example()}.") from error
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
    """The colours of the classes, from a list of them or from their rows; None if some row has no colour."""
    if palette is None:
        palette = [row[key] for row in rows for key in COLOUR_KEYS if key in row]
        palette = palette if len(palette) == len(rows) else None
    return None if palette is None else [colour(value) for value in palette]


def colour(value: str | Iterable[int]) -> tuple[int, int, int]:
    """ "#rrggbb" or three numbers."""
    levels = (
        bytes.fromhex(value.removeprefix("#")) if isinstance(value, str) else [int(level) for level in value]
    )
    if len(levels) != 3 or not all(0 <= level <= 255 for level in levels):
        raise ValueError(f"{value!r} is not a colour such as [128, 64, 128] or '#804080'")
    return tuple(levels)


def check_table(names: list[str], ids: list[int], palette: list | None, options: dict, origin: str) -> None:
    """Raises where the parts of a table contradict each other."""
    count = options.get("num_classes", len(names))
    if count != len(names):
        raise ValueError(
            f"{origin} says num_classes={count}, but lists {len(names)} classes. Correct one of them."
        )
    for what, values in (("name", names), ("index", ids)):
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise ValueError(f"{origin} gives the {what} {twice[0]!r} to two classes. Each needs its own.")
    if palette is not None and len(palette) != len(names):
        raise ValueError(f"{origin} has {len(palette)} colours for {len(names)} classes. Give one for each.")


def check_label_map(label_map: dict[str, int | str], names: list[str], origin: str) -> None:
    """Raises where a value is mapped to a class that has no name."""
    for value, label in label_map.items():
        if label != IGNORE and label >= len(names):
            raise ValueError(
                f"the label map of {origin} gives {value} the class {label}, but classes are 0..{len(names) - 1}: "
                f'{", ".join(names)}. Name the class, or map the value to "ignore".'
            )


def example(names: Sequence[str] = ("background", "road"), ignore_index: int = 255) -> str:
    """A `classes.json` to copy."""
    return json.dumps({"classes": list(names), "ignore_index": ignore_index})
