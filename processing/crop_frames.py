"""Where a crop lies in an image, and how its pixels and labels are sampled there.

A frame may be of any size, turned, mirrored, and stick out of the image. With "area" sampling, a crop pixel is the
mean of the image over its area; with "point" sampling, that of the relay token authors, it is interpolated at its
corner, without an offset of half a pixel and without smoothing.

Legend: C channels, H, W pixels of the image, h, w pixels of the crop.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, cos, floor, hypot, radians, sin
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch.nn.functional import grid_sample

Sampling = Literal["area", "point"]
SAMPLINGS = ("area", "point")
TINY = 1e-6  # pixels

# (top, left, height, width, reduction) -> pixels (C, height / reduction, width / reduction), each a mean over an area
# in which the outside of the image counts as 0, and the share of each area (...) that lies inside
PixelReader = Callable[[int, int, int, int, int], tuple[np.ndarray, np.ndarray]]
# Rows and columns that broadcast to (h, w) -> class ids (h, w), the ignore index outside the image
LabelReader = Callable[[np.ndarray, np.ndarray], np.ndarray]


def check_sampling(sampling: str) -> None:
    """Raises ValueError unless this is a way to sample contexts."""
    if sampling not in SAMPLINGS:
        raise ValueError(f"context_sampling={sampling!r} is unknown. Use one of {', '.join(SAMPLINGS)}.")


class Crop(NamedTuple):
    """Pixels (C, h, w) float32, and where (h, w) they show any of the image."""

    pixels: np.ndarray
    inside: np.ndarray


@dataclass(frozen=True)
class Frame:
    """A rectangle of an image, which may be turned and mirrored. All values are (row, column) in pixels.

    Args:
        origin: The corner of the image that becomes the upper left corner of the crop.
        down: The edge from there to the lower left corner of the crop.
        right: The edge from there to the upper right corner of the crop.
    """

    origin: tuple[float, float]
    down: tuple[float, float]
    right: tuple[float, float]

    @classmethod
    def of_box(
        cls,
        top: float,
        left: float,
        height: float,
        width: float,
        *,
        angle: float = 0.0,
        is_mirrored: bool = False,
    ) -> "Frame":
        """The frame of a box, of which the crop shows the content turned and then mirrored left to right.

        Args:
            top: First row.
            left: First column.
            height: Height in pixels.
            width: Width in pixels.
            angle: Angle in degrees by which the content is turned counterclockwise about the center of the box.
            is_mirrored: Whether the content is mirrored.
        """
        cosine, sine = (cos(radians(angle)), sin(radians(angle))) if angle else (1.0, 0.0)
        down, right = (height * cosine, -height * sine), (width * sine, width * cosine)
        middle = top + height / 2, left + width / 2
        if is_mirrored:
            right = -right[0], -right[1]
        return cls(_moved(middle, down, right, -0.5), down, right)

    def context(self, ratio: int) -> "Frame":
        """The frame with the same center and turn, and `ratio` times the sides.

        If half of a pixel is left over at a frame that is not turned, the context begins that much later, as that of
        a tile in the models does.
        """
        down, right = ((ratio * rows, ratio * columns) for rows, columns in (self.down, self.right))
        origin = _moved(self.origin, self.down, self.right, (1 - ratio) / 2)
        if self.is_whole:
            rest = [-min(origin[k], origin[k] + down[k] + right[k]) % 1 for k in (0, 1)]
            origin = origin[0] + rest[0], origin[1] + rest[1]
        return Frame(origin, down, right)

    @property
    def is_turned(self) -> bool:
        """Whether the edges are not along the rows and columns of the image."""
        return bool(self.down[1] or self.right[0])

    @property
    def is_whole(self) -> bool:
        """Whether the frame is not turned, and lies on borders of pixels."""
        return not self.is_turned and all(
            float(value).is_integer() for value in (*self.origin, self.down[0], self.right[1])
        )

    @property
    def corner(self) -> tuple[int, int]:
        """The first row and column of the frame's bounding box."""
        return tuple(
            floor(self.origin[k] + min(0, self.down[k], self.right[k], self.down[k] + self.right[k]) + TINY)
            for k in (0, 1)
        )

    def steps(self, size: tuple[int, int]) -> tuple[float, float]:
        """Image pixels from one crop pixel to the next one, down and to the right."""
        return hypot(*self.down) / size[0], hypot(*self.right) / size[1]

    def positions(self, size: tuple[int, int], sampling: Sampling = "area") -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns of the samples, such that the first pixel of the image has its center at 0.5.

        Args:
            size: (h, w) of the crop.
            sampling: "area": in the middle of each crop pixel; "point": at its corner, taken for the center.

        Returns:
            Two arrays that broadcast to (h, w); those of a frame that is not turned have the shapes (h, 1) and
            (1, w).
        """
        offset, shift = (0.5, 0.0) if sampling == "area" else (0.0, 0.5)
        down = ((np.arange(size[0]) + offset) / size[0])[:, None]
        right = ((np.arange(size[1]) + offset) / size[1])[None]
        rows, columns = (self.origin[k] + shift for k in (0, 1))
        if not self.is_turned:
            return rows + down * self.down[0], columns + right * self.right[1]
        return (
            rows + down * self.down[0] + right * self.right[0],
            columns + down * self.down[1] + right * self.right[1],
        )


def cut_pixels(
    read: PixelReader,
    frame: Frame,
    size: tuple[int, int],
    *,
    fill: np.ndarray,
    sampling: Sampling = "area",
) -> Crop:
    """Samples the pixels of a crop.

    Args:
        read: Reads a box of the image. With "area" sampling it is asked for a reduced one where a crop pixel is
            several image pixels wide.
        frame: Where the crop lies.
        size: (h, w) of the crop.
        fill: (C,), value of the pixels outside the image.
        sampling: "area" or "point".
    """
    steps, reduction, dense = frame.steps(size), 1, (1, 1)
    if sampling == "area":
        reduction = max(1, floor(min(steps) + TINY))
        dense = tuple(max(1, ceil(step / reduction - TINY)) for step in steps)
    positions = frame.positions((size[0] * dense[0], size[1] * dense[1]), sampling)
    cells = [
        _snapped((place - start) / reduction - 0.5)
        for place, start in zip(positions, frame.corner, strict=True)
    ]
    first = [floor(cell.min()) for cell in cells]
    counts = [ceil(cell.max()) - start + 1 for cell, start in zip(cells, first, strict=True)]
    top, left = (start + cell * reduction for start, cell in zip(frame.corner, first, strict=True))
    pixels, share = read(top, left, counts[0] * reduction, counts[1] * reduction, reduction)
    if share.min() < 1:
        pixels = pixels + (1 - share) * fill[:, None, None]
    pixels = pixels.astype(np.float32, copy=False)
    cells = [cell - start for cell, start in zip(cells, first, strict=True)]
    rows, columns = (
        nearest_pixel(cell, sampling).clip(0, n - 1) for cell, n in zip(cells, counts, strict=True)
    )
    blocks = size[0], dense[0], size[1], dense[1]
    crop = _interpolated(pixels, *cells).reshape(-1, *blocks).mean((2, 4))
    inside = (share[rows, columns] > 0).reshape(blocks).any((1, 3))
    return Crop(np.where(inside, crop, fill[:, None, None]).astype(np.float32), inside)


def cut_labels(
    read: LabelReader, frame: Frame, size: tuple[int, int], sampling: Sampling = "area"
) -> np.ndarray:
    """Samples the labels (h, w) of a crop: the class id of the nearest pixel."""
    return read(*(nearest_pixel(place - 0.5, sampling) for place in frame.positions(size, sampling)))


def nearest_pixel(places: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The whole number nearest to each place; of two, the upper one, with "point" sampling the lower one."""
    down = np.ceil(places - 0.5 - TINY) if sampling == "point" else np.floor(places + 0.5 + TINY)
    return down.astype(np.int64)


def _interpolated(pixels: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(C, H, W) at two arrays of positions that broadcast to (h, w) -> (C, h, w), bilinear."""
    if rows.shape[1] == 1 and columns.shape[0] == 1:
        return _along(_along(pixels, rows[:, 0], 1), columns[0], 2)
    height, width = pixels.shape[1:]
    places = np.stack(
        [2 * columns / max(1, width - 1) - 1, 2 * rows / max(1, height - 1) - 1], axis=-1
    ).astype(np.float32)
    values, grid = torch.from_numpy(pixels)[None], torch.from_numpy(places)[None]
    return grid_sample(values, grid, padding_mode="border", align_corners=True)[0].numpy()


def _along(pixels: np.ndarray, places: np.ndarray, axis: int) -> np.ndarray:
    """Linear interpolation along one axis, a copy where all places are whole."""
    lower = np.floor(places).astype(np.int64)
    share = (places - lower).astype(np.float32)
    values = pixels.take(lower, axis)
    if not share.any():
        return values
    upper = np.minimum(lower + 1, pixels.shape[axis] - 1)
    share = share.reshape([-1 if k == axis else 1 for k in range(3)])
    return values * (1 - share) + pixels.take(upper, axis) * share


def _snapped(places: np.ndarray) -> np.ndarray:
    """The places, those that differ from a whole number by rounding only made whole."""
    whole = np.round(places)
    return np.where(np.abs(places - whole) < TINY, whole, places)


def _moved(
    point: tuple[float, float], down: tuple[float, float], right: tuple[float, float], share: float
) -> tuple[float, float]:
    """The point moved by a share of both edges."""
    return point[0] + share * (down[0] + right[0]), point[1] + share * (down[1] + right[1])
