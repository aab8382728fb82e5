"""Reads and checks the content of a `classes.json`: each mistake is one ValueError that says what to correct."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from ..image_files import same_name
from ..label_maps import ID, LARGEST_MASK_ID
from ..palettes import check_palette, parse_color, shown

Color = tuple[int, int, int]
COLOR_KEYS = ("color", "colour")
ROW_KEYS = ("index", "name", *COLOR_KEYS)
TABLE_KEYS = (
    *("classes", "id2label", "ignore_index", "palette", "label_map"),
    *("ignore_color", "ignore_colour", "num_classes"),
)
MISSPELT = 0.8  # similarity to a known key, from 0 to 1, at which a key is that key misspelt
# Words of other tools for our keys: left unread, they would change what the masks mean.
OTHER_WORDS = {
    **dict.fromkeys(("names", "class_names", "categories", "labels"), "classes"),
    **dict.fromkeys(("colors", "colours", "colormap", "color_map"), "palette"),
    **dict.fromkeys(("ignore", "void", "ignore_label", "ignore_value", "unlabeled"), "ignore_index"),
    **dict.fromkeys(("mapping", "remap", "id_map"), "label_map"),
    **dict.fromkeys(("id", "value", "class_id", "label_id"), "index"),
    **dict.fromkeys(("label", "title", "class"), "name"),
    **dict.fromkeys(("rgb", "rgba", "hex"), "color"),
}
UNPAIRED_SURROGATE = re.compile("[\ud800-\udfff]")  # in JSON as "\\ud800"; such text cannot be printed
EXAMPLE = '{"classes": ["background", "road"], "ignore_index": 255}'


class Row(NamedTuple):
    """A class: its id in the mask files, its name, and its color if it has one."""

    index: int
    name: str
    color: Color | None = None


class ClassFile(NamedTuple):
    """The checked content of a `classes.json`, with its rows in the order of their ids.

    Args:
        rows: The classes.
        palette: Color of each row, or None.
        ignore_index: The id to ignore, unchecked; None if it is not given.
        label_map: The label map, unchecked; None if it is not given.
        ignored_colors: Colors to ignore.
    """

    rows: list[Row]
    palette: list[Color] | None
    ignore_index: Any
    label_map: Any
    ignored_colors: list[Color]


def read_json(path: Path, example: str = EXAMPLE) -> Any:
    """Parses a JSON file strictly: no repeated keys, no NaN. Raises ValueError, with an example, if it cannot be read."""
    try:
        return json.loads(
            path.read_bytes().decode("utf-8-sig"), object_pairs_hook=_without_repeats, parse_constant=_refuse
        )
    except FileNotFoundError:
        raise ValueError(
            f"'{path}' does not exist. Pass the path of the file that lists the classes, or the class names."
        ) from None
    except OSError as error:
        raise ValueError(f"'{path}' cannot be read: {error.strerror}. Check the path.") from error
    except RecursionError:
        raise ValueError(
            f"'{path}' is not valid JSON: it is nested too deeply. {example} is enough."
        ) from None
    except ValueError as error:
        raise ValueError(f"'{path}' is not valid JSON: {error}. Correct it; {example} is enough.") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"it has the key {shown(twice)} twice")
    return content


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number of JSON")


def parse_class_file(content: Any) -> ClassFile:
    """Checks the parsed JSON of a `classes.json`. Raises ValueError for the first mistake."""
    table = _as_table(content)
    _check_keys(table, TABLE_KEYS)
    if ("classes" in table) == ("id2label" in table):
        raise ValueError(f"it does not list classes once, under 'classes'. Write for example {EXAMPLE}.")
    rows = sorted(_rows(table.get("classes", table.get("id2label"))), key=lambda row: row.index)
    _check_distinct("name", [row.name for row in rows])
    _check_distinct("index", [row.index for row in rows])
    count = table.get("num_classes", len(rows))
    if count != len(rows):
        raise ValueError(
            f"it says num_classes={shown(count)}, but lists {len(rows)} classes. Correct one of them."
        )
    palette = _palette(rows, table.get("palette"))
    ignored = [parse_color(table[f"ignore_{key}"]) for key in COLOR_KEYS if f"ignore_{key}" in table]
    if shared := set(ignored) & set(palette or []):
        raise ValueError(f"it has a class of the color {list(shared.pop())}, which is also to be ignored.")
    return ClassFile(rows, palette, table.get("ignore_index"), table.get("label_map"), ignored)


def _as_table(content: Any) -> dict[str, Any]:
    """The content as a table with a key for its classes: a list of names and names by id stand for these."""
    if isinstance(content, list):
        return {"classes": content}
    if not isinstance(content, dict) or not content:
        raise ValueError(f"it does not list classes, but is {shown(content)}. Write for example {EXAMPLE}.")
    is_by_id = all(isinstance(key, int) or ID.fullmatch(key) for key in content)
    return {"id2label": content} if is_by_id else content


def _rows(classes: Any) -> list[Row]:
    if isinstance(classes, dict):
        classes = [{"index": index, "name": name} for index, name in classes.items()]
    if not isinstance(classes, list | tuple) or not classes:
        raise ValueError(f"it does not list classes, but has {shown(classes)}. Write for example {EXAMPLE}.")
    return [_row(row, place) for place, row in enumerate(classes)]


def _row(row: Any, place: int) -> Row:
    row = row if isinstance(row, dict) else {"name": row}
    _check_keys(row, ROW_KEYS, f" in class {place}")
    name, index = row.get("name"), row.get("index", place)
    if not isinstance(name, str) or not name.strip() or UNPAIRED_SURROGATE.search(name):
        raise ValueError(
            f"it has {shown(name)} as the name of class {place}. A name is a text of at least one character."
        )
    if isinstance(index, str) and ID.fullmatch(index):
        index = int(index)
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index <= LARGEST_MASK_ID:
        raise ValueError(
            f"it has {shown(index)} as the index of {shown(name)}. An index is an integer, 0 or more."
        )
    colors = [parse_color(row[key]) for key in COLOR_KEYS if key in row]
    return Row(index, same_name(name.strip()), colors[0] if colors else None)


def _palette(rows: list[Row], given: Any) -> list[Color] | None:
    """One color per class, from the key "palette" or from the rows; None if there are none."""
    colors = [row.color for row in rows if row.color is not None]
    if colors and len(colors) < len(rows):
        without = next(row.name for row in rows if row.color is None)
        raise ValueError(
            f"it gives colors to {len(colors)} of {len(rows)} classes. Give one to {shown(without)}, too."
        )
    if given is None:
        return colors or None
    palette = [(red, green, blue) for red, green, blue in check_palette(given)]
    if len(palette) != len(rows):
        raise ValueError(f"it has {len(palette)} colors for {len(rows)} classes. Give one color per class.")
    if colors and colors != palette:
        raise ValueError("it has a palette that differs from the colors of its classes. Keep one of them.")
    return palette


def _check_keys(table: dict[str, Any], known: Sequence[str], place: str = "") -> None:
    """Raises ValueError for a key that is a known one misspelt, or other tools' word for it.

    All further keys are notes, such as "license" or "width".
    """
    for key in table:
        if key not in known:
            near = get_close_matches(str(key).lower(), known, n=1, cutoff=MISSPELT)
            meant = near[0] if near else OTHER_WORDS.get(str(key).lower())
            if meant in known:
                raise ValueError(f"it has the unknown key {shown(key)}{place}. Did you mean '{meant}'?")


def _check_distinct(what: str, values: list[Any]) -> None:
    if len(set(values)) < len(values):
        twice = next(value for value, count in Counter(values).items() if count > 1)
        raise ValueError(
            f"it gives the {what} {shown(twice)} to two classes. Give each class its own {what}."
        )
