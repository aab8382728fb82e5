"""Reads volumes: NIfTI files, one file per channel, and arrays."""

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np

from ..image_opening import ImageReadError
from .volume_geometry import VolumeGeometry, is_same_grid, is_sound

try:
    import nibabel
    from nibabel.filebasedimages import ImageFileError
except ImportError:  # extra [volumes]
    nibabel, ImageFileError = None, OSError

VOLUME_SUFFIXES = (".nii", ".nii.gz")
PLACING = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
DAMAGED = (ImageFileError, OSError, EOFError, ValueError, zlib.error, gzip.BadGzipFile)


class VolumeReadError(ImageReadError):
    """A volume cannot be read; the message names it and says what to do."""


@dataclass(frozen=True)
class Volume:
    """A volume in the canonical orientation.

    Attributes:
        values: (C, D, H, W), true values.
        spacing: Millimeters between voxels along D, H, W.
        geometry: How it lies in its file; None for arrays.
        name: Its name in messages.
    """

    values: np.ndarray
    spacing: tuple[float, float, float]
    geometry: VolumeGeometry | None
    name: str


def is_volume_file(source: Any) -> bool:
    """Whether a path or file name has the ending of a volume."""
    return isinstance(source, str | PathLike) and fspath(source).lower().endswith(VOLUME_SUFFIXES)


def volume_name(path: str | PathLike) -> str:
    """The name of a file without .nii or .nii.gz; other dots stay."""
    name = Path(path).name
    ending = next((end for end in (".nii.gz", ".nii") if name.lower().endswith(end)), "")
    return name[: len(name) - len(ending)]


def read_volume(
    source: Any,
    num_channels: int | None = None,
    slice_axis: str = "z",
    spacing: Sequence[float] | None = None,
) -> Volume:
    """Reads a volume.

    Args:
        source: A NIfTI file, a list of files with one channel each, or an array or tensor (D, H, W) or (C, D, H, W).
        num_channels: Channels that the volume must have. Default: any number.
        slice_axis: Axis of the body that becomes the first one: "z", "y" or "x". Default: "z".
        spacing: Millimeters between voxels of an array along D, H, W. Default: 1.

    Raises:
        VolumeReadError: If the volume cannot be read, or has another number of channels.
        ImportError: If a file is to be read, and nibabel is not installed.
    """
    if not isinstance(source, str | PathLike | list | tuple):
        values = np.asarray(source)
        values = values[None] if values.ndim == 3 else values
        if values.ndim != 4:
            raise VolumeReadError(
                f"an array of shape {values.shape} is not a volume (D, H, W) or (C, D, H, W)."
            )
        check_channels("the array", len(values), num_channels)
        return Volume(values, tuple(spacing or (1.0, 1.0, 1.0)), None, "array")
    files = [source] if isinstance(source, str | PathLike) else list(source)
    name = str(files[0])
    if len(files) > 1:
        check_channels(name, len(files), num_channels)
    parts = [read_file(file, num_channels if len(files) == 1 else 1, slice_axis) for file in files]
    geometry = parts[0][1]
    for file, (_, other) in zip(files, parts, strict=True):
        if not is_same_grid(geometry, other):
            raise VolumeReadError(
                f"{file} lies on another grid ({other}) than {name} ({geometry}). Resample one."
            )
    values = parts[0][0] if len(parts) == 1 else np.concatenate([part for part, _ in parts])
    return Volume(values, geometry.spacing, geometry, name)


def read_file(
    file: str | PathLike, num_channels: int | None, slice_axis: str
) -> tuple[np.ndarray, VolumeGeometry]:
    """Reads (C, D, H, W) and the geometry of a NIfTI file. Raises as `read_volume`."""
    if nibabel is None:
        raise ImportError(
            "reading NIfTI files needs nibabel. Install it with pip install 'contextseg[volumes]'."
        )
    if not is_volume_file(file):
        raise VolumeReadError(
            f"{file} is not a volume. Give files that end in {' or '.join(VOLUME_SUFFIXES)}."
        )
    try:
        image = nibabel.load(file)
        shape, fields = image.shape, image.get_data_dtype().names
        if fields:
            raise VolumeReadError(
                f"{file} has {len(fields)} channels of colors ({', '.join(fields)}). Convert it."
            )
        if not is_sound(image.affine):
            raise VolumeReadError(f"{file} has no sound spacing: its affine is {image.affine[:3].tolist()}.")
        channels = int(np.prod(shape[3:], dtype=int))
        check_channels(str(file), channels, num_channels)
        values = np.asarray(image.dataobj).reshape(*(*shape, 1, 1)[:3], channels)
    except VolumeReadError:
        raise
    except FileNotFoundError:
        raise VolumeReadError(f"{file} does not exist. Check the path.") from None
    except DAMAGED as error:
        raise VolumeReadError(
            f"{file} is damaged or not a volume: {error}. Copy or download it again."
        ) from None
    header = {name: np.array(image.header[name]) for name in PLACING if name in image.header}
    geometry = VolumeGeometry(shape[:3], image.affine, header, slice_axis)
    return np.stack([geometry.to_canonical(values[..., k]) for k in range(channels)]), geometry


def check_channels(name: str, channels: int, num_channels: int | None) -> None:
    """Raises VolumeReadError if a volume has another number of channels than the model."""
    if num_channels is not None and channels != num_channels:
        raise VolumeReadError(
            f"{name} has {channels} channels, and the model takes {num_channels}. Give a file with these, or one "
            "file per channel."
        )
