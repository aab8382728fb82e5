"""Rules of nnU-Net for the size of resampled volumes and for the axis that is resampled by itself."""

from cases import each

from contextseg.processing.volumes.volume_resampling import resampled_size, thick_axis


def test_halves_of_a_voxel_are_rounded_to_even_and_one_voxel_stays():
    assert resampled_size((5, 7, 1), (1, 1, 1), (2, 2, 9)) == (2, 4, 1)


@each(
    ("old", "new", "expected"),
    [
        ((5, 1, 1), (1, 1, 1), 0),
        ((1, 1, 1), (1, 5, 1), 1),
        ((1, 1, 5), (5, 1, 1), 2),  # the old spacing counts first
        ((3, 1, 1), (1, 1, 1), None),  # more than three times
        ((5, 5, 1), (1, 1, 9), None),  # equally coarse
    ],
)
def test_the_thick_axis_is_the_coarsest_of_a_strongly_anisotropic_spacing(old, new, expected):
    assert thick_axis(old, new) == expected
