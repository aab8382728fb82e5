"""Files of volumes, from finding them to masks on their own grids."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cases import each
from torch import nn

from contextseg.processing.image_reading import read_image
from contextseg.processing.inference import Inference
from contextseg.processing.prediction_files import find_jobs
from contextseg.processing.volumes.volume_jobs import find_volume_jobs
from contextseg.processing.volumes.volume_prediction import VolumePredictor, stored_ids
from contextseg.processing.volumes.volume_reading import read_label_volume, read_volume
from contextseg.processing.volumes.volume_writing import write_label_volume

nibabel = pytest.importorskip("nibabel")


class Thresholds(nn.Module):
    """Class 0 below 0.5, class 1 below 1.5, class 2 above."""

    device, dtype = torch.device("cpu"), torch.float32
    config = SimpleNamespace(num_axes=3, num_channels=1, num_labels=3, crop_size=(4, 4, 4))

    def forward(self, pixel_values):
        return SimpleNamespace(logits=torch.cat([-((pixel_values - k) ** 2) for k in range(3)], 1))


class Cropping:
    """Leaves out the first slice."""

    slice_axis, label_map = "z", {"0": 0, "7": 1, "300": 2, "9": "ignore"}

    def prepare(self, volume):
        size = volume.values.shape[1:]
        box = (slice(1, size[0]), slice(0, size[1]), slice(0, size[2]))
        frame = SimpleNamespace(size=size, box=box, nearest=None)
        return SimpleNamespace(values=volume.values[:, 1:].astype(np.float32), frame=frame)


def written(path, shape=(6, 5, 4), codes="LPS"):
    """Whole numbers from 0 to 2; returns them and the affine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(0).integers(0, 3, shape).astype(np.int16)
    turned = nibabel.orientations.axcodes2ornt(codes)
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (body, sign) in enumerate(turned):
        affine[int(body), axis] = sign * (axis + 1)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return values, affine


def jobs_of(folder, *names, channels=1, given=None):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    sources = [str(folder)] if given is None else [str(folder / name) for name in given]
    found = find_volume_jobs(sources, str(folder / "out"), channels)
    return {job.name: [path and path.name for path in job.channels] for job in found}


@each("codes", ["LPS", "RAS", "PIR"])
def test_masks_and_maps_lie_on_the_grid_of_the_file(tmp_path, codes):
    values, affine = written(tmp_path / "x.1.nii.gz", codes=codes)
    maps = ["confidence", "entropy", "probabilities"]
    predictor = VolumePredictor(Thresholds(), Cropping(), Inference(), maps=maps)
    (job,) = find_volume_jobs([str(tmp_path / "x.1.nii.gz")], str(tmp_path / "out"))
    predictor.run(job)
    assert all(target.is_file() for target in predictor.targets(job))
    mask = nibabel.load(tmp_path / "out/x.1.nii.gz")
    body = nibabel.orientations.aff2axcodes(affine).index("S" if "S" in codes else "I")
    cropped = [slice(None)] * 3
    cropped[body] = 0 if codes[body] == "S" else -1
    expected = np.array([0, 7, 300])[values]
    expected[tuple(cropped)] = 0
    np.testing.assert_array_equal(np.asarray(mask.dataobj), expected)
    np.testing.assert_array_equal(mask.affine, affine)
    probabilities = np.load(job.array()).astype(np.float32)
    np.testing.assert_array_equal(np.array([0, 7, 300])[probabilities.argmax(0)], expected)
    confidence = np.asarray(nibabel.load(job.target("confidence")).dataobj)
    np.testing.assert_allclose(confidence, probabilities.max(0), atol=1e-3)


def test_masks_keep_whole_names(tmp_path):
    assert set(jobs_of(tmp_path, "a.1.nii.gz", "b/a.1.nii", "c_0001.nii.gz", "d_0000.nii")) == {
        *("a.1.nii.gz", "b/a.1.nii.gz", "c_0001.nii.gz", "d_0000.nii.gz")
    }


def test_files_that_differ_in_their_ending_keep_it(tmp_path):
    assert set(jobs_of(tmp_path, "x.nii", "x.nii.gz")) == {"x.nii.nii.gz", "x.nii.gz.nii.gz"}


def test_files_of_one_channel_are_grouped_into_cases(tmp_path):
    names = ("p.1_0000.nii.gz", "p.1_0001.nii.gz", "q_0001_0000.nii.gz", "q_0001_0001.nii.gz", "r.nii.gz")
    assert jobs_of(tmp_path, *names, channels=2) == {
        "p.1.nii.gz": list(names[:2]),
        "q_0001.nii.gz": list(names[2:4]),
        "r.nii.gz": [],
    }


def test_masks_of_nnunet_folders_are_named_after_the_case(tmp_path):
    assert set(jobs_of(tmp_path, "imagesTs/x_0000.nii.gz")) == {"imagesTs/x.nii.gz"}


def test_the_first_channel_stands_for_those_beside_it(tmp_path):
    names = ["x_0000.nii.gz", "x_0001.nii.gz"]
    jobs_of(tmp_path, *names, channels=2)
    (job,) = find_volume_jobs([str(tmp_path / names[0])], str(tmp_path / "out"), 2)
    assert (job.name, job.what_to_read()) == ("x.nii.gz", [tmp_path / name for name in names])


def test_a_missing_channel_is_named(tmp_path):
    jobs_of(tmp_path, "x_0000.nii.gz", "x_0002.nii.gz", channels=3)
    (job,) = find_volume_jobs([str(tmp_path)], str(tmp_path / "out"), 3)
    with pytest.raises(ValueError, match=r"x_0000.* 3 channels.* _0001 is missing"):
        job.what_to_read()


@each(
    ("find", "name", "words"),
    [
        (
            find_volume_jobs,
            "a.png",
            r"no volumes in .*, but 1 image, such as a\.png\. The model takes volumes",
        ),
        (
            find_jobs,
            "a.nii.gz",
            r"no images in .*, but 1 volume, such as a\.nii\.gz\. The model takes images",
        ),
        (find_volume_jobs, "a.txt", "Known endings: .nii, "),
        (find_jobs, "a.txt", "Known endings: .apng, "),
    ],
)
def test_files_of_the_other_kind_are_named(tmp_path, find, name, words):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=words):
        find([str(tmp_path)], str(tmp_path / "out"))


def test_a_mask_never_replaces_its_volume(tmp_path):
    (tmp_path / "x.nii.gz").touch()
    with pytest.raises(ValueError, match="overwrite"):
        find_volume_jobs([str(tmp_path / "x.nii.gz")], str(tmp_path))


def test_a_volume_is_not_an_image(tmp_path):
    written(tmp_path / "x.nii.gz")
    with pytest.raises(ValueError, match="is a volume, not an image"):
        read_image(tmp_path / "x.nii.gz")


def test_stored_ids_are_those_of_the_label_map_in_the_smallest_type():
    assert stored_ids(None, 3).tolist() == [0, 1, 2]
    assert stored_ids({"5": 0, "4": 0, "1": "ignore", "40000": 1}, 2).tolist() == [5, 40000]
    assert [stored_ids({str(top): 1}, 2).dtype for top in (255, 256, 70000)] == [np.uint8, np.int16, np.int32]


def test_a_processor_of_images_is_refused():
    with pytest.raises(ValueError, match="is for images"):
        VolumePredictor(Thresholds(), SimpleNamespace(), Inference())


def test_masks_of_inference_are_written_as_they_are(tmp_path):
    written(tmp_path / "x.nii.gz")
    volume = read_volume(tmp_path / "x.nii.gz")
    mask = Inference()(Thresholds(), Cropping(), volume)
    write_label_volume(tmp_path / "mask.nii.gz", mask, volume.geometry)
    np.testing.assert_array_equal(read_label_volume(tmp_path / "mask.nii.gz", volume), mask.numpy())


def test_a_mask_of_an_array_has_no_grid_to_be_written_on(tmp_path):
    volume = read_volume(np.zeros((2, 3, 4)))
    with pytest.raises(ValueError, match="needs a geometry, which volumes of arrays do not have"):
        write_label_volume(tmp_path / "mask.nii.gz", volume.values[0], volume.geometry)
