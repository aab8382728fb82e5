"""Writes masks on the grid of the file that they belong to: same shape, same forms and codes, same voxel sizes."""

import gzip
import os
from pathlib import Path

import numpy as np
from torch import Tensor

from ..atomic_write import atomic_write
from .volume_geometry import VolumeGeometry
from .volume_opening import nibabel, require_nibabel

NIFTI1_LENGTH = 32767  # most voxels along an axis
MASK_TYPES = (np.uint8, np.uint16, np.int32)  # that every viewer opens
COMPRESSION = 6


def mask_type(mask: np.ndarray) -> np.dtype:
    """Returns the smallest type of integers, among those that every viewer opens, that holds all ids.

    Raises:
        ValueError: If an id needs more than 32 bits.
    """
    low, high = int(mask.min()), int(mask.max())
    for kind in MASK_TYPES:
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return np.dtype(kind)
    raise ValueError(f"the mask has ids from {low} to {high}, but NIfTI viewers open ids of at most 32 bits.")


def write_label_volume(path: str | os.PathLike, mask: np.ndarray | Tensor, geometry: VolumeGeometry) -> None:
    """Writes a mask as NIfTI on the grid of a file; the file is complete or absent.

    Args:
        path: The file, ending in .nii or .nii.gz. Its folder must exist.
        mask: (D, H, W) ids in canonical orientation, such as the result of `Inference`.
        geometry: That of the `Volume` which was segmented.

    Raises:
        ValueError: If the mask has another size, ids of more than 32 bits, the name another ending, or there is no
            geometry, because the volume was an array.
        ImportError: Without nibabel.
    """
    if geometry is None:
        raise ValueError(
            f"'{path}' needs a geometry, which volumes of arrays do not have. Pass that of the file that the mask belongs to, "
            "or save the array with numpy."
        )
    mask = mask.cpu().numpy() if isinstance(mask, Tensor) else mask
    write_map_volume(path, mask.astype(mask_type(mask), copy=False), geometry)


def write_map_volume(path: str | os.PathLike, values: np.ndarray, geometry: VolumeGeometry) -> None:
    """Writes any values (D, H, W) in canonical orientation, such as a confidence, as they are; otherwise as masks."""
    require_nibabel()
    path = Path(path)
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise ValueError(f"'{path}' must end in .nii or .nii.gz.")
    image = _image(geometry.to_file(values), geometry)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        if path.name.lower().endswith(".gz"):
            with gzip.GzipFile("", "wb", COMPRESSION, file, mtime=0) as packed:
                image.to_stream(packed)
        else:
            image.to_stream(file)


def _image(values: np.ndarray, geometry: VolumeGeometry) -> "nibabel.Nifti1Image":
    is_long = max(values.shape) > NIFTI1_LENGTH
    fields = geometry.header
    is_long = is_long or (bool(fields) and fields["pixdim"].dtype.itemsize == 8)  # of NIfTI-2
    kind = nibabel.Nifti2Image if is_long else nibabel.Nifti1Image
    if not fields:
        image = kind(values, geometry.affine, dtype=values.dtype)
        image.set_qform(geometry.affine, 1)
        image.set_sform(geometry.affine, 1)
        image.header.set_xyzt_units("mm")
        return image
    header = kind.header_class()
    header.set_data_dtype(values.dtype)
    header.set_data_shape(values.shape)
    for name, value in fields.items():
        header[name] = value
    header["pixdim"][4:] = 1
    return kind(values, None, header)


__all__ = ["mask_type", "write_label_volume", "write_map_volume"]
