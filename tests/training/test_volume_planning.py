from math import prod

import numpy as np
import pytest
from cases import each

from contextseg.training.volume_planning import CELLS, Given, plan_volumes

DATA_SETS = {  # size and spacing (D, H, W) of a typical volume
    "abdominal CT": ((148, 512, 512), (3, 0.76, 0.76)),
    "cardiac MRI": ((10, 256, 216), (10, 1.56, 1.56)),
    "brain MRI": ((138, 170, 138), (1, 1, 1)),
    "hippocampus": ((35, 50, 35), (1, 1, 1)),
    "prostate": ((20, 320, 320), (3.6, 0.62, 0.62)),
    "slices along y": ((512, 30, 512), (0.7, 4, 0.7)),
    "one slice": ((1, 512, 512), (1, 1, 1)),
    "a few voxels": ((3, 4, 5), (1, 1, 1)),
    "one voxel": ((1, 1, 1), (2, 2, 2)),
    "micro-CT": ((2000, 2000, 2000), (0.01, 0.01, 0.01)),
}


def planned(name, **given):
    size, spacing = DATA_SETS[name]
    return plan_volumes([size] * 3, [spacing] * 3, Given(**given))


def test_abdominal_ct_gets_the_published_network():
    plan = planned("abdominal CT")
    assert (plan.crop_size, plan.patch_size, plan.batch_size) == ((64, 128, 128), (2, 4, 4), 2)
    assert plan.strides == ((2, 2, 2),) * 3
    assert plan.window_size == ((4, 4, 4), (4, 4, 4), (8, 8, 8), (4, 4, 4))


def test_brain_mri_gets_the_published_network():
    plan = planned("brain MRI")
    assert (plan.crop_size, plan.patch_size, plan.batch_size) == ((128, 128, 128), (4, 4, 4), 2)


def test_a_few_thick_slices_are_kept_whole_and_not_joined_by_the_embedding():
    plan = planned("cardiac MRI")
    assert (plan.crop_size, plan.patch_size) == ((10, 256, 224), (1, 4, 4))
    assert [grid[0] for grid in plan.grids()] == [10, 5, 5, 5]


def test_small_volumes_get_small_patches_so_that_there_are_windows_to_connect():
    plan = planned("hippocampus")
    assert (plan.crop_size, plan.patch_size) == ((40, 64, 40), (2, 2, 2))
    assert prod(plan.grids()[0]) > 100 * prod(plan.window_size[0])
    assert plan.batch_size == 5


@each("name", list(DATA_SETS))
def test_crops_are_whole_cells_and_of_bounded_size(name):
    plan = planned(name)
    assert all(side % cells == 0 for side, cells in zip(plan.crop_size, plan.step, strict=True))
    assert prod(plan.grids()[0]) <= 1.25 * CELLS
    assert 2 <= plan.batch_size <= 8
    assert len(plan.strides) + 1 == len(plan.window_size) == len(plan.grids()) == 4
    for window, grid in zip(plan.window_size, plan.grids(), strict=True):
        assert all(side <= max(cells, 4) for side, cells in zip(window, grid, strict=True))


def test_the_axis_of_the_thickest_slices_comes_first():
    plan = planned("slices along y")
    assert (plan.slice_axis, plan.target_spacing, plan.size) == ("y", (4, 0.7, 0.7), (30, 512, 512))
    assert planned("slices along y", slice_axis="z").target_spacing == (0.7, 4, 0.7)
    assert planned("brain MRI").slice_axis == "z"


def test_thick_slices_of_different_spacing_are_resampled_to_the_thinner_ones():
    spacings = [(5, 0.5, 0.5)] * 8 + [(2, 0.5, 0.5)] * 2
    assert plan_volumes([(20, 512, 512)] * 10, spacings).target_spacing == (2, 0.5, 0.5)
    isotropic = [(1.2, 1, 1)] * 8 + [(1, 1, 1)] * 2
    assert plan_volumes([(100, 100, 100)] * 10, isotropic).target_spacing == (1.2, 1, 1)


def test_the_typical_size_is_that_after_resampling():
    assert planned("abdominal CT", target_spacing=(1.5, 1.52, 0.76)).size == (296, 256, 512)


GIVEN = {
    "target_spacing": (2.0, 1.0, 1.0),
    "crop_size": (32, 64, 96),
    "patch_size": (4, 4, 4),
    "strides": ((1, 2, 2), (2, 2, 2), (2, 2, 2)),
    "window_size": ((2, 4, 4),) * 4,
    "batch_size": 3,
    "slice_axis": "x",
}


@each("name", list(GIVEN))
def test_what_is_given_is_not_planned(name):
    assert getattr(planned("abdominal CT", **{name: GIVEN[name]}), name) == GIVEN[name]


def test_a_plan_that_is_given_again_stays_the_same():
    """A resumed run, or one from a run.json, has the planned options as given ones."""
    random = np.random.default_rng(0)
    geometries = [(2 ** random.uniform(0, 10, 3), 10 ** random.uniform(-1, 1, 3)) for _ in range(200)]
    for size, spacing in [*DATA_SETS.values(), *geometries]:
        volumes = [tuple(map(int, size))], [tuple(map(float, spacing))]
        plan = plan_volumes(*volumes)
        again = Given(
            slice_axis=plan.slice_axis,
            target_spacing=plan.target_spacing,
            crop_size=plan.crop_size,
            batch_size=plan.batch_size,
        )
        assert plan_volumes(*volumes, again) == plan


def test_a_crop_of_broken_cells_is_refused_with_the_nearest_one():
    with pytest.raises(ValueError, match="--crop-size 60x128x128 .* 16x32x32 voxels.* such as 64x128x128"):
        planned("abdominal CT", crop_size=(60, 128, 128))


def test_a_network_that_is_given_pads_crops_of_broken_cells():
    acdc = {"patch_size": (1, 4, 4), "strides": ((1, 2, 2), (2, 2, 2), (2, 2, 2))}
    plan = planned("cardiac MRI", crop_size=(14, 160, 160), **acdc)
    assert plan.grids() == [(14, 40, 40), (14, 20, 20), (7, 10, 10), (4, 5, 5)]


def test_a_plan_is_told_in_three_lines():
    spacing, crops, network = planned("abdominal CT").lines()
    assert spacing.startswith(
        "spacing: 3x0.76x0.76 mm, slices along z; a typical volume then has 148x512x512"
    )
    assert crops == "crops: 64x128x128 voxels, 2 in a batch"
    assert "patches of 2x4x4 voxels; strides 2x2x2, 2x2x2, 2x2x2; grids" in network
    assert "grids 32x32x32, 16x16x16, 8x8x8, 4x4x4; windows 4x4x4, 4x4x4, 8x8x8, 4x4x4" in network
