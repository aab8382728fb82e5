"""The classes and channels of volumes, from a `dataset.json` as of nnU-Net or the Medical Segmentation Decathlon.

    {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 4, "ignore": 9}, "file_ending": ".nii.gz"}
    {"labels": {"background": 0, "whole tumor": [1, 2], "core": [2]}, "regions_class_order": [1, 2], ...}
    {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "edema"}, "training": [...], ...}

Ids are any integers, in any order. The class called "background" is class 0, else the one with id 0; the others
follow by their ids. "ignore" is not a class. A region is a union of classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..image_files import same_name
from ..label_maps import ID, IGNORE, LARGEST_MASK_ID
from ..palettes import shown
from .class_file import read_json
from .class_table import ClassTable, class_table

BACKGROUND = "background"
CHANNEL_KEYS = ("channel_names", "modality")
ORDER = "regions_class_order"
EXAMPLE = '{"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "file_ending": ".nii.gz"}'


@dataclass(frozen=True)
class VolumeTable:
    """What a data set of volumes says about its classes and channels.

    Args:
        classes: Names, colors, ignore index, and label map from every id in the label files.
        regions: Name of a region -> indices of its classes. Default: no regions.
        channel_names: Names of the channels; empty if they are unknown. Default: unknown.
        file_ending: Ending of the files, such as ".nii.gz". None, the default: any that is supported.
        warnings: What may be wrong with it, in words. Default: nothing.
        origin: The file that it was read from, for messages. Default: it was not read from a file.
    """

    classes: ClassTable
    regions: dict[str, tuple[int, ...]] = field(default_factory=dict)
    channel_names: tuple[str, ...] = ()
    file_ending: str | None = None
    warnings: tuple[str, ...] = ()
    origin: str | None = None


def volume_table(content: Any, origin: str) -> VolumeTable:
    """Builds the table from a parsed `dataset.json` or `classes.json`; `origin` names it in error messages.

    Raises:
        ValueError: If it is not valid.
    """
    if not isinstance(content, Mapping) or "labels" not in content:
        return table_of_classes(class_table(content, None, origin), origin)
    try:
        return replace(_table(content), origin=origin)
    except ValueError as error:
        raise ValueError(f"{origin} is not valid: {error}") from None


def read_volume_table(path: Path) -> VolumeTable:
    """Reads a `dataset.json` or `classes.json`. Raises ValueError if it is not valid."""
    return volume_table(read_json(path, EXAMPLE), f"'{path}'")


def table_of_classes(table: ClassTable, origin: str | None = None) -> VolumeTable:
    """The same classes for volumes: the label map names every id. `origin` is the file that they were read from."""
    label_map = table.label_map
    if label_map is None:
        label_map = {str(index): index for index in range(len(table.names))} | {
            str(table.ignore_index): IGNORE
        }
    ids = {key: label for key, label in label_map.items() if not key.startswith("#")}
    return VolumeTable(ClassTable(table.names, table.palette, table.ignore_index, ids), origin=origin)


def channel_names(content: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the channels by their numbers, which must be 0, 1, ...; empty without the key."""
    key = next((key for key in CHANNEL_KEYS if key in content), None)
    if key is None:
        return ()
    given = content[key]
    given = dict(enumerate(given)) if isinstance(given, list) else given
    numbers = (
        sorted(map(str, given), key=lambda text: (len(text), text)) if isinstance(given, Mapping) else []
    )
    if not numbers or numbers != [str(number) for number in range(len(numbers))]:
        raise ValueError(
            f'it has {key}={shown(given)}. Number the channels from 0, for example {{"0": "T1", "1": "T2"}}.'
        )
    by_number = {str(number): name for number, name in given.items()}
    return tuple(same_name(str(by_number[number]).strip()) for number in numbers)


def _table(content: Mapping[str, Any]) -> VolumeTable:
    labels = _labels(content["labels"])
    ignored = [index for name, ids in labels.items() if name.casefold() == IGNORE for index in ids]
    labels = {name: ids for name, ids in labels.items() if name.casefold() != IGNORE}
    if both := set(ignored) & {index for ids in labels.values() for index in ids}:
        raise ValueError(f'the id {min(both)} is "{IGNORE}" and a label. Keep one of them.')
    if not labels:
        raise ValueError(f"it has no labels. Write for example {EXAMPLE}.")
    has_regions = any(len(ids) > 1 for ids in labels.values())
    names = _names_of_ids(labels) if has_regions else _names_of_classes(labels)
    order = sorted(names, key=lambda index: (not _is_background(index, names), index))
    label_map = {str(index): place for place, index in enumerate(order)} | dict.fromkeys(
        map(str, ignored), IGNORE
    )
    regions, warnings = {}, []
    if has_regions:
        foreground = {name: ids for name, ids in labels.items() if not _is_only_background(ids, names)}
        regions = {name: tuple(sorted(order.index(i) for i in ids)) for name, ids in foreground.items()}
        warnings = _check_order(content.get(ORDER), foreground)
    elif not _is_background(order[0], names):
        warnings = [
            f'no label is called "{BACKGROUND}" or has id 0, so "{names[order[0]]}" is treated as the background.'
        ]
    classes = ClassTable([names[index] for index in order], label_map=label_map)
    return VolumeTable(classes, regions, channel_names(content), _ending(content), tuple(warnings))


def _labels(given: Any) -> dict[str, tuple[int, ...]]:
    """Name -> ids, from names by id, ids by name, lists of ids by name, or a list of names."""
    if isinstance(given, list):
        given = {str(index): name for index, name in enumerate(given)}
    if not isinstance(given, Mapping) or not given:
        raise ValueError(f"it has labels={shown(given)}. Write for example {EXAMPLE}.")
    is_by_id = all(ID.fullmatch(str(key)) and isinstance(value, str) for key, value in given.items())
    pairs = [(value, key) if is_by_id else (key, value) for key, value in given.items()]
    labels: dict[str, tuple[int, ...]] = {}
    for text, ids in pairs:
        name = same_name(str(text).strip())
        if not name or name in labels:
            problem = "twice" if name else "without a name"
            raise ValueError(f"it has the label {shown(text)} {problem}. Give each label its own name.")
        ids = [_id(value, name) for value in (ids if isinstance(ids, list | tuple) else [ids])]
        if not ids:
            raise ValueError(f"it gives no id to {shown(name)}. Give it one, or remove it.")
        labels[name] = tuple(dict.fromkeys(ids))
    return labels


def _id(value: Any, name: str) -> int:
    if isinstance(value, str) and ID.fullmatch(value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > LARGEST_MASK_ID:
        raise ValueError(
            f"it has {shown(value)} as the id of {shown(name)}. An id is an integer of up to 32 bits."
        )
    return value


def _names_of_classes(labels: dict[str, tuple[int, ...]]) -> dict[int, str]:
    """Id -> name, where each name has one id."""
    names: dict[int, str] = {}
    for name, (index,) in labels.items():
        if index in names:
            raise ValueError(
                f"it gives the id {index} to {shown(names[index])} and {shown(name)}. Keep one of them."
            )
        names[index] = name
    return names


def _names_of_ids(labels: dict[str, tuple[int, ...]]) -> dict[int, str]:
    """Id -> name, for regions: that of the region that is this id alone, else of the smallest with the id added."""
    by_size = sorted(labels.items(), key=lambda item: len(item[1]))
    names: dict[int, str] = {}
    for name, ids in by_size:
        for index in ids:
            names.setdefault(index, name if len(ids) == 1 else f"{name} (label {index})")
    return names


def _is_background(index: int, names: dict[int, str]) -> bool:
    """Whether it is the id of the class called background, or 0 if there is no such class."""
    has_name = any(name.casefold() == BACKGROUND for name in names.values())
    return names[index].casefold() == BACKGROUND if has_name else index == 0


def _is_only_background(ids: tuple[int, ...], names: dict[int, str]) -> bool:
    return len(ids) == 1 and _is_background(ids[0], names)


def _check_order(order: Any, regions: dict[str, tuple[int, ...]]) -> list[str]:
    """Raises ValueError unless there is an id of each region; warns of ids that are not the region's own."""
    if not isinstance(order, list) or len(order) != len(regions):
        given = f"{ORDER}={shown(order)}" if order is not None else f"no {ORDER}"
        raise ValueError(
            f"it has {len(regions)} regions ({', '.join(map(shown, regions))}), but {given}. Give {ORDER} a list with "
            "one id for each of them, in their order."
        )
    foreign = [
        f"{shown(name)} ({shown(index)})"
        for (name, ids), index in zip(regions.items(), order, strict=True)
        if index not in ids
    ]
    if not foreign:
        return []
    return [
        f"{ORDER} gives ids to regions that are not among their own: {', '.join(foreign)}. Predicted masks have the "
        "ids of the label files."
    ]


def _ending(content: Mapping[str, Any]) -> str | None:
    """The ending of the files with its dot, or None."""
    ending = content.get("file_ending")
    if ending is None:
        return None
    if not isinstance(ending, str) or not ending.strip():
        raise ValueError(f'it has file_ending={shown(ending)}. Write for example ".nii.gz".')
    return "." + ending.strip().lstrip(".").lower()
