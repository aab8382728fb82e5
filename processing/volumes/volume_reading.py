"""Reads volumes and label volumes from any source in canonical orientation, with their true values.

Legend: C channels, D, H, W slices, rows and columns in canonical orientation (see volume_geometry.py).
"""

import gzip
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ..plain_text import counted
from .volume_geometry import SLICE_AXES, VolumeGeometry, is_same_grid
from .volume_opening import (
    SpatialImage,
    VolumeReadError,
    explaining_volume,
    geometry_of,
    is_volume_file,
    open_volume,
    volume_name,
)

VolumeSource = Any  # a path, an image of nibabel, an array, a tensor, or a list of them, one per channel
WHOLE_NUMBER_TOLERANCE = 1e-3  # of labels stored as floats
COMPRESSED = (".gz", ".mgz")
BLOCK_BYTES, MOST_BLOCKS = 1 << 20, 1 << 10  # read behind the voxels of a compressed file
SMALL_IDS = np.iinfo(np.int32)


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume that was read.

    Args:
        values: (C, D, H, W) float32: the true values, with the scaling of the file applied.
        spacing: Millimeters between voxels along D, H, W.
        geometry: How the file lies; None for arrays and tensors.
        name: Name in messages.
    """

    values: np.ndarray
    spacing: tuple[float, float, float]
    geometry: VolumeGeometry | None
    name: str

    @property
    def size(self) -> tuple[int, int, int]:
        """Voxels along D, H, W."""
        return self.values.shape[1:]


def read_volume_geometry(path: VolumeSource, slice_axis: str = "z") -> VolumeGeometry:
    """Reads how a file lies, its size, spacing and number of channels, from its header alone.

    Raises:
        VolumeReadError: If the file is not a volume that can be read, or has no spacing.
    """
    name = describe_volume(path)
    return geometry_of(open_volume(path, name), name, _checked_axis(slice_axis))


def read_volume(
    source: VolumeSource,
    num_channels: int | None = None,
    slice_axis: str = "z",
    spacing: Sequence[float] | None = None,
) -> Volume:
    """Reads a volume.

    Voxels that are NaN or infinite, which converters write outside the field of view, get the smallest finite
    value of their channel, with a warning.

    Args:
        source: A path; an image of nibabel; an array or tensor (D, H, W) or (C, D, H, W); a list of them, one
            per channel; or a `Volume`. A file may hold its channels on a fourth axis.
        num_channels: Channels that it must have. Default: any number.
        slice_axis: Axis of the body that becomes the first one: "z", "y" or "x".
        spacing: Millimeters (D, H, W) between the voxels of arrays and tensors. Default: 1 mm.

    Raises:
        VolumeReadError: If a file cannot be read, has no spacing, the wrong number of channels, or no finite
            value; or if the channels lie on different grids.
        ValueError: If an argument is invalid.
    """
    _checked_axis(slice_axis)
    if isinstance(source, list | tuple):
        volume = _joined([read_volume(part, 1, slice_axis, spacing) for part in source])
    elif isinstance(source, Volume):
        volume = source
    elif isinstance(source, np.ndarray | Tensor):
        volume = _volume_of_array(_numpy(source), (1.0, 1.0, 1.0) if spacing is None else spacing)
    else:
        volume = _volume_of_file(source, slice_axis, spacing)
    if num_channels is not None and len(volume.values) != num_channels:
        raise VolumeReadError(
            f"{volume.name} has {counted(len(volume.values), 'channel', 'channels')}, but must have {num_channels}. "
            "Give one volume for each channel, or choose the channels."
        )
    return volume


def read_label_volume(
    source: VolumeSource, like: Volume | VolumeGeometry | None = None, slice_axis: str = "z"
) -> np.ndarray:
    """Reads a label volume.

    Args:
        source: A path, an image of nibabel, or an array or tensor (D, H, W), of integers or of floats that are
            whole numbers.
        like: The volume that it labels, or its geometry; its slice axis counts. The storage order may differ.
        slice_axis: Axis of the body that becomes the first one, without `like`.

    Returns:
        (D, H, W) ids as stored, int32, or int64 if an id needs it.

    Raises:
        VolumeReadError: If it cannot be read, lies on another grid than `like`, or has values that are not
            whole numbers.
    """
    name = describe_volume(source)
    grid = like.geometry if isinstance(like, Volume) else like
    if isinstance(source, np.ndarray | Tensor):
        ids = _whole_numbers(_numpy(source), 1.0, 0.0, name)
    else:
        image = open_volume(source, name)
        geometry = geometry_of(image, name, grid.slice_axis if grid else _checked_axis(slice_axis))
        _check_label_grid(geometry, grid, name)
        with explaining_volume(name):
            stored, slope, intercept = _stored_values(image)
        ids = _whole_numbers(geometry.to_canonical(stored[..., 0]), slope, intercept, name)
    size = None if like is None else like.size
    if ids.ndim != 3 or size not in (None, ids.shape):
        wanted = "(D, H, W)" if size is None else f"{size}, the size of its volume"
        raise VolumeReadError(f"{name} has the size {ids.shape}, but must have {wanted}.")
    return ids


def describe_volume(source: VolumeSource) -> str:
    """Returns a name for messages."""
    if isinstance(source, str | os.PathLike):
        return f"'{os.fspath(source)}'"
    if isinstance(source, np.ndarray | Tensor):
        return f"{type(source).__name__} of shape {tuple(source.shape)}"
    if SpatialImage is not None and isinstance(source, SpatialImage):
        path = source.get_filename()
        return f"'{path}'" if path else f"{type(source).__name__} of shape {tuple(source.shape)}"
    raise TypeError(
        f"cannot read a volume from {type(source).__name__}. Give a path, an image of nibabel, an array or a tensor."
    )


def _checked_axis(slice_axis: str) -> str:
    if slice_axis not in SLICE_AXES:
        raise ValueError(f"slice_axis={slice_axis!r} must be one of {', '.join(SLICE_AXES)}.")
    return slice_axis


def _numpy(source: np.ndarray | Tensor) -> np.ndarray:
    if not isinstance(source, Tensor):
        return source
    is_narrow = source.is_floating_point() and source.element_size() < 4  # of which NumPy lacks some
    return (source.detach().float() if is_narrow else source.detach()).cpu().numpy()


def _stored_values(image: "SpatialImage") -> tuple[np.ndarray, float, float]:
    """(X, Y, Z, C) as stored, on the file's axes, and the slope and intercept of the true values."""
    proxy = image.dataobj
    has_scaling = hasattr(proxy, "get_unscaled")
    values = _unscaled(proxy) if has_scaling else np.asarray(proxy)
    slope, intercept = (float(proxy.slope), float(proxy.inter)) if has_scaling else (1.0, 0.0)
    shape = (*image.shape[:3], 1)[:3]
    return values.reshape((*shape, -1), order="F"), slope, intercept


def _unscaled(proxy: Any) -> np.ndarray:
    """The values as stored. nibabel stops behind the last voxel: what follows is read for gzip's checksum."""
    path = proxy.file_like
    if not isinstance(path, str | os.PathLike) or not os.fspath(path).lower().endswith(COMPRESSED):
        return proxy.get_unscaled()
    with gzip.open(path) as file:
        layout = proxy.shape, proxy.dtype, proxy.offset, proxy.slope, proxy.inter
        values = type(proxy)(file, layout).get_unscaled()
        for _ in range(MOST_BLOCKS):
            if not file.read(BLOCK_BYTES):
                break
    return values


def _volume_of_file(source: VolumeSource, slice_axis: str, spacing: Sequence[float] | None) -> Volume:
    name = describe_volume(source)
    if spacing is not None:
        raise ValueError(
            f"spacing={spacing} is for arrays, but {name} has a spacing of its own. Leave it out."
        )
    image = open_volume(source, name)
    geometry = geometry_of(image, name, slice_axis)
    with explaining_volume(name):
        stored, slope, intercept = _stored_values(image)
        values = np.empty((geometry.num_channels, *geometry.size), dtype=np.float32)
        for channel in range(len(values)):
            seen = geometry.to_canonical(stored[..., channel])
            for index, plane in enumerate(seen):
                values[channel, index] = _scaled(plane, slope, intercept)
    return Volume(_finite(values, name), geometry.spacing, geometry, name)


def _volume_of_array(array: np.ndarray, spacing: Sequence[float]) -> Volume:
    name = describe_volume(array)
    steps = tuple(map(float, spacing))
    if len(steps) != 3 or not all(np.isfinite(steps)) or min(steps) <= 0:
        raise ValueError(f"spacing={spacing} must be three numbers above 0: millimeters along D, H and W.")
    if array.ndim not in (3, 4) or array.size == 0 or array.dtype.kind not in "iuf":
        raise VolumeReadError(
            f"{name} and type {array.dtype} must be (D, H, W) or (C, D, H, W) of real numbers."
        )
    values = np.array(array if array.ndim == 4 else array[None], dtype=np.float32, order="C")
    return Volume(_finite(values, name), steps, None, name)


def _joined(parts: list[Volume]) -> Volume:
    """One volume of several channels. Raises VolumeReadError unless they lie on one grid."""
    if not parts:
        raise ValueError("got an empty list of channels. Give one volume per channel.")
    first = parts[0]
    for part in parts[1:]:
        grids = first.geometry, part.geometry
        is_same = is_same_grid(*grids) if all(grids) else first.size == part.size
        if not is_same:
            shown = [
                grid or f"{volume.size} voxels" for grid, volume in zip(grids, (first, part), strict=True)
            ]
            raise VolumeReadError(
                f"{part.name} lies on another grid than {first.name}: {shown[1]}; {shown[0]}. Channels of one case "
                "must share a grid. Resample one to the other."
            )
    if len(parts) == 1:
        return first
    return Volume(np.concatenate([part.values for part in parts]), first.spacing, first.geometry, first.name)


def _check_label_grid(geometry: VolumeGeometry, grid: VolumeGeometry | None, name: str) -> None:
    if geometry.num_channels != 1:
        raise VolumeReadError(
            f"{name} has {geometry.num_channels} values in each voxel. Give a label volume with one id."
        )
    if grid is not None and not is_same_grid(grid, geometry):
        raise VolumeReadError(
            f"{name} lies on another grid than its volume: {geometry}; the volume has {grid}. Resample the labels "
            "to the volume by nearest neighbor, or take the volume that they were drawn on."
        )


def _scaled(plane: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    return plane if (slope, intercept) == (1.0, 0.0) else plane.astype(np.float64) * slope + intercept


def _finite(values: np.ndarray, name: str) -> np.ndarray:
    """The values with those that are not finite replaced, in place, by the smallest finite one of their channel."""
    for channel in values:
        finite = np.isfinite(channel)
        missing = channel.size - int(np.count_nonzero(finite))
        if missing == channel.size:
            raise VolumeReadError(
                f"{name} has no finite value. Convert the scan again, or take it out of the data."
            )
        if missing:
            lowest = channel.min(where=finite, initial=np.inf)
            channel[~finite] = lowest
            warnings.warn(
                f"{name} has {missing} voxels that are NaN or infinite. They are read as {lowest:.6g}, the smallest "
                "finite value.",
                stacklevel=2,
            )
    return values


def _whole_numbers(values: np.ndarray, slope: float, intercept: float, name: str) -> np.ndarray:
    """Ids of any type -> int32 or int64, C-contiguous. Raises VolumeReadError for values between whole numbers."""
    ids = np.empty(values.shape, dtype=np.int32)
    for index, plane in enumerate(values):
        plane = _scaled(plane, slope, intercept)
        if plane.dtype.kind == "f":
            plane = _rounded(plane, name)
        elif plane.dtype.kind not in "iub":
            raise VolumeReadError(f"{name} has labels of type {plane.dtype}. Give integers.")
        if plane.size and not SMALL_IDS.min <= int(plane.min()) <= int(plane.max()) <= SMALL_IDS.max:
            ids = ids.astype(np.int64, copy=False)
        ids[index] = plane
    return ids


def _rounded(plane: np.ndarray, name: str) -> np.ndarray:
    whole = np.rint(plane)
    between = ~(np.abs(plane - whole) <= WHOLE_NUMBER_TOLERANCE)  # NaN included
    if between.any():
        raise VolumeReadError(
            f"{name} has labels that are not whole numbers, such as {plane[between][0]:.6g}. Resample labels by "
            "nearest neighbor, or threshold probabilities."
        )
    return whole.astype(np.int64)


__all__ = [
    "Volume",
    "VolumeReadError",
    "is_volume_file",
    "read_label_volume",
    "read_volume",
    "read_volume_geometry",
    "volume_name",
]
