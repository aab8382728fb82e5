"""Class names of a model: `id2label` and `label2id`, checked and brought into one form."""

from collections import Counter
from collections.abc import Mapping
from operator import index
from typing import Any

from .ranges import shown

LABEL_OPTIONS = ("id2label", "label2id", "num_labels")


def labels_of(
    id2label: Any = None, label2id: Any = None, num_labels: Any = None
) -> tuple[dict[int, str], dict[str, int]]:
    """Returns `id2label` and `label2id` from whatever is given of them; at least one argument is not None.

    Args:
        id2label: Name of each class by id, which may be text as in JSON; or a list of names.
        label2id: Id of each class by name; or a list of names. With both, it only decides between classes of
            the same name.
        num_labels: Number of classes K. Alone, it names them LABEL_0, LABEL_1, ...

    Raises:
        ValueError: If ids are not 0 to K - 1, a name is not text or occurs twice, or the arguments contradict
            each other.
    """
    if num_labels is not None:
        num_labels = label_count(num_labels)
    if id2label is None and label2id is None:
        id2label = [f"LABEL_{number}" for number in range(num_labels)]
    names = None if id2label is None else names_by_id("id2label", pairs_of("id2label", id2label))
    chosen = {}
    if label2id is not None:
        pairs = [(number, name) for name, number in pairs_of("label2id", label2id, names_first=True)]
        if names is None:
            names = names_by_id("label2id", pairs)
        else:
            chosen = checked_inverse(names, pairs)
    if num_labels not in (None, len(names)):
        raise ValueError(
            f"num_labels is {num_labels}, but {len(names)} class names are given: {listed_names(names.values())}. "
            "Leave out num_labels, or give one name per class."
        )
    if not chosen:
        check_unique(names)
    return names, ids_by_name(names) | chosen


def labels_in_file(id2label: Any) -> tuple[dict[int, str], dict[str, int]]:
    """Returns `id2label` and `label2id` from `id2label` alone, in which names may occur twice."""
    names = names_by_id("id2label", pairs_of("id2label", id2label))
    return names, ids_by_name(names)


def ids_by_name(names: Mapping[int, str]) -> dict[str, int]:
    """The inverse of `id2label`; of classes with the same name it has the first."""
    ids: dict[str, int] = {}
    for number, name in names.items():
        ids.setdefault(name, number)
    return ids


def label_count(num_labels: Any) -> int:
    """The number of classes as an int. Raises ValueError unless it is a whole number of 1 or more."""
    try:
        count = 0 if isinstance(num_labels, bool) else index(num_labels)
    except TypeError:
        count = 0
    if count < 1:
        raise ValueError(
            f"num_labels is {shown(num_labels)}. Give the number of classes, a whole number from 1."
        )
    return count


def pairs_of(field: str, given: Any, names_first: bool = False) -> list[tuple[Any, Any]]:
    """The entries of a mapping, or a list's names with their positions."""
    if isinstance(given, Mapping):
        pairs = list(given.items())
    elif isinstance(given, list | tuple):
        pairs = [(name, number) if names_first else (number, name) for number, name in enumerate(given)]
    else:
        pairs = []
    if not pairs:
        example = '{"road": 0, "car": 1}' if names_first else '{0: "road", 1: "car"}'
        raise ValueError(f"{field} is {shown(given)}. Give one entry per class, such as {example}.")
    return pairs


def names_by_id(field: str, pairs: list[tuple[Any, Any]]) -> dict[int, str]:
    """Pairs (id, name) in any order -> names sorted by id. Raises ValueError unless ids are 0 to K - 1."""
    names: dict[int, str] = {}
    for number, name in pairs:
        number = class_id(field, number)
        check_name(field, name)
        if number in names:
            raise ValueError(
                f"{field} has id {shown(number)} twice: {shown(names[number])} and {shown(name)}. Keep one of them."
            )
        names[number] = name
    names = dict(sorted(names.items()))
    if list(names) != list(range(len(names))):
        right = "0" if len(names) == 1 else f"0 to {len(names) - 1}"
        raise ValueError(
            f"{field} has the ids {listed_names(names)}; {right} is required. Number classes from 0 without gaps, and map "
            "the ids of mask files to them with label_map of the image processor."
        )
    return names


def check_name(field: str, name: Any) -> None:
    """Raises ValueError for a class name that is not text."""
    if not isinstance(name, str):
        raise ValueError(
            f"{field} has {shown(name)} as a class name, which is not text. Write it as '{shown(name)}'."
        )


def class_id(field: str, number: Any) -> int:
    """An id as an int; text such as "7" becomes one. Raises ValueError for anything else."""
    try:
        if isinstance(number, bool):
            raise TypeError
        return int(number) if isinstance(number, str) else index(number)
    except (TypeError, ValueError):
        raise ValueError(
            f"{field} has {shown(number)} as a class id, which is not a whole number. "
            "id2label maps ids to names, and label2id names to ids."
        ) from None


def checked_inverse(names: Mapping[int, str], pairs: list[tuple[Any, Any]]) -> dict[str, int]:
    """Pairs (id, name) -> label2id. Raises ValueError unless they agree with id2label and have all its names."""
    for _, name in pairs:
        check_name("label2id", name)
    ids = {name: class_id("label2id", number) for number, name in pairs}
    for name, number in ids.items():
        if names.get(number) != name:
            raise ValueError(
                f"label2id has {shown(name)} as class {shown(number)}, but id2label has {shown(names.get(number, 'no name'))} "
                "there. Leave out one of them: each follows from the other."
            )
    if missing := set(names.values()) - ids.keys():
        raise ValueError(
            f"label2id lacks {listed_names(sorted(missing))} of id2label. Leave out label2id: it follows from id2label."
        )
    return ids


def check_unique(names: Mapping[int, str]) -> None:
    """Raises ValueError if two classes have the same name."""
    (name, count), *_ = Counter(names.values()).most_common(1)
    if count > 1:
        ids = [number for number, known in names.items() if known == name]
        raise ValueError(
            f"id2label calls the classes {listed_names(ids)} {shown(name)}. Give each class a name of its own: weights and "
            "scores are found by name."
        )


def listed_names(values: Any) -> str:
    """The first values, for a message."""
    values = list(values)
    return ", ".join(shown(value).strip("'") for value in values[:8]) + (", ..." if len(values) > 8 else "")
