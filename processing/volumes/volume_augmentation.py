"""Augmentation of training patches of volumes, after nnFormer and nnU-Net.

Legend: C channels; D, H, W slices, rows and columns of a patch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator

from .volume_intensities import add_noise, blur, change_contrast, change_gamma, lower_resolution
from .volume_turning import turned_patch, voxel_matrix

Range = tuple[float, float]
Change = tuple[float, float, Callable[[np.ndarray], np.ndarray]]


@dataclass(frozen=True)
class VolumeAugmentation:
    """Random changes of a patch and its labels, with the probabilities and ranges of nnFormer.

    In order: rotation and scaling in one resampling, noise, blur, brightness, contrast, low resolution, gamma of
    the inverted and of the plain image, mirroring. Factors of scaling, contrast and gamma are drawn below 1 and
    above 1 equally often, uniformly on either side.

    Args:
        rotation: Largest angle in degrees about each axis, in either direction.
        in_plane_rotation: Largest angle in degrees where only the slice plane turns.
        rotation_probability: Share of the patches that are rotated.
        scale_range: Range of the sides of the region that a patch shows, in sides of the patch; below 1 magnifies.
        scale_probability: Share of the patches that are scaled.
        noise_range: Range of the standard deviation of Gaussian noise, in units of the normalized image, drawn for
            each channel.
        noise_probability: Share of the patches with noise.
        blur_range: Range of the standard deviation of Gaussian blur, in voxels, drawn for each channel.
        blur_probability: Share of the patches with blur.
        brightness_range: Range of the factor of all values, drawn for each channel.
        brightness_probability: Share of the patches with another brightness.
        contrast_range: Range of the factor of the deviations from a channel's mean, drawn for each channel; values
            stay in the channel's range.
        contrast_probability: Share of the patches with another contrast.
        zoom_range: Range of the simulated resolution, in that of the patch, drawn for each channel.
        zoom_probability: Share of the patches with a lower resolution.
        gamma_range: Range of the exponent of the values on a scale from 0 to 1, drawn for each channel, which keeps its
            mean and standard deviation.
        gamma_probability: Share of the patches with a gamma change.
        inverted_gamma_probability: Share of the patches with a gamma change of the inverted image.
        channel_probability: Share of the channels that blur and low resolution change in the patches they concern.
        mirrored_axes: Axes that are mirrored, each with probability 1/2: 0 slices, 1 rows, 2 columns.
        anisotropy_threshold: Ratio of the largest to the smallest spacing above which patches are rotated,
            scaled and lowered in resolution only within the plane of the two finer axes.
    """

    rotation: float = 30.0
    in_plane_rotation: float = 180.0
    rotation_probability: float = 0.2
    scale_range: Range = (0.7, 1.4)
    scale_probability: float = 0.2
    noise_range: Range = (0.0, 0.1)
    noise_probability: float = 0.1
    blur_range: Range = (0.5, 1.0)
    blur_probability: float = 0.2
    brightness_range: Range = (0.75, 1.25)
    brightness_probability: float = 0.15
    contrast_range: Range = (0.75, 1.25)
    contrast_probability: float = 0.15
    zoom_range: Range = (0.5, 1.0)
    zoom_probability: float = 0.25
    gamma_range: Range = (0.7, 1.5)
    gamma_probability: float = 0.3
    inverted_gamma_probability: float = 0.1
    channel_probability: float = 0.5
    mirrored_axes: tuple[int, ...] = (0, 1, 2)
    anisotropy_threshold: float = 3.0

    def __post_init__(self) -> None:
        check_settings(vars(self))

    @classmethod
    def none(cls) -> "VolumeAugmentation":
        """Changes nothing: patches as they lie in the volume."""
        names = [name for name in cls.__dataclass_fields__ if name.endswith("_probability")]
        return cls(**dict.fromkeys(names, 0.0), mirrored_axes=())

    def cut(
        self,
        values: np.ndarray,
        labels: np.ndarray,
        start: Sequence[int],
        size: Sequence[int],
        *,
        spacing: Sequence[float],
        ignore_index: int,
        random: Generator,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cuts a patch and its labels from a volume and augments them.

        Args:
            values: (C, D, H, W) float32, normalized. Only what the patch shows is read.
            labels: (D, H, W) class indices.
            start: First slice, row and column of the patch, before it is turned about its center.
            size: Slices, rows and columns of the patch.
            spacing: (D, H, W) in millimeters.
            ignore_index: Label outside the volume, where the image is 0.
            random: Source of all draws.

        Returns:
            The patch (C, d, h, w) and its labels (d, h, w), new arrays.
        """
        axes = self._turned_axes(size, spacing)
        matrix = self._draw_matrix(axes, spacing, random)
        values, labels = turned_patch(values, labels, start, size, matrix, ignore_index)
        for probability, share, change in self._intensity_changes(axes, random):
            if random.random() < probability:
                values = np.stack([change(x) if random.random() < share else x for x in values])
        mirrored = [axis - 3 for axis in self.mirrored_axes if random.random() < 0.5]
        values, labels = np.flip(values, mirrored), np.flip(labels, mirrored)
        return np.ascontiguousarray(values), np.ascontiguousarray(labels)

    def _turned_axes(self, size: Sequence[int], spacing: Sequence[float]) -> tuple[int, ...]:
        """The axes within which patches are resampled: those of fine spacing and more than one voxel."""
        coarsest = self.anisotropy_threshold * min(spacing)
        return tuple(axis for axis in range(3) if spacing[axis] <= coarsest and size[axis] > 1)

    def _draw_matrix(
        self, axes: Sequence[int], spacing: Sequence[float], random: Generator
    ) -> np.ndarray | None:
        """Draws rotation and scale of a patch that is turned within `axes`."""
        degrees, scales = np.zeros(3), np.ones(3)
        if random.random() < self.rotation_probability and len(axes) > 1:
            fixed = [axis for axis in range(3) if axis not in axes]
            limit = self.in_plane_rotation if fixed else self.rotation
            degrees[fixed or list(axes)] = random.uniform(-limit, limit, len(fixed) or 3)
        if random.random() < self.scale_probability:
            scales[list(axes)] = draw_factor(self.scale_range, random)
        return voxel_matrix(degrees, scales, spacing)

    def _intensity_changes(self, axes: tuple[int, ...], random: Generator) -> list[Change]:
        """Each change of a channel with the share of the patches and of their channels that it concerns."""

        def contrast(x: np.ndarray) -> np.ndarray:
            return change_contrast(x, draw_factor(self.contrast_range, random))

        def gamma(x: np.ndarray) -> np.ndarray:
            return change_gamma(x, draw_factor(self.gamma_range, random))

        some = self.channel_probability
        return [
            (self.noise_probability, 1, lambda x: add_noise(x, random.uniform(*self.noise_range), random)),
            (self.blur_probability, some, lambda x: blur(x, random.uniform(*self.blur_range))),
            (
                self.brightness_probability,
                1,
                lambda x: x * np.float32(random.uniform(*self.brightness_range)),
            ),
            (self.contrast_probability, 1, contrast),
            (
                self.zoom_probability,
                some,
                lambda x: lower_resolution(x, random.uniform(*self.zoom_range), axes),
            ),
            (self.inverted_gamma_probability, 1, lambda x: -gamma(-x)),
            (self.gamma_probability, 1, gamma),
        ]


def draw_factor(limits: Range, random: Generator) -> float:
    """A factor below 1 or above 1, equally often where the range has both."""
    low, high = limits
    if low < 1 < high:
        low, high = (low, 1.0) if random.random() < 0.5 else (1.0, high)
    return random.uniform(low, high)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raises ValueError for a field of `VolumeAugmentation` outside its range."""
    for name, value in settings.items():
        if name.endswith("_probability") and not 0 <= value <= 1:
            raise ValueError(f"{name}={value} is not a probability. Give a number from 0 to 1.")
        if name.endswith("_range") and not 0 <= value[0] <= value[1]:
            raise ValueError(f"{name}={value} is not a range. Give two numbers, the smaller first.")
        if name in ("scale_range", "zoom_range", "gamma_range") and not value[0] > 0:
            raise ValueError(f"{name}={value} reaches down to 0. Give two numbers above it.")
        if name in ("rotation", "in_plane_rotation") and not 0 <= value <= 180:
            raise ValueError(f"{name}={value} is not an angle. Give degrees from 0 to 180.")
    if not set(settings["mirrored_axes"]) <= {0, 1, 2}:
        raise ValueError(
            f"mirrored_axes={settings['mirrored_axes']} are not axes of a volume. Give some of 0, 1, 2."
        )
