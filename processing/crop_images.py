"""Images from which crops are cut: decoded ones, and rasters, of which only the window of the crop is read.

Legend: C channels, H, W pixels of the image, h, w pixels of a window.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import avg_pool2d

from .image_opening import ImageReadError
from .image_reading import image_size
from .rasters.raster import Raster, read_window
from .tiling import overlap_slices
from .value_ranges import UnknownRangeError

WINDOW_PIXELS = 1 << 24  # of a window that is read at full size before it is resized
REDUCED_PIXELS = 1 << 22  # of a window that is averaged here; larger ones are read at a reduced scale


class DecodedImage:
    """An image in memory.

    Args:
        image: PIL image, or (H, W, C) array.
    """

    def __init__(self, image: Image.Image | np.ndarray) -> None:
        self.image = image
        self.shape = image_size(image)
        self.num_channels = len(image.getbands()) if isinstance(image, Image.Image) else image.shape[2]

    def window(
        self, top: int, left: int, height: int, width: int
    ) -> tuple[Image.Image | np.ndarray, np.ndarray | None]:
        """A window inside the image, of the image's type, and where it has data (None: everywhere)."""
        if isinstance(self.image, Image.Image):
            return self.image.crop((left, top, left + width, top + height)), None
        return self.image[top : top + height, left : left + width], None

    def __call__(
        self, top: int, left: int, height: int, width: int, reduction: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Reads a window that may reach beyond the image, see `PixelReader`."""
        share = inside_share(self.shape, (top, left, height, width), reduction)
        (rows, row_place), (columns, column_place) = (
            overlap_slices(start, length, side)
            for start, length, side in zip((top, left), (height, width), self.shape, strict=True)
        )
        sides = rows.stop - rows.start, columns.stop - columns.start
        if 0 in sides:
            return np.zeros((self.num_channels, *share.shape), np.float32), share
        found = np.asarray(self.window(rows.start, columns.start, *sides)[0]).reshape(*sides, -1)
        pixels = np.zeros((self.num_channels, height, width), found.dtype)
        pixels[:, row_place, column_place] = np.moveaxis(found, -1, 0)
        return averaged(pixels, reduction), share


class RasterImage:
    """A raster, of which windows are read as `to_image` reads an image.

    Args:
        raster: The raster.
        to_image: Turns pixels (h, w, C) as stored into an RGB image or an array (h, w, C) in 0..255.
        name: Name in messages.
    """

    def __init__(
        self, raster: Raster, to_image: Callable[[np.ndarray], Image.Image | np.ndarray], name: str
    ) -> None:
        self.raster, self.to_image, self.name = raster, to_image, name
        self.shape = tuple(raster.shape[1:])
        self.num_channels = None  # known from what is read

    @property
    def georeference(self) -> Any:
        """Where the raster lies on Earth; None if it does not say."""
        return getattr(self.raster, "georeference", None)

    def window(
        self, top: int, left: int, height: int, width: int
    ) -> tuple[Image.Image | np.ndarray, np.ndarray | None]:
        """A window inside the image, and where it has data; a window of many pixels is read smaller."""
        scale = min(1.0, (WINDOW_PIXELS / (height * width)) ** 0.5)
        pixels, valid = self._read(top, left, height, width, scale)
        return pixels, None if valid.all() else valid

    def __call__(
        self, top: int, left: int, height: int, width: int, reduction: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Reads a window that may reach beyond the image, see `PixelReader`."""
        scale = 1 if height * width <= REDUCED_PIXELS else 1 / reduction
        image, valid = self._read(top, left, height, width, scale)
        pixels = np.moveaxis(np.asarray(image).reshape(*valid.shape, -1), -1, 0)
        if scale == 1 and valid.all():
            pixels = averaged(pixels, reduction)
            return pixels, np.ones(pixels.shape[1:], np.float32)
        if scale == 1:
            return averaged(pixels * valid, reduction), averaged(valid[None], reduction)[0]
        share = inside_share(self.shape, (top, left, height, width), reduction) * valid
        return pixels * share, share

    def _read(
        self, top: int, left: int, height: int, width: int, scale: float
    ) -> tuple[Image.Image | np.ndarray, np.ndarray]:
        pixels, valid = read_window(self.raster, top, left, height, width, scale)
        if not valid.all():
            pixels = np.where(valid, pixels, np.zeros((), pixels.dtype))
        try:
            return self.to_image(np.moveaxis(pixels, 0, -1)), valid
        except UnknownRangeError as error:
            raise UnknownRangeError(f"{self.name}: {error}", error.values) from error
        except ImageReadError as error:
            raise ImageReadError(f"{self.name}: {error}") from error


def inside_share(shape: tuple[int, int], box: tuple[int, int, int, int], reduction: int) -> np.ndarray:
    """The share (h, w) that lies inside an image, of each square of `reduction` pixels of a box."""
    shares = []
    for side, start, length in zip(shape, box[:2], box[2:], strict=True):
        edges = (start + reduction * np.arange(length // reduction + 1)).clip(0, side)
        shares.append(np.diff(edges).astype(np.float32) / reduction)
    return shares[0][:, None] * shares[1]


def averaged(pixels: np.ndarray, reduction: int) -> np.ndarray:
    """(C, H, W) -> (C, H / reduction, W / reduction) float32: means of squares, channel by channel to save memory."""
    if reduction == 1:
        return pixels.astype(np.float32, copy=False)
    channels = (torch.from_numpy(channel.astype(np.float32))[None] for channel in pixels)
    return torch.cat([avg_pool2d(channel, reduction) for channel in channels]).numpy()
