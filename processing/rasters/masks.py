"""Masks in raster files, read as a whole or by windows: class ids, palette indices, or RGB colors.

The pixels are as `read_mask` returns those of other masks. Where the file's mask band is 0, or a pixel has the
nodata value and this is not the id of a class, they are `NO_LABEL`.
"""

import os
import sys
from typing import Any

import numpy as np

from ..image_opening import DECODING_ERRORS, ImageReadError, Source, identified, opened_file
from ..label_maps import NO_LABEL, LabelMap
from ..mask_encoding import encoding_of
from ..palette_masks import colors_decide
from .files import RasterFile, is_raster_file
from .gdal import gdal_explained, load_rasterio
from .georeferences import Georeference
from .spans import Span, spans_of

LOSSY = (
    "jpeg",
    "webp",
    "lerc",
    "lerc_deflate",
    "lerc_zstd",
    "jxl",
    "jpeg2000",
    "ycbcr jpeg",
)  # rasterio's names
EXPORT_LOSSLESS = "Export the mask again with a lossless compression, such as DEFLATE."
PIXELS_AT_ONCE = 1 << 24  # to find the used indices of a palette


class RasterMask:
    """A mask in a raster file. Instances can be pickled, and used in several threads and processes.

    Args:
        path: Path of a file for which `is_raster_file` is true.
        table: As of `read_mask`.

    Attributes:
        shape: (H, W).

    Raises:
        ImageReadError: If the file cannot be opened, or cannot be a mask.
        PaletteError: If indices and colors of a palette contradict each other.
    """

    def __init__(self, path: str | os.PathLike, table: LabelMap | None = None) -> None:
        self.file = RasterFile(path)
        self.name = self.file.name
        with gdal_explained(self.name):
            dataset = self.file.dataset
            check_mask(dataset, self.name)
            self.shape = (dataset.height, dataset.width)
            colors = [band for band, kind in enumerate(dataset.colorinterp, 1) if kind.name != "alpha"]
            self.bands = colors[: 3 if len(colors) == 3 else 1]
            self.has_mask_band = [flag.name for flag in dataset.mask_flag_enums[0]] == ["per_dataset"]
            self.nodata = unlabeled_value(dataset.nodata, table)
            self.colors = self._deciding_colors(dataset, table)

    @property
    def georeference(self) -> Georeference:
        """Where the mask lies."""
        return self.file.georeference

    def read_whole(self, pixel_limit: int) -> np.ndarray:
        """The whole mask as of `read`. Raises ImageReadError if it has more pixels than the limit."""
        height, width = self.shape
        if height * width > pixel_limit:
            raise ImageReadError(
                f"{self.name} is {width}x{height}, above the limit of {pixel_limit} pixels. Crop it, or raise `pixel_limit`."
            )
        mask = self.read((0, height), (0, width))
        self.file.close()
        return mask

    def read(self, rows: Span, columns: Span) -> np.ndarray:
        """Reads a window inside the mask.

        Args:
            rows: First row, and the one after the last.
            columns: The same for columns.

        Returns:
            Ids (h, w) as stored, or colors (h, w, 3), as `LabelMap.decode` takes them.

        Raises:
            ImageReadError: If the file is damaged there.
        """
        window = load_rasterio().windows.Window.from_slices(rows, columns)
        with gdal_explained(self.name):
            stored = self.file.dataset.read(self.bands, window=window)
            valid = np.ones(stored.shape[1:], dtype=bool)
            if self.has_mask_band:
                valid &= self.file.dataset.read_masks(1, window=window) > 0
        if self.nodata is not None:
            valid &= (stored != self.nodata).any(0)
        if self.file.parts is not None:
            valid &= self.file.covered(rows, columns)
        if self.colors is not None:
            mask = self.colors[stored[0]]
        else:
            mask = stored[0] if len(stored) == 1 else np.moveaxis(stored, 0, -1)
        if valid.all():
            return mask
        mask = mask.astype(np.int64)
        mask[~valid] = NO_LABEL
        return mask

    def _deciding_colors(self, dataset: Any, table: LabelMap | None) -> np.ndarray | None:
        """The colors (N, 3) of a palette if these are the classes; None if its indices are."""
        is_palette = dataset.colorinterp[0].name == "palette" and dataset.dtypes[0] == "uint8"
        is_gray = dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS") == "1" or "MINISWHITE" in dataset.tags(
            ns="IMAGE_STRUCTURE"
        )  # GDAL invents palettes for these
        if not is_palette or is_gray or table is None or not table.colors:
            return None
        palette = np.zeros((256, 3), dtype=np.uint8)
        for index, color in dataset.colormap(1).items():
            palette[index] = color[:3]
        return palette if colors_decide(self._used_indices(dataset), palette, table, self.name) else None

    def _used_indices(self, dataset: Any) -> list[int]:
        height, width = self.shape
        step = max(1, PIXELS_AT_ONCE // width)
        windows = load_rasterio().windows
        used = np.zeros(256, dtype=bool)
        for rows in spans_of(height, step):
            used[np.unique(dataset.read(1, window=windows.Window.from_slices(rows, (0, width))))] = True
        if self.nodata is not None:
            used[int(self.nodata)] = False
        return used.nonzero()[0].tolist() or [0]


def raster_mask(source: Source, table: LabelMap | None) -> RasterMask | None:
    """The mask in a raster file that says more than a picture does (see `stored_raster`); None for all others."""
    if not is_raster_file(source) or RasterFile(source).is_picture:
        return None
    return RasterMask(source, table)


def check_mask(dataset: Any, name: str) -> None:
    """Raises ImageReadError if rasterio's dataset cannot be a mask."""
    bands = sum(kind.name != "alpha" for kind in dataset.colorinterp)
    if bands not in (1, 3) or (bands == 3 and dataset.dtypes[0] != "uint8"):
        raise ImageReadError(
            f"{name} has {bands} bands of {dataset.dtypes[0]}, but class ids are one band, and colors three of uint8. Export the "
            "band of ids."
        )
    if np.dtype(dataset.dtypes[0]).kind not in "iu":
        raise ImageReadError(
            f"{name} has dtype {dataset.dtypes[0]}, but class ids are integers. Convert the mask first, for example with "
            "gdal_translate -ot Int32."
        )
    if codec := lossy_codec(dataset, name):
        raise ImageReadError(
            f"{name} is a mask with lossy compression ({codec}), which changes class ids at every edge. {EXPORT_LOSSLESS}"
        )


def lossy_codec(dataset: Any, name: str) -> str:
    """The name of the lossy compression of a raster file; "" if there is none."""
    try:
        with opened_file(dataset.name, sys.maxsize) as file:
            return encoding_of(identified(file, name), file).lossy
    except DECODING_ERRORS:  # not for Pillow
        codec = "" if dataset.compression is None else dataset.compression.value.lower()
        return codec if codec in LOSSY else ""


def unlabeled_value(nodata: float | None, table: LabelMap | None) -> int | None:
    """The nodata value of a mask, unless it is the id of a class: of any, without a table only 0."""
    if nodata is None or not float(nodata).is_integer():
        return None
    label = int(nodata) if table is None else table.class_of_id(int(nodata))
    is_limited = table is not None and bool(table.ids)
    is_class = label is not None and label != table.ignore_index if is_limited else label == 0
    return None if is_class else int(nodata)
