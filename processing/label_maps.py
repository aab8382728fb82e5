"""Maps the ids or colors of a mask file to class ids with one explicit table, in place of `reduce_labels`.

    LabelMap({0: "ignore", 1: 0, 2: 1, 3: 1})              ids in the file; "ignore": no label
    LabelMap({"#804080": 0, (70, 70, 70): 1})              colors in the file

Every value that occurs in a mask must be in the table, so a forgotten class is found before training.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache

import numpy as np

Key = int | str | tuple[int, int, int]
IGNORE = "ignore"
UNKNOWN = -1
MAX_CLASSES = np.iinfo(np.int16).max
TABLE_SIZES = (
    1 << 8,
    1 << 16,
    1 << 24,
)  # 8-bit ids, 16-bit ids, colors; larger ids are looked up one by one


class LabelMap:
    """Decodes masks to class ids.

    Args:
        entries: Id, "#rrggbb" or (r, g, b) in the mask file -> class id, or "ignore" (also None). By default
            ids are classes already, and colors cannot be decoded.
        ignore_index: Label of ignored pixels.

    Raises:
        ValueError: If a key is not an id or a color, a value is not a class id, or two entries contradict
            each other.
    """

    def __init__(
        self, entries: Mapping[Key, int | str | None] | None = None, ignore_index: int = 255
    ) -> None:
        self.entries = None if entries is None else normalize_label_map(entries)
        self.ignore_index = ignore_index
        self.ids: dict[int, int] = {}
        self.colors: dict[int, int] = {}  # 0xRRGGBB -> class
        for key, value in (self.entries or {}).items():
            label = ignore_index if value == IGNORE else value
            if key.startswith("#"):
                self.colors[int(key[1:], 16)] = label
            else:
                self.ids[int(key)] = label

    @classmethod
    def from_palette(cls, palette: Iterable[Iterable[int]], ignore_index: int = 255) -> "LabelMap":
        """Maps the k-th color to class k. Raises ValueError if two classes have the same color."""
        colors = [tuple(color) for color in palette]
        if len(set(colors)) < len(colors):
            raise ValueError(
                "palette has the same color for several classes, so it cannot decode masks. Pass a label_map."
            )
        return cls({color: label for label, color in enumerate(colors)}, ignore_index)

    @property
    def needs_colors(self) -> bool:
        """Whether palette images must be read as colors, because the table has only colors."""
        return bool(self.colors) and not self.ids

    def decode(self, mask: np.ndarray, name: str = "mask") -> np.ndarray:
        """Decodes a mask.

        Args:
            mask: Ids (H, W) or RGB colors (H, W, 3).
            name: The name of the mask in error messages.

        Returns:
            Class ids (H, W) int64; ignored pixels are `ignore_index`.

        Raises:
            ValueError: If the mask has a value that is not in the table, or colors that the table lacks.
        """
        if mask.ndim == 3:
            if not self.colors:
                raise ValueError(
                    f"{name} has colors, but label_map has none. Pass a label_map such as "
                    '{"#804080": 0, "#000000": "ignore"}, or a palette with one color per class.'
                )
            red, green, blue = np.moveaxis(mask.astype(np.int32), -1, 0)
            return _look_up(red << 16 | green << 8 | blue, self.colors, name, show=_hex)
        if self.entries is not None:
            return _look_up(mask, self.ids, name, show=str)
        if mask.max() == 255 and ((mask == 0) | (mask == 255)).all():
            warnings.warn(
                "a mask has only the values 0 and 255. If 255 is the foreground, "
                "pass label_map={0: 0, 255: 1}; if 255 marks pixels without a label, "
                'pass label_map={0: 0, 255: "ignore"} to silence this warning.',
                stacklevel=2,
            )
        return mask.astype(np.int64)


def normalize_label_map(entries: Mapping[Key, int | str | None]) -> dict[str, int | str]:
    """The map as saved in JSON: "7" or "#rrggbb" -> class id or "ignore". Raises ValueError if invalid."""
    normalized: dict[str, int | str] = {}
    for key, value in entries.items():
        text = _normalize_key(key)
        label = IGNORE if value is None or value == IGNORE else value
        if label != IGNORE and not (isinstance(label, int | np.integer) and 0 <= label <= MAX_CLASSES):
            raise ValueError(
                f'label_map maps {text} to {value!r}. Give a class id from 0 to {MAX_CLASSES}, or "ignore".'
            )
        label = label if label == IGNORE else int(label)
        if normalized.setdefault(text, label) != label:
            raise ValueError(
                f"label_map has {text} twice, with {normalized[text]} and {label}. Keep one of them."
            )
    return normalized


def _normalize_key(key: Key) -> str:
    try:
        if isinstance(key, str) and key.startswith("#") and len(key) == 7:
            return _hex(int(key[1:], 16))
        if isinstance(key, tuple | list):
            red, green, blue = (int(level) for level in key)
            if all(0 <= level <= 255 for level in (red, green, blue)):
                return _hex(red << 16 | green << 8 | blue)
        elif isinstance(key, int | np.integer | str):
            return str(int(key))
    except ValueError:
        pass
    raise ValueError(
        f"label_map cannot use {key!r} as a mask value. "
        'Give an id such as 7, or a color such as (128, 64, 128) or "#804080".'
    )


def _hex(color: int) -> str:
    return f"#{color:06x}"


def _look_up(values: np.ndarray, known: dict[int, int], name: str, show: Callable[[int], str]) -> np.ndarray:
    """Each value's entry in `known`, as int64. Raises ValueError for values that are not in it."""
    positions = _positions(values, tuple(known))
    if (unknown := positions == UNKNOWN).any():
        missing, counts = np.unique(values[unknown], return_counts=True)
        most = np.argsort(-counts, kind="stable")[:10]
        shown = ", ".join(f"{show(int(missing[i]))} ({counts[i]} pixels)" for i in most)
        raise ValueError(
            f"{name} has {len(missing)} values that are not in label_map: "
            f"{shown}{', ...' if len(missing) > 10 else ''}. "
            'Add each to label_map with its class or "ignore"; '
            f"known values: {', '.join(map(show, sorted(known))) or 'none'}."
        )
    return np.array([*known.values(), 0], dtype=np.int64)[positions]


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
