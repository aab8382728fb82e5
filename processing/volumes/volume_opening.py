"""Opens volume files: headers first, so that sizes and spacings are known without decoding a voxel."""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np

from ..image_opening import DECODING_ERRORS, SPECIAL_FILES, ImageReadError, explained
from .volume_geometry import VolumeGeometry, is_sound

try:
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError, SpatialImage
    from nibabel.wrapstruct import WrapStructError

    NIBABEL_ERRORS = (ImageFileError, HeaderDataError, WrapStructError)
except ImportError:  # extra [volumes]
    nibabel = SpatialImage = None
    NIBABEL_ERRORS = ()

SUFFIXES = (".nii.gz", ".nii", ".hdr", ".img", ".mgz", ".mgh")
VOXEL_LIMIT = 1 << 31  # of one file: 8 GiB in float32
UNITS = {
    1: 1000.0,
    2: 1.0,
    3: 0.001,
}  # NIfTI's code of the unit of length -> millimeters; unknown: millimeters
# What places the grid of a NIfTI file. A mask gets these fields as they are stored.
PLACING = (
    "pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
    "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z",
)  # fmt: skip


class VolumeReadError(ImageReadError):
    """A volume cannot be read; the message names it and says what to do."""


def require_nibabel() -> None:
    """Raises ImportError, with what to install, unless nibabel is there."""
    if nibabel is None:
        raise ImportError(
            "reading and writing NIfTI files needs nibabel. Install it with pip install 'contextseg[volumes]'."
        )


def is_volume_file(source: Any) -> bool:
    """Whether a path ends as volumes do: .nii, .nii.gz, .hdr, .img, .mgz or .mgh, in any case."""
    return isinstance(source, str | os.PathLike) and os.fspath(source).lower().endswith(SUFFIXES)


def volume_name(path: str | os.PathLike) -> str:
    """Returns the name of a file without .nii or .nii.gz (or another ending of volumes); other dots stay."""
    name = os.path.basename(os.fspath(path))
    suffix = next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)]


def open_volume(source: Any, name: str) -> "SpatialImage":
    """Opens a file, or takes an image of nibabel, and checks its kind and size; no voxel is decoded.

    Args:
        source: A path, or an image of nibabel.
        name: Its name in messages.

    Raises:
        VolumeReadError: If it is missing, damaged, too large, of colors or complex numbers, or not a volume.
        ImportError: Without nibabel.
    """
    require_nibabel()
    with explaining_volume(name):
        image = source if isinstance(source, SpatialImage) else _loaded(os.fspath(source), name)
        kind, voxels = image.get_data_dtype(), prod(map(int, image.shape))
    if kind.names:
        raise VolumeReadError(
            f"{name} holds colors ({len(kind.names)} channels of a voxel, RGB). Give the scan that it was made "
            "from, or its channels as separate files."
        )
    if kind.kind not in "iuf":
        raise VolumeReadError(
            f"{name} holds {kind} values. Save it as real numbers, for example its magnitude."
        )
    if not 0 < voxels <= VOXEL_LIMIT or len(image.shape) < 2:
        raise VolumeReadError(
            f"{name} has the shape {tuple(image.shape)}. Give a volume of 1 to {VOXEL_LIMIT} voxels on two or "
            "three axes, or with its channels on a fourth."
        )
    return image


def geometry_of(image: "SpatialImage", name: str, slice_axis: str = "z") -> VolumeGeometry:
    """Returns the grid of an open volume.

    As NIfTI says, the sform counts where its code is set, else the qform, else the spacing alone. A form that
    cannot be right (an axis of length 0, NaN) is passed over.

    Raises:
        VolumeReadError: If no form gives a spacing.
    """
    with explaining_volume(name):
        header = _stored_header(image)
        affine, faulty = _first_sound(image.affine if header is None else None, header)
    if affine is None:
        raise VolumeReadError(
            f"{name} has no usable spacing: its affine and the voxel sizes of its header are 0 or not finite. "
            "Correct its header, or convert the scan again."
        )
    fields = {} if header is None else {field: np.array(header[field]) for field in PLACING}
    for code in faulty:
        fields[code] = np.array(0, dtype=fields[code].dtype)
    if fields:
        unit = UNITS.get(int(fields["xyzt_units"]) & 7, 1.0)
        fields["pixdim"] = _sound_sizes(fields["pixdim"], affine)
        affine = np.diag([unit, unit, unit, 1.0]) @ affine
    shape = tuple(map(int, image.shape[:3]))
    return VolumeGeometry(shape, affine, fields, slice_axis, channels_of(image.shape, name))


def channels_of(shape: Sequence[int], name: str) -> int:
    """Values of a voxel: the length of the one axis behind the third that is longer than 1."""
    longer = [int(length) for length in shape[3:] if length != 1]
    if len(longer) > 1:
        raise VolumeReadError(
            f"{name} has the shape {tuple(shape)}. Give at most one axis behind the three of space, for channels."
        )
    return longer[0] if longer else 1


@contextmanager
def explaining_volume(name: str) -> Iterator[None]:
    """Context manager that turns what nibabel raises for a damaged file into a VolumeReadError with its name."""
    try:
        yield
    except VolumeReadError:
        raise
    except (*DECODING_ERRORS, *NIBABEL_ERRORS) as error:
        if isinstance(error, MemoryError):
            raise VolumeReadError(
                f"{name} does not fit into memory. Crop it, or use a larger machine."
            ) from error
        raise VolumeReadError(str(explained(error, name))) from error


def _loaded(path: str, name: str) -> "SpatialImage":
    kind = stat.S_IFMT(os.stat(path).st_mode)
    if kind != stat.S_IFREG:
        raise VolumeReadError(
            f"{name} is {SPECIAL_FILES.get(kind, 'a special file')}, not a volume. Give the path of a regular file."
        )
    with quiet():
        try:
            image = nibabel.load(path)
        except ImageFileError:
            if is_volume_file(path):
                raise
            raise VolumeReadError(
                f"{name} is not a volume. Give a NIfTI file, which ends in .nii or .nii.gz."
            ) from None
    if not isinstance(image, SpatialImage):
        raise VolumeReadError(f"{name} is not a volume but {type(image).__name__}. Give a NIfTI file.")
    return image


@contextmanager
def quiet() -> Iterator[None]:
    """Context manager in which nibabel does not log the faults of headers, which are handled here."""
    logger = nibabel.imageglobals.logger
    was_disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was_disabled


def _stored_header(image: "SpatialImage") -> Any:
    """The header of a NIfTI as stored: nibabel repairs some fields while it reads. None for other formats."""
    if not isinstance(image, nibabel.Nifti1Pair):
        return None
    holder = image.file_map.get("header") or image.file_map["image"]
    if holder.filename is None or not os.path.exists(holder.filename) or image.in_memory:
        return image.header
    with holder.get_prepare_fileobj("rb") as file:
        return type(image.header).from_fileobj(file, check=False)


def _first_sound(affine: np.ndarray | None, header: Any) -> tuple[np.ndarray | None, list[str]]:
    """The affine that counts, and the codes of the forms that cannot be right; None where no form can."""
    if header is None:
        return (np.array(affine, dtype=np.float64), []) if is_sound(affine) else (None, [])
    faulty, found = [], None
    for code, read in (("sform_code", header.get_sform), ("qform_code", lambda: _qform(header))):
        if int(header[code]) <= 0:
            continue
        candidate = read()
        if not is_sound(candidate):
            faulty.append(code)
        elif found is None:
            found = candidate
    if found is None:
        plain = header.copy()
        plain["pixdim"][1:4] = np.abs(plain["pixdim"][1:4])  # signs of sizes mean nothing
        found = base if is_sound(base := plain.get_base_affine()) else None
    return None if found is None else np.array(found, dtype=np.float64), faulty


def _qform(header: Any) -> np.ndarray:
    """The matrix of the quaternion; of NaN if the quaternion cannot be one."""
    try:
        return header.get_qform()
    except (ValueError, *NIBABEL_ERRORS):
        return np.full((4, 4), np.nan)


def _sound_sizes(pixdim: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """`pixdim` with the lengths of the affine's axes in the place of sizes that cannot be right."""
    sizes, lengths = pixdim.copy(), np.linalg.norm(affine[:3, :3], axis=0)
    wrong = ~np.isfinite(sizes[1:4]) | (sizes[1:4] <= 0)
    sizes[1:4] = np.where(wrong, lengths, sizes[1:4])
    if sizes[0] not in (-1, 1):
        sizes[0] = 1  # qfac, the direction of the third axis of the qform: NIfTI reads 0 as 1
    return sizes
