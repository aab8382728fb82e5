"""Labels of crops, read from masks of any size: only the window of the crop is read, and only its labels are decoded.

Legend: H, W pixels of the mask, h, w labels that are asked for.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from ..label_maps import LabelMap

MASK_PIXELS = 1 << 22  # that are read in one piece
LabelDecoder = Callable[[np.ndarray], np.ndarray]


class StoredMask(Protocol):
    """A mask that is read by windows, such as a `RasterMask`."""

    name: str
    shape: tuple[int, int]

    def read(self, rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
        """Returns ids (h, w) or colors (h, w, 3) of a window inside the mask."""
        ...


class MaskFile(Protocol):
    """A mask file that is decoded from the top, such as an `EncodedImage`."""

    shape: tuple[int, int]

    def quickly_decoded(self, rows: int) -> np.ndarray | None:
        """As `decoded`; None if there is no faster way."""
        ...

    def decoded(self, rows: int) -> np.ndarray:
        """Returns ids (H, W) or colors (H, W, 3), at least of the first rows."""
        ...


class LabelArray:
    """A mask in memory or in a memory map.

    Args:
        mask: Class ids (H, W), or ids (H, W) or colors (H, W, 3) that `decode` takes.
        ignore_index: Label outside the mask.
        decode: Turns ids or colors into class ids. Default: they are class ids.
    """

    def __init__(self, mask: np.ndarray, ignore_index: int, decode: LabelDecoder | None = None) -> None:
        self.mask, self.ignore_index, self.decode = mask, ignore_index, decode
        self.shape = mask.shape[:2]

    def __call__(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Rows and columns that broadcast to (h, w) -> class ids (h, w) int64, the ignore index outside."""
        height, width = self.shape
        ids = gathered(self.mask, rows.clip(0, height - 1), columns.clip(0, width - 1))
        ids = ids.astype(np.int64, copy=False) if self.decode is None else self.decode(ids)
        if min(rows.min(), columns.min()) >= 0 and rows.max() < height and columns.max() < width:
            return ids
        return np.where(is_inside(self.shape, rows, columns), ids, self.ignore_index)


class EncodedLabels(LabelArray):
    """A mask file, of which the rows down to the end of a crop are decoded; all of them if a later crop needs more.

    Args:
        file: The file.
        ignore_index: Label outside the mask.
        decode: Turns ids or colors into class ids.
    """

    def __init__(self, file: MaskFile, ignore_index: int, decode: LabelDecoder) -> None:
        super().__init__(np.empty(file.shape + (0,)), ignore_index, decode)
        self.file, self.decoded_rows = file, 0

    def __call__(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """As `LabelArray.__call__`, with labels as `decode` returns them."""
        height = self.shape[0]
        needed = min(max(int(rows.max()), 0) + 1, height)
        if needed > self.decoded_rows:
            needed = height if self.decoded_rows else needed
            quick = self.file.quickly_decoded(needed)
            self.mask = self.file.decoded(needed) if quick is None else quick
            self.decoded_rows = len(self.mask)
        return super().__call__(rows, columns)


class LabelRaster:
    """A mask in a raster file.

    Args:
        mask: The file.
        table: The ids and colors of the classes.
    """

    def __init__(self, mask: StoredMask, table: LabelMap) -> None:
        self.mask, self.table = mask, table
        self.shape = mask.shape

    def __call__(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Rows and columns that broadcast to (h, w) -> class ids (h, w), the ignore index outside.

        Raises:
            ImageReadError: If the file is damaged there.
            ValueError: If a pixel has a value without a class.
        """
        height = max(rows.shape[0], columns.shape[0])
        area = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        parts = min(height, -(-int(area) // MASK_PIXELS))
        split = [
            np.array_split(places, parts) if len(places) > 1 else [places] * parts
            for places in (rows, columns)
        ]
        return np.concatenate([self._part(*part) for part in zip(*split, strict=True)])

    def _part(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """As `__call__`, in one piece."""
        inside = is_inside(self.shape, rows, columns)
        if not inside.any():
            return np.full(inside.shape, self.table.ignore_index, dtype=np.int64)
        rows, columns = (
            places.clip(0, side - 1) for places, side in zip((rows, columns), self.shape, strict=True)
        )
        spans = [(int(places.min()), int(places.max()) + 1) for places in (rows, columns)]
        stored = self.mask.read(*spans)[rows - spans[0][0], columns - spans[1][0]]
        labels = self.table.decode(stored, f"the mask {self.mask.name}")
        return labels if inside.all() else np.where(inside, labels, self.table.ignore_index)


def gathered(mask: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The values (h, w, ...) of a mask (H, W, ...) at rows and columns that broadcast to (h, w)."""
    if rows.shape[1] == columns.shape[0] == 1:
        first, last = columns.min(), columns.max()
        return np.asarray(mask[rows[:, 0], first : last + 1]).take(columns[0] - first, axis=1)
    return np.asarray(mask[rows, columns])


def is_inside(shape: tuple[int, int], rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Rows and columns that broadcast to (h, w) -> (h, w): whether they lie in a mask of this shape."""
    return (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
