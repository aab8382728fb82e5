"""Inference on volumes, with networks whose answer is known."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cases import each
from torch import nn

from contextseg.processing.image_processing_volume import VolumeImageProcessor
from contextseg.processing.inference import Inference, sides_of_images
from contextseg.processing.tiling import even_grid
from contextseg.processing.volumes.volume_geometry import VolumeGeometry
from contextseg.processing.volumes.volume_inference import volume_probabilities
from contextseg.processing.volumes.volume_reading import Volume, read_volume


class Points(nn.Module):
    """Looks at single voxels: logits are multiples of the value."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, **config):
        super().__init__()
        self.config, self.seen = SimpleNamespace(num_axes=3, num_channels=1, num_labels=3, **config), []

    def forward(self, pixel_values):
        self.seen.append(tuple(pixel_values.shape))
        return SimpleNamespace(logits=pixel_values * torch.tensor([-1.0, 0.5, 2.0]).view(1, 3, 1, 1, 1))


def whole(bands):
    bands = list(bands)
    return torch.cat([band.probabilities for band in bands], bands[0].axis + 1)


def expected(values):
    return Points()(values[None]).logits[0].softmax(0)


@each(
    ("size", "window"),
    [((9, 10, 11), (4, 5, 6)), ((9, 4, 21), (4, 8, 6)), ((1, 7, 6), (3, 4, 4)), ((5, 4, 3), (8, 9, 8))],
)
@each(
    "options", [{}, {"flip": True, "overlap": 0.25}, {"blend": "constant", "overlap": 0.0, "batch_size": 1}]
)
def test_windows_do_not_change_what_a_network_of_single_voxels_answers(size, window, options):
    values = torch.randn(1, *size)
    mine = whole(volume_probabilities(Points(), values, Inference(window, **options)))
    torch.testing.assert_close(mine, expected(values))


def test_a_volume_is_swept_along_the_axis_that_has_most_windows():
    bands = list(volume_probabilities(Points(), torch.randn(1, 8, 32, 16), Inference((8, 8, 8))))
    assert {band.axis for band in bands} == {1}
    assert [band.start for band in bands] == [0, 4, 8, 12, 16, 20, 24]


@each("axis", [0, 1, 2])
@each("nearest", [None, 0, 1, 2])
def test_resizing_in_bands_is_resizing_as_a_whole(axis, nearest):
    size = [6, 7, 5]
    size[axis] = 24
    values, target = torch.randn(1, *size), (11, 9, 8)
    mine = whole(volume_probabilities(Points(), values, Inference((4, 4, 4)), target, nearest))
    theirs = expected(values)
    if nearest is not None:
        old, new = size[nearest], target[nearest]
        index = np.floor((np.arange(new) + 0.5) * old / new).clip(0, old - 1)
        theirs = theirs.index_select(nearest + 1, torch.from_numpy(index).long())
    theirs = nn.functional.interpolate(theirs[None], target, mode="trilinear", align_corners=False)[0]
    torch.testing.assert_close(mine, theirs)


def test_without_a_window_the_crop_size_of_the_model_counts_else_the_whole_volume():
    for config, shape in (({"crop_size": (4, 6, 5)}, (4, 6, 5)), ({}, (9, 8, 7))):
        model = Points(**config)
        whole(volume_probabilities(model, torch.randn(1, 9, 8, 7), Inference()))
        assert {shape[2:] for shape in model.seen} == {shape}


def test_a_forward_pass_has_no_more_voxels_than_a_large_window():
    small, large = Points(), Points()
    whole(volume_probabilities(small, torch.zeros(1, 16, 16, 64), Inference((8, 8, 8), batch_size=3)))
    whole(volume_probabilities(large, torch.zeros(1, 64, 128, 192), Inference((64, 128, 128), batch_size=3)))
    assert {shape[0] for shape in small.seen} == {3}
    assert {shape[0] for shape in large.seen} == {1}


@each(
    ("options", "message"),
    [
        ({"window": (8, 8)}, "three axes"),
        ({"blend": "center"}, "is for images"),
        ({"scales": (0.5, 1.0)}, "scale 1"),
        ({"share_context": True}, "two scales"),
    ],
)
def test_settings_of_images_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        whole(volume_probabilities(Points(), torch.zeros(1, 4, 4, 4), Inference(**options)))


def test_windows_of_volumes_are_refused_for_images():
    with pytest.raises(ValueError, match="three sides"):
        sides_of_images(Inference((8, 8, 8)).window)


def test_any_source_gives_one_mask_which_goes_to_the_axes_of_its_file(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(np.random.default_rng(0).normal(size=(5, 6, 7)), np.diag([-1.0, 2, 3, 1]))
    nibabel.save(image, tmp_path / "x.nii.gz")
    volume, processor = read_volume(tmp_path / "x.nii.gz"), VolumeImageProcessor()
    mask, *others = (
        Inference((4, 4, 4))(Points(), processor, source)
        for source in (
            *(
                volume,
                tmp_path / "x.nii.gz",
                image,
                [image],
                volume.values,
                torch.from_numpy(volume.values[0]),
            ),
        )
    )
    assert (mask.shape, mask.dtype) == ((7, 6, 5), torch.int32)
    assert all(mask.equal(other) for other in others)
    values = np.asarray(image.dataobj)
    on_file = volume.geometry.to_file(mask.numpy())
    np.testing.assert_array_equal(on_file, np.where(values > values.mean(), 2, 0))


@each(
    ("source", "message"),
    [
        (b"", "from bytes"),
        (np.zeros((3, 4)), r"\(3, 4\).*must be \(D, H, W\)"),
        (np.zeros((3, 4, 5, 6)), "3 channels"),
        (Path(__file__), "test_volume_inference.py' is not a volume"),
        (
            Volume(
                np.zeros((1, 2, 2, 2)), (1, 1, 1), VolumeGeometry((2, 2, 2), np.eye(4), slice_axis="y"), "v"
            ),
            "'y'",
        ),
    ],
)
def test_what_is_no_volume_of_the_model_is_refused(source, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Inference((4, 4, 4))(Points(), VolumeImageProcessor(), source)


def test_the_steps_of_images_are_refused_for_volumes():
    processor = VolumeImageProcessor()
    for step in (
        lambda: Inference().inputs(processor, np.zeros((4, 4, 3))),
        lambda: Inference().mask(Points(), [torch.zeros(1, 1, 4, 4)], (4, 4)),
        lambda: list(Inference().probabilities(Points(), [torch.zeros(1, 1, 4, 4)], (4, 4))),
    ):
        with pytest.raises(ValueError, match="volumes"):
            step()


@each("overlap", [0.9, 0.7, 0.5, 0.3, 0.0])
def test_evenly_spaced_windows_cover_the_map_and_overlap_enough(overlap):
    for length in (8, 9, 23, 64):
        (starts,) = even_grid((length,), (8,), overlap, "constant").starts
        steps = np.diff(starts)
        assert starts[0] == 0
        assert starts[-1] + 8 == length
        assert all(step < 8 * (1 - overlap) + 1 for step in steps)
