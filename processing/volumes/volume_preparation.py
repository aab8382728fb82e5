"""From a volume to what a network takes, and the frame that leads back to the file's voxels.

Crop to the voxels that are not 0 (on request), resample to the target spacing, normalize the intensities: in this
order, as nnU-Net did when nnFormer was trained.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

try:
    from scipy.ndimage import binary_fill_holes
except ImportError:  # extra [volumes]
    binary_fill_holes = None

from .volume_resampling import resample_image, resample_labels, resampled_size, thick_axis

NORMALIZATIONS = ("zscore", "ct", "none")
INTENSITIES = ("mean", "std", "percentile_00_5", "percentile_99_5")
SMALLEST_STD = 1e-8


@dataclass(frozen=True)
class VolumeFrame:
    """Where a prepared volume comes from, all along D, H, W.

    Args:
        size: Voxels before.
        box: The part that was not cropped.
        prepared_size: Voxels after.
        spacing: Millimeters before.
        prepared_spacing: Millimeters after.
        nearest: The axis to resample by nearest neighbor on the way back; None for linear along all.
    """

    size: tuple[int, int, int]
    box: tuple[slice, slice, slice]
    prepared_size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    prepared_spacing: tuple[float, float, float]
    nearest: int | None

    @property
    def cropped_size(self) -> tuple[int, int, int]:
        """Voxels in the box."""
        return tuple(side.stop - side.start for side in self.box)

    def restore_mask(self, mask: np.ndarray) -> np.ndarray:
        """Brings a mask (D, H, W) of the prepared size back to the size before; 0 outside the box."""
        restored = np.zeros(self.size, dtype=mask.dtype)
        restored[self.box] = resample_labels(mask, self.cropped_size, self.prepared_spacing, self.spacing)
        return restored


@dataclass(frozen=True, eq=False)
class PreparedVolume:
    """A volume as a network takes it.

    Args:
        values: (C, D, H, W) float32, normalized, at the target spacing.
        mask: (D, H, W) labels on the same voxels, or None.
        frame: The way back.
    """

    values: np.ndarray
    mask: np.ndarray | None
    frame: VolumeFrame


def frame_of(
    values: np.ndarray,
    spacing: Sequence[float],
    target_spacing: Sequence[float] | None,
    crop: bool,
    threshold: float,
) -> VolumeFrame:
    """Plans the preparation of (C, D, H, W)."""
    size = values.shape[1:]
    spacing = tuple(map(float, spacing))
    target = spacing if target_spacing is None else tuple(map(float, target_spacing))
    box = nonzero_box(values) if crop else tuple(slice(0, length) for length in size)
    inside = [side.stop - side.start for side in box]
    nearest = thick_axis(spacing, target, threshold)
    return VolumeFrame(size, box, resampled_size(inside, spacing, target), spacing, target, nearest)


def nonzero_box(values: np.ndarray) -> tuple[slice, slice, slice]:
    """Returns the smallest box of (C, D, H, W) with all voxels that are not 0; the whole volume if all are 0."""
    found = np.zeros(values.shape[1:], dtype=bool)
    for channel in values:
        found |= channel != 0
    places = [np.flatnonzero(found.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    if not len(places[0]):
        return tuple(slice(0, length) for length in found.shape)
    return tuple(slice(int(inside[0]), int(inside[-1]) + 1) for inside in places)


def resampled_body(values: np.ndarray, frame: VolumeFrame, threshold: float) -> np.ndarray:
    """Where a cropped volume (C, D, H, W) is not 0, holes filled, at the prepared size: (D, H, W) bool."""
    if binary_fill_holes is None:
        raise ImportError("crop_to_nonzero needs scipy. Install it with pip install 'contextseg[volumes]'.")
    body = binary_fill_holes((values != 0).any(axis=0)).astype(np.uint8)
    spacings = frame.spacing, frame.prepared_spacing
    return resample_labels(body, frame.prepared_size, *spacings, anisotropy_threshold=threshold) > 0


def prepared_values(values: np.ndarray, frame: VolumeFrame, threshold: float) -> np.ndarray:
    """(C, D, H, W) -> a new array, cropped and resampled, float32."""
    spacings = frame.spacing, frame.prepared_spacing
    return resample_image(
        values[(slice(None), *frame.box)], frame.prepared_size, *spacings, anisotropy_threshold=threshold
    )


def prepared_mask(mask: np.ndarray, frame: VolumeFrame, threshold: float) -> np.ndarray:
    """(D, H, W) -> a new array, cropped and resampled label by label."""
    spacings = frame.spacing, frame.prepared_spacing
    return resample_labels(mask[frame.box], frame.prepared_size, *spacings, anisotropy_threshold=threshold)


def normalize_channel(
    channel: np.ndarray, rule: str, intensity: Mapping[str, Any] | None, body: np.ndarray | None
) -> None:
    """Normalizes one channel (D, H, W) in place.

    Args:
        channel: float32.
        rule: "zscore": mean 0 and standard deviation 1; "ct": clipped to the percentiles of `intensity`, then
            its mean and standard deviation; "none".
        intensity: `mean`, `std`, `percentile_00_5` and `percentile_99_5` of the data set, for "ct".
        body: Voxels that count for "zscore"; the others become 0. Default: all.
    """
    if rule == "none":
        return
    if rule == "ct":
        np.clip(channel, intensity["percentile_00_5"], intensity["percentile_99_5"], out=channel)
        mean, std = intensity["mean"], intensity["std"]
    else:
        inside = True if body is None or not body.any() else body
        mean = channel.mean(dtype=np.float64, where=inside)
        std = channel.std(dtype=np.float64, where=inside)
    channel -= np.float32(mean)
    channel /= np.float32(max(std, SMALLEST_STD))
    if rule == "zscore" and body is not None:
        channel[~body] = 0
