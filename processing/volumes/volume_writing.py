"""Writes masks and maps of volumes as NIfTI, on the grid of the file that was segmented."""

import gzip
from pathlib import Path

import numpy as np

from ..atomic_write import atomic_write
from .volume_geometry import VolumeGeometry

try:
    import nibabel
except ImportError:  # extra [volumes]
    nibabel = None


def write_label_volume(path: Path, mask: np.ndarray, geometry: VolumeGeometry) -> None:
    """Writes a mask as .nii.gz, with the shape and the placing fields of the file that it belongs to.

    Args:
        path: The file, which is written whole or not at all. Its folder is created if needed.
        mask: Stored ids (D, H, W) in the canonical orientation, integers.
        geometry: How the volume lies in its file.

    Raises:
        OSError: If the file cannot be written.
    """
    write_map_volume(path, mask, geometry)


def write_map_volume(path: Path, values: np.ndarray, geometry: VolumeGeometry) -> None:
    """The same for values of any type."""
    stored = np.asfortranarray(geometry.to_file(values))
    image = nibabel.Nifti1Image(stored, geometry.affine, dtype=stored.dtype)
    for name, value in geometry.header.items():
        if name == "pixdim":
            image.header[name][:4] = value[:4]
        else:
            image.header[name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary, gzip.open(temporary, "wb", compresslevel=3) as file:
        file_map = nibabel.Nifti1Image.make_file_map({"image": file})
        image.to_file_map(file_map)
