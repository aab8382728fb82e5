"""Maps the ids or colors of a mask file to class ids with one explicit table, in place of `reduce_labels`.

    LabelMap({0: "ignore", 1: 0, 2: 1, 3: 1})              ids in the file; "ignore": no label
    LabelMap({"#804080": 0, (70, 70, 70): 1})              colors in the file
    LabelMap(palette=[(128, 64, 128), (70, 70, 70)])       colors, one per class; ids are classes

Every value that occurs in a mask must be in the table, so a forgotten class is found before training.
"""

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from functools import lru_cache
from typing import Any

import numpy as np

from .byte_masks import look_up_bytes
from .palettes import parse_color, shown

Key = int | str | tuple[int, int, int]
IGNORE = "ignore"
UNKNOWN = -1
NO_LABEL = -(1 << 31)  # in a mask that was read: the file itself says that the pixel has no data
MAX_CLASSES = np.iinfo(np.int16).max
LARGEST_MASK_ID = np.iinfo(np.int32).max
ID = re.compile(r"-?[0-9]{1,10}")
EQUAL_CHANNELS = (
    "red, green and blue are equal in every pixel, so these are probably ids that were saved three times. Save "
    "one channel, for example with Image.fromarray(np.asarray(mask)[..., 0])."
)
TABLE_SIZES = (
    1 << 8,
    1 << 16,
    1 << 24,
)  # 8-bit ids, 16-bit ids, colors; larger ids are looked up one by one


class LabelMap:
    """Decodes masks to class ids.

    Args:
        entries: Id, color as "#rrggbb", "r,g,b" or (r, g, b) in the mask file -> class id, or "ignore" (also
            None). By default ids are classes already.
        ignore_index: Label of ignored pixels.
        palette: Color of each class, for masks of colors. Colors in `entries` take its place.
        ignored_colors: Colors of ignored pixels, beside those of `palette`.
        num_classes: Number of classes, so that other ids are unknown if there are no `entries` for ids.

    Raises:
        ValueError: If a key is not an id or a color, a value is not a class id, `ignore_index` is a class, or
            two entries contradict each other.
    """

    def __init__(
        self,
        entries: Mapping[Key, int | str | None] | None = None,
        ignore_index: int = 255,
        *,
        palette: Sequence[Iterable[int]] | None = None,
        ignored_colors: Iterable[Iterable[int]] = (),
        num_classes: int | None = None,
    ) -> None:
        self.entries = None if entries is None else normalize_label_map(entries)
        self.ignore_index = check_ignore_index(
            ignore_index, num_classes or count_classes(self.entries, palette)
        )
        labels = {
            key: ignore_index if value == IGNORE else value for key, value in (self.entries or {}).items()
        }
        self.colors = {int(key[1:], 16): label for key, label in labels.items() if key.startswith("#")}
        self.ids = {int(key): label for key, label in labels.items() if not key.startswith("#")}
        self.ambiguous_colors: set[int] = set()
        if self.entries is None and num_classes is not None:
            self.ids = {ignore_index: ignore_index} | {index: index for index in range(num_classes)}
        if not self.colors:
            self._add_palette(palette or ())
        self.colors |= {
            number: ignore_index for number in map(_number, ignored_colors) if number not in self.colors
        }

    def _add_palette(self, palette: Sequence[Iterable[int]]) -> None:
        numbers = [_number(color) for color in palette]
        counts = Counter(numbers)
        self.ambiguous_colors = {number for number, count in counts.items() if count > 1}
        self.colors = {number: label for label, number in enumerate(numbers) if counts[number] == 1}

    @property
    def has_ids(self) -> bool:
        """Whether ids can be decoded."""
        return bool(self.ids) or self.entries is None

    @property
    def states_ids(self) -> bool:
        """Whether `entries` state the classes of ids, rather than ids being classes."""
        return self.entries is not None and bool(self.ids)

    def class_of_id(self, value: int) -> int | None:
        """The class of an id, or None if it has none."""
        return value if self.entries is None and not self.ids else self.ids.get(value)

    def renumbered(self, order: Sequence[int]) -> "LabelMap":
        """The same map with class k numbered `order[k]`. Raises ValueError if ids are not limited to classes."""
        new = copy(self)
        number = dict(enumerate(order)) | {self.ignore_index: self.ignore_index}
        for name in ("ids", "colors"):
            setattr(new, name, {value: number[label] for value, label in getattr(self, name).items()})
        return new

    def decode(self, mask: np.ndarray, name: str = "mask", *, keeps_bytes: bool = False) -> np.ndarray:
        """Decodes a mask.

        Args:
            mask: Ids (H, W) or RGB colors (H, W, 3).
            name: The name of the mask in error messages.
            keeps_bytes: Whether a mask of uint8 ids may give class ids of uint8, which may be the mask itself.

        Returns:
            Class ids (H, W) int64; pixels that are ignored or `NO_LABEL` are `ignore_index`.

        Raises:
            ValueError: If the mask has a value that is not in the table, or colors that the table lacks.
        """
        labels = self._decode(mask, name)
        return labels if keeps_bytes else labels.astype(np.int64, copy=False)

    def _decode(self, mask: np.ndarray, name: str) -> np.ndarray:
        if (absent := without_label(mask)) is not None:
            labels = self._decode_known(mask[~absent][None], name) if not absent.all() else ()
            decoded = np.full(absent.shape, self.ignore_index, dtype=np.int64)
            decoded[~absent] = np.reshape(labels, -1)
            return decoded
        return self._decode_known(mask, name)

    def _decode_known(self, mask: np.ndarray, name: str) -> np.ndarray:
        if mask.ndim == 3:
            return self._decode_colors(mask, name)
        if self.ids or self.entries is not None:
            return _look_up(mask, self.ids, name, show=str)
        if mask.max() == 255 and ((mask == 0) | (mask == 255)).all():
            warnings.warn(
                "a mask has only the values 0 and 255. If 255 is the foreground, "
                "pass label_map={0: 0, 255: 1}; if 255 marks pixels without a label, "
                'pass label_map={0: 0, 255: "ignore"} to silence this warning.',
                stacklevel=2,
            )
        return mask.astype(np.int64)

    def _decode_colors(self, mask: np.ndarray, name: str) -> np.ndarray:
        red, green, blue = np.moveaxis(mask.astype(np.int32), -1, 0)
        values = red << 16 | green << 8 | blue
        is_gray = ((red == green) & (green == blue)).all()
        if not self.colors and is_gray and values.any():
            raise ValueError(f"{name} is an RGB image without colors: {EQUAL_CHANNELS}")
        if not self.colors and not self.ambiguous_colors:
            raise ValueError(
                f"{name} has colors, but label_map has none. Pass a label_map such as "
                '{"#804080": 0, "#000000": "ignore"}, or a palette with one color per class.'
            )
        if self.ambiguous_colors and np.isin(values, list(self.ambiguous_colors)).any():
            raise ValueError(
                f"{name} cannot be decoded, because palette has the same color for several classes. Pass a label_map."
            )
        unknown_hint = f" {EQUAL_CHANNELS}" if is_gray else ""
        return _look_up(values, self.colors, name, show=_hex, hint=unknown_hint)


def without_label(mask: np.ndarray) -> np.ndarray | None:
    """Where the ids (H, W) or colors (H, W, 3) of a mask are `NO_LABEL`; None if nowhere."""
    if mask.dtype.kind != "i" or mask.dtype.itemsize < 4:
        return None
    absent = (mask if mask.ndim == 2 else mask[..., 0]) == NO_LABEL
    return absent if absent.any() else None


def check_ignore_index(ignore_index: Any, num_classes: int) -> int:
    """Returns `ignore_index`. Raises ValueError unless it is an integer that is not one of the class ids."""
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int | np.integer):
        raise ValueError(
            f"ignore_index={shown(ignore_index)} is not an integer. Give one such as 255 or -100."
        )
    if 0 <= ignore_index < num_classes or abs(int(ignore_index)) > LARGEST_MASK_ID:
        raise ValueError(
            f"ignore_index={ignore_index} must differ from the {num_classes} class ids (0 to {num_classes - 1}) and fit "
            f"32 bits. Give for example {default_ignore_index(num_classes)}, and map the values to leave out to "
            '"ignore" in a label_map.'
        )
    return int(ignore_index)


def count_classes(
    entries: Mapping[str, int | str] | None, palette: Sequence[Iterable[int]] | None = None
) -> int:
    """The number of classes that a normalized label map and a palette show; 0 without either.

    A palette of up to 256 colors does not count: it may be a general one for palette images.
    """
    count = 1 + max((label for label in (entries or {}).values() if label != IGNORE), default=-1)
    return count if palette is None or len(palette) <= 256 else max(count, len(palette))


def default_ignore_index(num_classes: int) -> int:
    """255, or 65535 where 255 is a class."""
    return 255 if num_classes <= 255 else 65535


def normalize_label_map(entries: Mapping[Key, int | str | None]) -> dict[str, int | str]:
    """The map as saved in JSON: "7" or "#rrggbb" -> class id or "ignore". Raises ValueError if invalid."""
    if not isinstance(entries, Mapping):
        raise ValueError(
            f'label_map={shown(entries)} is not a table. Give for example {{"7": 0, "26": 1, "0": "ignore"}}.'
        )
    normalized: dict[str, int | str] = {}
    for key, value in entries.items():
        text, label = _normalize_key(key), _normalize_label(key, value)
        if normalized.setdefault(text, label) != label:
            raise ValueError(
                f"label_map has {text} twice, with {normalized[text]} and {label}. Keep one of them."
            )
    return normalized


def colors_of_classes(label_map: Mapping[str, int | str]) -> list[tuple[int, int, int]] | None:
    """The first color of each class in a normalized label map; None unless every class up to the last has one."""
    colors: dict[int, tuple[int, int, int]] = {}
    for key, label in label_map.items():
        if label != IGNORE and key.startswith("#"):
            colors.setdefault(label, parse_color(key))
    labels = {label for label in label_map.values() if label != IGNORE}
    if not colors or labels != set(range(len(colors))):
        return None
    return [colors[label] for label in sorted(colors)]


def _normalize_key(key: Key) -> str:
    if isinstance(key, int | np.integer) and not isinstance(key, bool):
        return str(int(key))
    if isinstance(key, str) and ID.fullmatch(key):
        return str(int(key))
    try:
        return _hex(_number(key))
    except ValueError:
        raise ValueError(
            f"label_map cannot use {shown(key)} as a mask value. "
            'Give an id such as 7, or a color such as (128, 64, 128) or "#804080".'
        ) from None


def _normalize_label(key: Key, value: int | str | None) -> int | str:
    if value is None or (isinstance(value, str) and value == IGNORE):
        return IGNORE
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_integer or not 0 <= value <= MAX_CLASSES:
        raise ValueError(
            f'label_map maps {shown(key)} to {shown(value)}. Give a class id from 0 to {MAX_CLASSES}, or "ignore".'
        )
    return int(value)


def _number(color: str | Iterable[int]) -> int:
    """A color -> 0xRRGGBB."""
    red, green, blue = parse_color(color)
    return red << 16 | green << 8 | blue


def _hex(color: int) -> str:
    return f"#{color:06x}"


def _look_up(
    values: np.ndarray, known: dict[int, int], name: str, show: Callable[[int], str], hint: str = ""
) -> np.ndarray:
    """Each value's entry in `known`, int64 or uint8. Raises ValueError for values that are not in it."""
    if values.dtype == np.uint8 and (labels := look_up_bytes(values, known)) is not None:
        return labels
    positions = _positions(values, tuple(known))
    if (unknown := positions == UNKNOWN).any():
        missing, counts = np.unique(values[unknown], return_counts=True)
        most = np.argsort(-counts, kind="stable")[:10]
        shown = ", ".join(f"{show(int(missing[i]))} ({counts[i]} pixels)" for i in most)
        raise ValueError(
            f"{name} has {len(missing)} values that are not in label_map: "
            f"{shown}{', ...' if len(missing) > 10 else ''}. "
            'Add each to label_map with its class or "ignore"; '
            f"known values: {_listed([show(value) for value in sorted(known)])}.{hint}"
        )
    return np.array([*known.values(), 0], dtype=np.int64)[positions]


def _listed(values: list[str]) -> str:
    """The values for a message: all of them, or the first ones and the last one."""
    return ", ".join(values if len(values) <= 40 else [*values[:30], "...", values[-1]]) or "none"


def _positions(values: np.ndarray, keys: tuple[int, ...]) -> np.ndarray:
    low, high = int(values.min()), int(values.max())
    size = next((size for size in TABLE_SIZES if high < size), None)
    if low >= 0 and size is not None:
        return _table(keys, size)[values]
    distinct, inverse = np.unique(values, return_inverse=True)
    position = {key: index for index, key in enumerate(keys)}
    return np.array([position.get(int(value), UNKNOWN) for value in distinct])[inverse.reshape(values.shape)]


@lru_cache(maxsize=4)
def _table(keys: tuple[int, ...], size: int) -> np.ndarray:
    """(size,): the position in `keys` of each possible value."""
    table = np.full(size, UNKNOWN, dtype=np.int16)
    for position, key in enumerate(keys):
        if 0 <= key < size:
            table[key] = position
    return table
