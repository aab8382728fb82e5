"""Augmentation of training patches of volumes, after nnFormer and nnU-Net.

Legend: C channels; D, H, W slices, rows and columns of a patch.
"""

from dataclasses import dataclass

Range = tuple[float, float]


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
        noise_range: Range of the standard deviation of Gaussian noise, in units of the normalized image.
        noise_probability: Share of the patches with noise.
        blur_range: Range of the standard deviation of Gaussian blur, in voxels, drawn for each channel.
        blur_probability: Share of the patches with blur.
        brightness_range: Range of the factor of all values, drawn for each channel.
        brightness_probability: Share of the patches with another brightness.
        contrast_range: Range of the factor of the deviations from a channel's mean; values stay in its range.
        contrast_probability: Share of the patches with another contrast.
        zoom_range: Range of the simulated resolution, in that of the patch, drawn for each channel.
        zoom_probability: Share of the patches with a lower resolution.
        gamma_range: Range of the exponent of the values, which keep mean and standard deviation of each channel.
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

    @classmethod
    def none(cls) -> "VolumeAugmentation":
        """Changes nothing: patches as they lie in the volume."""
        names = [name for name in cls.__dataclass_fields__ if name.endswith("_probability")]
        return cls(**dict.fromkeys(names, 0.0), mirrored_axes=())
