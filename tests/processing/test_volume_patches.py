"""Training patches of volumes: where they lie, what they depend on, and what augmentation keeps."""

import errno
import itertools
import os
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cases import each
from torch.utils.data import Dataset

from contextseg.processing.data.batches import SampleStream, training_loader
from contextseg.processing.data.volume_samples import TrainingPatches
from contextseg.processing.failures import concerns_every_file
from contextseg.processing.image_processing_volume import VolumeImageProcessor
from contextseg.processing.volumes import prepared_volumes
from contextseg.processing.volumes.patch_sampling import (
    draw_start,
    foreground_places,
    is_chosen,
    read_box,
)
from contextseg.processing.volumes.prepared_volumes import PreparedVolumes
from contextseg.processing.volumes.volume_augmentation import VolumeAugmentation
from contextseg.processing.volumes.volume_intensities import (
    blur,
    change_contrast,
    change_gamma,
    lower_resolution,
)
from contextseg.processing.volumes.volume_reading import Volume, VolumeReadError
from contextseg.processing.volumes.volume_turning import turned_patch, voxel_matrix

IGNORED, SIZE, CROP = 255, (10, 12, 14), (6, 8, 8)
ALWAYS = {name: 1.0 for name in VolumeAugmentation.__dataclass_fields__ if name.endswith("_probability")}
NEVER = dict.fromkeys(ALWAYS, 0.0)
TURNED = NEVER | {"rotation_probability": 1.0, "scale_probability": 1.0}


class Cases(Dataset):
    """Volumes of noise with a class 1, a rare class 2 and ignored voxels; the state of a file stands for each."""

    ignore_index, label_map, slice_axis, num_channels = IGNORED, {0: 0, 1: 1, 2: 2}, "z", 1

    def __init__(self, folder, count=3, unreadable=()):
        self.files, self.unreadable = [folder / f"case{i}.nii" for i in range(count)], unreadable
        for path in self.files:
            path.write_bytes(b"0")

    def __len__(self):
        return len(self.files)

    def case(self, index):
        return SimpleNamespace(name=self.files[index].stem, images=(self.files[index],), label=None)

    def geometry(self, index):  # noqa: ARG002
        return SimpleNamespace(size=SIZE, spacing=(1.0, 1.0, 1.0))

    def __getitem__(self, index):
        if index in self.unreadable:
            raise VolumeReadError(f"case{index} is cut off")
        values = np.random.default_rng(index).standard_normal((1, *SIZE)).astype(np.float32)
        mask = np.zeros(SIZE, dtype=np.int64)
        mask[2:8, 3:9, 4:10], mask[9, 11, 13], mask[0, 0, 0] = 1, 2, IGNORED
        image = Volume(values, (1.0, 1.0, 1.0), None, f"case{index}")
        return {"name": f"case{index}", "image": image, "mask": mask}


def patches(folder, data=None, **options):
    folder.mkdir(exist_ok=True)
    data = data or Cases(folder)
    return TrainingPatches(data, VolumeImageProcessor(), CROP, folder=folder / "prepared", **options)


def equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in ("pixel_values", "labels"))


def cut(values, labels, augmentation, size=CROP, spacing=(1, 1, 1), seed=0, start=(2, 2, 3)):
    options = {"spacing": spacing, "ignore_index": IGNORED, "random": np.random.default_rng(seed)}
    return augmentation.cut(values, labels, start, size, **options)


def ramp(axis, shape=(24, 24, 24)):
    return np.broadcast_to(np.arange(shape[axis]).reshape(np.roll([-1, 1, 1], axis)), shape)


def test_foreground_patches_are_centered_on_every_class_equally_often():
    labels = np.zeros((40, 40, 40), dtype=np.int16)
    labels[10:30, 10:30, 10:30], labels[20, 20, 20], labels[15, 15, 15] = 1, 2, IGNORED
    random = np.random.default_rng(0)
    places = foreground_places(labels, IGNORED, random)
    starts = [draw_start(labels.shape, CROP, random, places) for _ in range(400)]
    centers = Counter(labels[tuple(np.add(start, np.array(CROP) // 2))] for start in starts)
    assert set(centers) == {1, 2}
    assert 150 < centers[2] < 250
    assert len(set(starts)) > 150


def test_places_of_a_large_class_are_a_sample_of_its_voxels(monkeypatch):
    monkeypatch.setattr("contextseg.processing.volumes.patch_sampling.MOST_PLACES", 50)
    labels = np.ones((20, 20, 20), dtype=np.int16)
    labels[0] = 2
    places = foreground_places(labels, IGNORED, np.random.default_rng(0))
    assert Counter(places[:, 0].tolist()) == {1: 50, 2: 50}
    assert (labels[tuple(places[:, 1:].T)] == places[:, 0]).all()


@pytest.mark.parametrize("with_foreground", [False, True])
def test_patches_stay_inside_and_reach_every_place(with_foreground):
    random = np.random.default_rng(0)
    places = np.array([[1, d, h, w] for d, h, w in np.ndindex(SIZE)]) if with_foreground else np.empty((0, 4))
    starts = np.array([draw_start(SIZE, CROP, random, places) for _ in range(800)])
    assert starts.min(axis=0).tolist() == [0, 0, 0]
    assert starts.max(axis=0).tolist() == np.subtract(SIZE, CROP).tolist()


def test_a_small_volume_is_centered_between_padding():
    assert draw_start((3, 4, 5), (6, 4, 8), np.random.default_rng(0), np.array([[1, 2, 0, 0]])) == (-1, 0, -1)
    values = np.arange(1, 61.0).reshape(1, 3, 4, 5)
    box = read_box(values, (-1, 0, -1), (6, 4, 8), 0)
    np.testing.assert_array_equal(box[:, 1:4, :, 1:6], values)
    assert box.sum() == values.sum()


@each(("share", "chosen"), [(0.0, []), (0.25, [3, 7]), (0.5, [1, 3, 5, 7]), (1.0, list(range(8)))])
def test_the_share_of_foreground_is_spread_evenly_over_the_order_of_training(share, chosen, tmp_path):
    samples = patches(tmp_path, foreground_share=share, crops=2, seed=3)
    stream = SampleStream(len(samples), 4, seed=3, start=0, stop=2, crops=2)
    keys = [key for batch in stream for key in batch]
    assert [position for position, key in enumerate(keys) if samples.is_on_foreground(*key)] == chosen


def test_a_third_of_many_patches_is_centered_on_foreground():
    assert sum(is_chosen(position, 1 / 3) for position in range(3000)) == 1000


def test_patches_on_foreground_show_it(tmp_path):
    samples = patches(tmp_path, foreground_share=1.0, augmentation=VolumeAugmentation.none())
    for epoch in range(40):
        labels = samples[epoch, 0]["labels"]
        assert labels[3, 4, 4] == 1 or labels[-1, -1, -1] == 2
    elsewhere = patches(tmp_path, foreground_share=0.0, augmentation=VolumeAugmentation.none())
    centers = [elsewhere[epoch, 0]["labels"][3, 4, 4].item() for epoch in range(40)]
    assert 0 in centers


def test_patches_depend_on_seed_epoch_and_index_alone(tmp_path):
    first, second = patches(tmp_path / "a"), patches(tmp_path / "b")
    keys = list(itertools.product(range(3), range(3)))
    forward = {key: first[key] for key in keys}
    assert all(equal(forward[key], second[key]) for key in reversed(keys))
    assert not any(equal(forward[a], forward[b]) for a, b in itertools.combinations(keys, 2))
    assert not equal(forward[0, 0], patches(tmp_path / "a", seed=1)[0, 0])


def test_a_resumed_run_gets_the_same_batches(tmp_path):
    samples = patches(tmp_path)

    def batches(start):
        stream = SampleStream(len(samples), 2, seed=0, start=start, stop=5)
        return list(training_loader(samples, stream, workers=0, pin_memory=False))

    whole, rest = batches(0), batches(3)
    assert whole[0]["pixel_values"].shape == (2, 1, *CROP)
    assert whole[0]["labels"].dtype == torch.int64
    assert all(equal(a, b) for a, b in zip(whole[3:], rest, strict=True))


@pytest.mark.processes
def test_patches_do_not_depend_on_workers(tmp_path):
    samples = patches(tmp_path, augmentation=VolumeAugmentation(**ALWAYS))
    stream = SampleStream(len(samples), 2, seed=0, start=0, stop=4)
    alone, parallel = (list(training_loader(samples, stream, workers=n, pin_memory=False)) for n in (0, 2))
    assert all(equal(a, b) for a, b in zip(alone, parallel, strict=True))


def test_an_unreadable_volume_is_replaced_and_named(tmp_path):
    samples = patches(tmp_path, Cases(tmp_path, unreadable=(1,)))
    assert samples.volumes.make() == ["case1 is cut off"]
    assert samples.volumes.missing() == [1]
    sample = samples[0, 1]
    assert sample["name"] == "case2"
    assert sample["unreadable"] == ["case1 is cut off"]


def test_no_augmentation_returns_the_voxels():
    values = np.random.default_rng(0).standard_normal((2, *SIZE)).astype(np.float32)
    labels = np.arange(np.prod(SIZE)).reshape(SIZE)
    patch, ids = cut(values, labels, VolumeAugmentation.none())
    np.testing.assert_array_equal(patch, values[:, 2:8, 2:10, 3:11])
    np.testing.assert_array_equal(ids, labels[2:8, 2:10, 3:11])


def test_the_identity_resampled_is_the_identity():
    values = np.random.default_rng(0).standard_normal((1, *SIZE)).astype(np.float32)
    labels = np.arange(np.prod(SIZE)).reshape(SIZE)
    patch, ids = turned_patch(values, labels, (2, 2, 3), CROP, np.eye(3), IGNORED)
    np.testing.assert_allclose(patch, values[:, 2:8, 2:10, 3:11], atol=1e-4)
    np.testing.assert_array_equal(ids, labels[2:8, 2:10, 3:11])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_quarter_turn_is_a_rotation_of_the_array(axis):
    values = np.random.default_rng(0).standard_normal((1, 9, 9, 9)).astype(np.float32)
    degrees, plane = np.zeros(3), [other for other in range(3) if other != axis]
    degrees[axis] = 90
    matrix = voxel_matrix(degrees, (1, 1, 1), (1, 1, 1))
    patch, _ = turned_patch(values, np.zeros((9, 9, 9), int), (2, 2, 2), (5, 5, 5), matrix, IGNORED)
    turned = np.rot90(values[0, 2:7, 2:7, 2:7], -1, plane)
    np.testing.assert_allclose(patch[0], turned, atol=1e-4)


def test_rotation_keeps_lengths_in_millimeters():
    spacing = np.array([2.5, 1.0, 1.3])
    matrix = voxel_matrix((20, -30, 10), (1, 1, 1), spacing)
    offsets = np.random.default_rng(0).standard_normal((3, 10))
    before, after = (np.linalg.norm(spacing[:, None] * x, axis=0) for x in (offsets, matrix @ offsets))
    np.testing.assert_allclose(before, after)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_labels_stay_on_the_image(axis):
    """A ramp and its rounded values: linear and nearest resampling differ by half a step at most."""
    values = np.ascontiguousarray(ramp(axis), dtype=np.float32)
    for seed in range(6):
        augmentation = VolumeAugmentation(**TURNED, scale_range=(0.7, 1.1))
        patch, ids = cut(
            values[None], values.astype(np.int16), augmentation, (6, 6, 6), seed=seed, start=(9, 9, 9)
        )
        assert ids.shape == (6, 6, 6)
        assert len(np.unique(ids)) > 2
        assert np.abs(patch[0] - ids).max() < 0.501


def test_ids_are_never_mixed():
    labels = np.where(ramp(0) + ramp(1) < 20, 3, 17).astype(np.int16)
    for seed in range(5):
        _, ids = cut(np.zeros((1, 24, 24, 24), np.float32), labels, VolumeAugmentation(**TURNED), seed=seed)
        assert set(np.unique(ids)) <= {3, 17, IGNORED}


def test_a_turned_patch_inside_the_volume_is_full():
    values, labels = np.ones((1, 40, 40, 40), np.float32), np.ones((40, 40, 40), np.int16)
    for seed in range(5):
        patch, ids = cut(
            values, labels, VolumeAugmentation(**TURNED), (8, 8, 8), seed=seed, start=(16, 16, 16)
        )
        assert (ids == 1).all()
        np.testing.assert_allclose(patch, 1, atol=1e-5)


@pytest.mark.parametrize(("spacing", "depth"), [((5, 1, 1), 6), ((1, 1, 1), 1)])
def test_thick_slices_are_turned_within_their_plane(spacing, depth):
    values = np.ascontiguousarray(ramp(0), dtype=np.float32)
    augmentation = VolumeAugmentation(**TURNED, mirrored_axes=())
    for seed in range(4):
        start = (9, 8, 8)
        patch, _ = cut(values[None], values.astype(int), augmentation, (depth, 8, 8), spacing, seed, start)
        expected = np.broadcast_to(values[9 : 9 + depth, :8, :8], (depth, 8, 8))
        np.testing.assert_allclose(patch[0], expected, atol=1e-4)


def test_mirroring_twice_is_the_identity():
    values = np.random.default_rng(0).standard_normal((1, *CROP)).astype(np.float32)
    labels = (values[0] > 0).astype(np.int16)
    augmentation = VolumeAugmentation(**NEVER)
    mirrored = [cut(values, labels, augmentation, seed=seed, start=(0, 0, 0)) for seed in range(40)]
    assert len({patch.tobytes() for patch, _ in mirrored}) == 8
    for seed, (patch, ids) in enumerate(mirrored):
        np.testing.assert_array_equal(ids, patch[0] > 0)
        twice, _ = cut(patch, ids, augmentation, seed=seed, start=(0, 0, 0))
        np.testing.assert_array_equal(twice, values)


CHANGES = [
    lambda x: blur(x, 0.8),
    lambda x: lower_resolution(x, 0.6, (0, 1, 2)),
    lambda x: change_contrast(x, 1.2),
    lambda x: change_gamma(x, 0.8),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_constant_volume_stays_constant(change):
    np.testing.assert_allclose(change(np.full(SIZE, 1.7, np.float32)), 1.7, rtol=1e-5)


def test_gamma_keeps_mean_and_deviation():
    values = np.random.default_rng(0).standard_normal(SIZE).astype(np.float32)
    changed = change_gamma(values, 1.4)
    assert np.abs(changed - values).max() > 0.05
    np.testing.assert_allclose([changed.mean(), changed.std()], [values.mean(), values.std()], atol=1e-5)
    np.testing.assert_allclose(change_gamma(values, 1.0), values, atol=1e-5)


def test_lower_resolution_leaves_the_other_axes():
    values = np.ascontiguousarray(ramp(0, SIZE), dtype=np.float32)
    np.testing.assert_allclose(lower_resolution(values, 0.5, (1, 2)), values, atol=1e-4)
    assert np.abs(lower_resolution(values, 0.5, (0,)) - values).max() > 0.1


@pytest.mark.parametrize(
    "options", [{"blur_probability": 2}, {"gamma_range": (0, 1)}, {"mirrored_axes": (3,)}]
)
def test_wrong_settings_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        VolumeAugmentation(**options)


def test_prepared_volumes_are_kept_until_file_or_processor_change(tmp_path):
    data, folder = Cases(tmp_path), tmp_path / "prepared"
    volumes = PreparedVolumes(data, VolumeImageProcessor(), folder)
    volumes.make()
    before = sorted(path.name for path in folder.iterdir())
    assert len(before) == 3
    assert PreparedVolumes(data, VolumeImageProcessor(), folder).missing() == []
    assert len(PreparedVolumes(data, VolumeImageProcessor(normalization="none"), folder).missing()) == 3
    os.utime(data.files[1], ns=(0, 0))
    changed = PreparedVolumes(data, VolumeImageProcessor(), folder)
    assert changed.missing() == [1]
    changed.remove_stale()
    changed.make()
    assert len(list(folder.iterdir())) == 3
    assert sorted(path.name for path in folder.iterdir()) != before


def test_a_failed_write_leaves_nothing_and_names_the_full_disk(tmp_path, monkeypatch):
    volumes = PreparedVolumes(Cases(tmp_path), VolumeImageProcessor(), tmp_path / "prepared")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prepared_volumes, "write_array", full)
    with pytest.raises(OSError, match="No space") as error:
        volumes.make()
    assert concerns_every_file(error.value)
    assert list((tmp_path / "prepared").iterdir()) == []


def test_too_little_space_is_said_before_writing(tmp_path, monkeypatch):
    volumes = PreparedVolumes(Cases(tmp_path), VolumeImageProcessor(), tmp_path / "prepared")
    monkeypatch.setattr(prepared_volumes.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match="3 prepared volumes need 0 MB") as error:
        volumes.make()
    assert concerns_every_file(error.value)


def test_two_processes_may_prepare_the_same_volume(tmp_path):
    data, folder = Cases(tmp_path), tmp_path / "prepared"
    first, second = (PreparedVolumes(data, VolumeImageProcessor(), folder) for _ in range(2))
    first._prepare(0)
    second._prepare(0)
    assert len(list(folder.iterdir())) == 1
    np.testing.assert_array_equal(first[0].labels, second[0].labels)
