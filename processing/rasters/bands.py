"""How the bands of a raster file become channels and validity: alpha, masks, nodata, palettes, scale and offset tags."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..image_opening import ImageReadError

MOST_BANDS = 4096  # damaged files state up to 65535
MOST_BLOCK_BYTES = 1 << 30  # a window needs whole blocks in memory


class Bands:
    """The bands of one file, and what their numbers mean.

    Args:
        dataset: rasterio's dataset.
        num_channels: As of `open_raster`.
        name: Name of the file in messages.

    Attributes:
        indices: Numbers of the bands that are channels, from 1.
        dtype: Type of the pixels as they are read.
        channels: Number of channels.

    Raises:
        ImageReadError: If the pixels are complex numbers, blocks are too large, or a scale tag is no factor.
    """

    def __init__(self, dataset: Any, num_channels: int | None, name: str) -> None:
        check_blocks(dataset, name)
        kinds = [kind.name for kind in dataset.colorinterp]
        alpha = [band for band, kind in enumerate(kinds, 1) if kind == "alpha"]
        takes_all = num_channels == dataset.count or len(alpha) == dataset.count
        self.alpha = None if takes_all or not alpha else alpha[0]
        self.indices = [band for band in dataset.indexes if takes_all or band not in alpha]
        if num_channels in (None, 3):
            self.indices = red_green_blue_first(self.indices, kinds)
        self.table, self.opaque = palette_of(dataset, self.indices, num_channels)
        self.steps, self.shifts = (
            np.array(chosen(values, self.indices)).reshape(-1, 1, 1)
            for values in (dataset.scales, dataset.offsets)
        )
        check_scales(self.steps, self.shifts, name)
        self.is_scaled = self.table is None and bool((self.steps != 1).any() or (self.shifts != 0).any())
        self.largest = (
            None if self.table is not None or self.is_scaled else largest_of_few_bits(dataset, self.indices)
        )
        self.stored = np.result_type(*set(chosen(dataset.dtypes, self.indices)))
        is_palette = self.table is not None
        self.dtype = np.dtype(np.float32 if self.is_scaled else np.uint8 if is_palette else self.stored)
        self.channels = len(self.indices) if self.table is None else self.table.shape[1]
        self.masked = masked_bands(dataset, self.indices, bool(alpha))

    def _stored(self, dataset: Any, window: Any) -> np.ndarray:
        """The bands as stored, of one type that holds all of theirs."""
        if len(set(chosen(dataset.dtypes, self.indices))) == 1:
            return dataset.read(self.indices, window=window)
        return np.stack([dataset.read(band, window=window).astype(self.stored) for band in self.indices])

    @property
    def is_plain(self) -> bool:
        """Whether all pixels are valid and the stored numbers are the pixels, up to palettes and few bits."""
        return self.is_valid and not self.is_scaled and self.indices == sorted(self.indices)

    @property
    def is_valid(self) -> bool:
        """Whether no nodata value, mask or alpha band leaves pixels out."""
        return not self.masked and self.alpha is None

    def read(self, dataset: Any, window: Any) -> tuple[np.ndarray, np.ndarray]:
        """A window as channels (C, h, w), and where it has data (h, w)."""
        stored = self._stored(dataset, window)
        valid = np.ones(stored.shape[1:], dtype=bool)
        if self.masked:
            valid &= (dataset.read_masks(self.masked, window=window) > 0).any(0)
        if self.alpha is not None:
            valid &= dataset.read(self.alpha, window=window) > 0
        if stored.dtype.kind == "f":
            valid &= np.isfinite(stored).all(0)
        if self.table is not None:
            index = np.minimum(stored[0].astype(np.int64), len(self.table) - 1)
            return np.moveaxis(self.table[index], -1, 0), valid & self.opaque[index]
        if self.is_scaled:
            return (stored * self.steps + self.shifts).astype(np.float32), valid
        if self.largest is not None:
            return (stored.astype(np.uint16) * 255 // self.largest).astype(np.uint8), valid
        return stored.astype(self.dtype, copy=False), valid


def check_blocks(dataset: Any, name: str) -> None:
    """Raises ImageReadError if the pixels are not real numbers, or need too much memory for a window."""
    if not dataset.count:
        parts = ", ".join(dataset.subdatasets[:5])
        raise ImageReadError(
            f"{name} has no bands of its own, but subdatasets: {parts}. Export one of them as GeoTIFF."
        )
    if dataset.subdatasets:
        raise ImageReadError(
            f"{name} has {len(dataset.subdatasets)} pages: {', '.join(dataset.subdatasets[:5])}. Export one of them as GeoTIFF, "
            "for example with gdal_translate."
        )
    if dataset.count > MOST_BANDS:
        raise ImageReadError(
            f"{name} states {dataset.count} bands, more than the {MOST_BANDS} that are read. Copy the file again, or export the bands "
            "that the model takes."
        )
    if any(kind.startswith("complex") for kind in dataset.dtypes):
        raise ImageReadError(
            f"{name} has pixels of type {dataset.dtypes[0]}, but a model takes real numbers. Export amplitude, or real and "
            "imaginary part as two bands."
        )
    height, width = dataset.block_shapes[0]
    size = np.dtype(dataset.dtypes[0]).itemsize * dataset.count
    compressed = dataset.compression is not None
    if compressed and height * width * size > MOST_BLOCK_BYTES:
        raise ImageReadError(
            f"{name} is compressed in blocks of {width}x{height} pixels, each of which must be decoded at once. Write it in tiles, "
            "for example with gdal_translate -co TILED=YES."
        )


def palette_of(
    dataset: Any, indices: list[int], num_channels: int | None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The colors (N, 3) of a palette, gray (N, 1) if one channel is needed and all are gray; and which are not transparent."""
    if len(indices) != 1 or dataset.colorinterp[indices[0] - 1].name != "palette":
        return None, None
    colors = dataset.colormap(indices[0])
    table = np.zeros((max(colors) + 2, 4), dtype=np.uint8)  # the last: indices without a color
    table[list(colors)] = list(colors.values())
    table[-1] = 0, 0, 0, 255
    is_gray = (table[:, :1] == table[:, :3]).all()
    return table[:, : 1 if is_gray and num_channels == 1 else 3], table[:, 3] > 0


def red_green_blue_first(indices: list[int], kinds: list[str]) -> list[int]:
    """The bands with those first that are marked as red, green and blue, in this order, if all three are."""
    colors = [band for color in ("red", "green", "blue") for band in indices if kinds[band - 1] == color]
    return colors + [band for band in indices if band not in colors] if len(colors) == 3 else indices


def check_scales(steps: np.ndarray, shifts: np.ndarray, name: str) -> None:
    """Raises ImageReadError if a scale tag is 0, or a scale or offset tag is not finite."""
    if not (np.isfinite(steps) & np.isfinite(shifts) & (steps != 0)).all():
        raise ImageReadError(
            f"{name} has scale tags {steps.ravel().tolist()} and offset tags {shifts.ravel().tolist()}, which are no factors and "
            "summands of pixels. Correct them, for example with gdal_edit.py -scale 1 -offset 0."
        )


def chosen(values: Sequence[Any], indices: Sequence[int]) -> list[Any]:
    """The values of bands, numbered from 1. `values` is a property of a data set, which is read anew at each use."""
    return [values[band - 1] for band in indices]


def largest_of_few_bits(dataset: Any, indices: list[int]) -> int | None:
    """The largest value of bands with fewer than 8 bits, which is white; None for others."""
    bits = {int(dataset.tags(band, ns="IMAGE_STRUCTURE").get("NBITS", 8)) for band in indices}
    is_small = len(bits) == 1 and max(bits) < 8 and set(chosen(dataset.dtypes, indices)) == {"uint8"}
    return (1 << bits.pop()) - 1 if is_small else None


def masked_bands(dataset: Any, indices: list[int], has_alpha: bool) -> list[int]:
    """The bands whose masks say where there are data: of a mask for all bands the first; none if all pixels have."""
    every_mask = chosen(dataset.mask_flag_enums, indices)
    flags = {band: {flag.name for flag in mask} for band, mask in zip(indices, every_mask, strict=True)}
    masked = [band for band in indices if "all_valid" not in flags[band]]
    if has_alpha:  # the alpha band is read as what it is
        masked = [band for band in masked if "alpha" not in flags[band]]
    if len(masked) < len(indices):  # a band whose pixels are all valid
        return []
    return masked[:1] if all("per_dataset" in flags[band] for band in masked) else masked
