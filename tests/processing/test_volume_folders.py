"""Folders of volumes are read and checked as they lie on disk: layouts, ids, splits, and what is wrong with a case."""

import json
import re
import shutil

import numpy as np
import pytest
from cases import each

from contextseg.processing.data.datasets import open_data
from contextseg.processing.data.volume_datasets import is_volume_folder, open_volume_data
from contextseg.processing.data.volume_folders import VolumeCase
from contextseg.processing.data.volume_report import VolumeReport, check_volumes, range_text
from contextseg.processing.data.volume_splits import default_folds
from contextseg.processing.data.volume_statistics import volume_statistics
from contextseg.processing.data.volume_table import volume_table
from contextseg.scripts.check import main

nibabel = pytest.importorskip("nibabel")
SHAPE = (6, 5, 4)  # (x, y, z)
LABELS = {"background": 0, "liver": 1, "spleen": 2}


def organs(values=(0, 1, 2), shape=SHAPE):
    """Ids with 12 voxels of the second value and 4 of the third."""
    ids = np.full(shape, values[0], np.int64)
    ids[0, :3, :], ids[1, 0, :] = values[1], values[2]
    return ids


def save(path, values, spacing=(1, 1, 2), origin=0.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    nibabel.save(nibabel.Nifti1Image(values, affine, dtype=values.dtype), path)
    return path


def image(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).integers(-100, 100, shape).astype(np.int16)


def folder(root, cases=("a", "b"), channels=1, labels=None, values=(0, 1, 2), kind=np.uint8, **more):
    """A folder as of nnU-Net."""
    ending = more.get("file_ending", ".nii.gz")
    for number, case in enumerate(cases):
        for channel in range(channels):
            save(root / "imagesTr" / f"{case}_{channel:04d}{ending}", image(10 * number + channel))
        save(root / "labelsTr" / f"{case}{ending}", organs(values).astype(kind))
    content = {"channel_names": {str(k): f"MR{k}" for k in range(channels)}, "labels": labels or LABELS}
    (root / "dataset.json").write_text(json.dumps(content | {"file_ending": ending} | more))
    return root


def checked(root, **more) -> VolumeReport:
    return check_volumes(open_volume_data(root, needs_all_pairs=False), **more)


def voxels(report):
    return {row["name"]: row["pixels"] for row in report.rows()}


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_names_keep_their_dots_and_channels_are_grouped(tmp_path, ending):
    names = ("p", "p.1", "p.2", "q_0001_0000")
    data = open_volume_data(folder(tmp_path, names, 2, file_ending=ending))
    assert [data.case(index).name for index in range(len(data))] == list(names)
    assert data.case(3) == VolumeCase(
        "q_0001_0000",
        tuple(tmp_path / f"imagesTr/q_0001_0000_{channel:04d}{ending}" for channel in range(2)),
        tmp_path / f"labelsTr/q_0001_0000{ending}",
    )
    sample = data[1]
    assert sample["image"].values.shape == (2, 4, 5, 6)
    np.testing.assert_array_equal(sample["image"].values[1], image(11).transpose(2, 1, 0))
    np.testing.assert_array_equal(sample["mask"], organs().transpose(2, 1, 0))
    assert (data.channel_names, data.num_channels) == (("MR0", "MR1"), 2)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ((0, 4, 9), np.uint8),
        ((0, 300, 1256), np.int64),
        ((0, 300, 1256), np.uint16),
        ((0, 300, 1256), np.float64),
        ((-7, 0, 70000), np.int32),
        ((5, 3, 1), np.int16),
    ],
)
def test_any_ids_of_any_type_are_counted_for_their_names(tmp_path, values, kind):
    labels = dict(zip(("spleen", "background", "liver"), (values[2], values[0], values[1]), strict=True))
    report = checked(folder(tmp_path, values=values, labels=labels, kind=kind))
    assert not report.problems
    assert report.classes[0] == "background"
    assert voxels(report) == {"background": 2 * 104, "liver": 2 * 12, "spleen": 2 * 4}
    assert {row["name"]: row["images"] for row in report.rows()} == dict.fromkeys(LABELS, 2)


@pytest.mark.parametrize("ignored", [0, 1, 2])
def test_ignored_voxels_may_have_any_id(tmp_path, ignored):
    names = ["background", "liver", "spleen"]
    counts = [2 * 104, 2 * 12, 2 * 4]
    labels = {"ignore" if index == ignored else name: index for index, name in enumerate(names)}
    data = open_volume_data(folder(tmp_path, labels=labels))
    report = check_volumes(data)
    assert report.ignored_pixels == counts[ignored]
    assert voxels(report) == {n: counts[i] for i, n in enumerate(names) if i != ignored}
    assert (data[0]["mask"] == data.ignore_index).sum() == counts[ignored] // 2


def test_nested_regions_are_counted_over_all_their_ids(tmp_path):
    labels = {"background": 0, "whole": [1, 2], "core": [2]}
    data = open_volume_data(folder(tmp_path, labels=labels, regions_class_order=[1, 2]))
    assert data.regions == {"whole": (1, 2), "core": (2,)}
    report = check_volumes(data)
    assert voxels(report) == {"background": 2 * 104, "whole": 2 * 16, "core": 2 * 4}
    assert [row["images"] for row in report.rows()] == [2, 2, 2]


@pytest.mark.parametrize("order", [None, [1], "1,2"])
def test_regions_need_an_order_of_their_number(order):
    content = {"labels": {"background": 0, "whole": [1, 2], "core": 2}}
    with pytest.raises(ValueError, match="regions_class_order"):
        volume_table(content | ({} if order is None else {"regions_class_order": order}), "dataset.json")


def decathlon(root, channels=2, last=2):
    for number, case in enumerate(("BRATS_1", "BRATS_2")):
        count = last if number else channels
        save(root / f"imagesTr/{case}.nii.gz", np.stack([image(k) for k in range(count)], axis=-1))
        save(root / f"labelsTr/{case}.nii.gz", organs().astype(np.uint8))
        for part in ("imagesTr", "labelsTr"):
            (root / part / f"._{case}.nii.gz").write_bytes(b"\0\5\x16\7")
    save(root / "imagesTr/not_listed.nii.gz", image())
    training = [
        {"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in ("BRATS_1", "BRATS_2")
    ]
    modality = {str(k): f"T{k}" for k in range(channels)}
    labels = {"2": "core", "0": "background", "1": "edema"}
    content = {"modality": modality, "labels": labels, "training": training, "test": []}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def test_decathlon_lists_its_cases_and_ids_as_text(tmp_path):
    assert is_volume_folder(decathlon(tmp_path / "good") / "dataset.json")
    report = checked(tmp_path / "good/dataset.json")
    assert (report.num_samples, report.channels, report.problems) == (2, ["T0", "T1"], [])
    assert voxels(report) == {"background": 2 * 104, "edema": 2 * 12, "core": 2 * 4}
    report = checked(decathlon(tmp_path / "bad", last=3))
    assert "BRATS_2" in report.problems[0]
    assert "3 channels" in report.problems[0]
    assert voxels(report) == {"background": 104, "edema": 12, "core": 4}


@pytest.mark.parametrize("labels", ["labels", "masks"])
@pytest.mark.parametrize("place", ["data", "."])
def test_plain_folders_take_the_table_beside_or_above_them(tmp_path, labels, place):
    root = tmp_path / "data"
    save(root / "images" / "a.NII.GZ", image())
    save(root / labels / "a.nii", organs().astype(np.float32) * np.float32(1.0000002))
    (tmp_path / place / "classes.json").write_text('{"classes": ["background", "liver", "spleen"]}')
    data = open_volume_data(root)
    assert (data.classes, data.num_channels) == (list(LABELS), 1)
    np.testing.assert_array_equal(data[0]["mask"], organs().transpose(2, 1, 0))


def test_links_and_one_slice_and_a_fourth_axis_of_labels(tmp_path):
    flat = (6, 5, 1)
    save(tmp_path / "store/scan.nii.gz", image(shape=flat))
    save(tmp_path / "d/labels/scan.nii.gz", organs(shape=flat)[..., None].astype(np.uint8))
    (tmp_path / "d/images").mkdir()
    (tmp_path / "d/images/scan.nii.gz").symlink_to(tmp_path / "store/scan.nii.gz")
    report = checked(tmp_path / "d")
    assert not report.problems
    assert list(report.sizes) == [(1, 5, 6)]
    assert voxels(report) == {"background": 26, "label 1": 3, "label 2": 1}
    assert "no class names" in report.warnings[0]


def grid_faults():
    half = organs().astype(np.float32)
    half[0, 0, 0] = 0.5
    unknown = organs()
    unknown[0, 0, 0] = 77
    good = organs().astype(np.uint8)
    return {
        "moved": (good, {"origin": 5.0}, "b.nii.gz"),
        "spacing": (good, {"spacing": (1, 1, 3)}, "b.nii.gz"),
        "shape": (good[..., :3], {}, "b.nii.gz"),
        "half": (half, {}, "0.5"),
        "unknown": (unknown.astype(np.uint8), {}, "77 (1 voxel, first in 'b')"),
    }


@pytest.mark.parametrize("fault", grid_faults())
def test_a_wrong_label_is_named_and_the_others_are_counted(tmp_path, fault):
    values, place, expected = grid_faults()[fault]
    root = folder(tmp_path, ("a", "b", "c"))
    save(root / "labelsTr/b.nii.gz", values, **place)
    report = checked(root)
    assert len(report.problems) == 1
    assert expected in report.problems[0]
    assert voxels(report)["spleen"] == (12 if fault == "unknown" else 8)
    with pytest.raises(ValueError, match=r"'.*b"):
        open_volume_data(root)[1]


def test_rounding_of_the_affine_is_no_fault(tmp_path):
    root = folder(tmp_path)
    save(root / "labelsTr/b.nii.gz", organs().astype(np.uint8), origin=1e-6)
    assert not checked(root).problems


def missing_channel(root):
    (root / "imagesTr/b_0001.nii.gz").unlink()
    return "b (0001, MR1)"


def extra_channel(root):
    shutil.copy(root / "imagesTr/b_0001.nii.gz", root / "imagesTr/b_0002.nii.gz")
    return "b (0002)"


def no_image(root):
    for path in (root / "imagesTr").glob("b_*"):
        path.unlink()
    return "1 label has no image: b"


def no_label(root):
    (root / "labelsTr/b.nii.gz").unlink()
    return "1 case has no label: b"


def cut(root):
    path = root / "imagesTr/b_0001.nii.gz"
    path.write_bytes(path.read_bytes()[:-60])
    return "b_0001.nii.gz"


def channels_in_one_file(root):
    save(root / "imagesTr/b_0001.nii.gz", np.stack([image(), image()], axis=-1))
    return "b_0001.nii.gz"


@pytest.mark.parametrize(
    "fault", [missing_channel, extra_channel, no_image, no_label, cut, channels_in_one_file]
)
def test_an_incomplete_case_is_named_and_the_others_are_counted(tmp_path, fault):
    root = folder(tmp_path, ("a", "b"), channels=2)
    expected = fault(root)
    report = checked(root)
    assert len(report.problems) == 1
    assert expected in report.problems[0]
    assert voxels(report)["liver"] == 12


def test_two_files_of_one_name_are_refused(tmp_path):
    root = folder(tmp_path)
    data = json.loads((root / "dataset.json").read_text())
    del data["file_ending"]
    (root / "dataset.json").write_text(json.dumps(data))
    save(root / "imagesTr/a_0000.nii", image(9))
    problems = " ".join(checked(root).problems)
    assert "a_0000.nii'" in problems
    assert "a_0000.nii.gz" in problems
    with pytest.raises(ValueError, match=r"a_0000\.nii"):
        open_volume_data(root)


def test_labels_may_be_missing_and_images_may_not(tmp_path):
    root = folder(tmp_path)
    shutil.rmtree(root / "labelsTr")
    assert "no labels" in " ".join(checked(root).problems)
    for path in (root / "imagesTr").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="has no volumes"):
        open_volume_data(root)


@each("labels", ["labels", "masks"])
def test_volumes_are_not_taken_for_images(tmp_path, labels):
    save(tmp_path / "images/a.nii.gz", image())
    save(tmp_path / labels / "a.nii.gz", organs().astype(np.uint8))
    with pytest.raises(ValueError, match="holds volumes, but images are needed"):
        open_data(tmp_path)


def test_images_and_volumes_outside_of_their_folders_are_named(tmp_path):
    save(tmp_path / "scan.nii.gz", image())
    with pytest.raises(ValueError, match="not in the folders images/ and labels/: scan.nii.gz"):
        open_data(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images/p.png").touch()
    with pytest.raises(ValueError, match=r"no volumes but 1 image, such as p.png\. Use a model of images"):
        open_volume_data(tmp_path)


@pytest.mark.parametrize("without", [("b",), ("a", "b")])
def test_cases_without_foreground(tmp_path, without):
    root = folder(tmp_path)
    for case in without:
        save(root / f"labelsTr/{case}.nii.gz", np.zeros(SHAPE, np.uint8))
    report = checked(root)
    assert not report.problems
    assert bool(report.warnings) == (len(without) == 2)
    data = open_volume_data(root)
    if len(without) == 2:
        with pytest.raises(ValueError, match="no labeled foreground"):
            volume_statistics(data)
    else:
        assert len(volume_statistics(data).intensity) == 1


def test_statistics_are_those_of_every_tenth_labeled_voxel(tmp_path):
    data = open_volume_data(folder(tmp_path, channels=2))
    found = volume_statistics(data)
    assert found.sizes == [(4, 5, 6)] * 2
    assert found.spacings == [(2.0, 1.0, 1.0)] * 2
    for channel, intensity in enumerate(found.intensity):
        values = [
            image(10 * number + channel).transpose(2, 1, 0)[organs().transpose(2, 1, 0) > 0][::10]
            for number in range(2)
        ]
        values = np.concatenate(values)
        expected = [values.mean(), values.std(), *np.percentile(values, (0.5, 99.5))]
        np.testing.assert_allclose(list(intensity.values()), expected, rtol=1e-5)


@pytest.mark.parametrize("count", [5, 7, 23])
def test_folds_are_those_of_nnunet(tmp_path, count):
    model_selection = pytest.importorskip("sklearn.model_selection")
    names = [f"case_{number:02d}" for number in range(count)]
    folds = model_selection.KFold(5, shuffle=True, random_state=12345).split(names)
    expected = [{"train": [names[k] for k in train], "val": [names[k] for k in val]} for train, val in folds]
    assert default_folds(names[::-1], tmp_path) == expected


def test_splits_are_those_of_the_file(tmp_path):
    root = folder(tmp_path, ("a", "b", "c"))
    folds = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c"], "val": ["a.nii.gz"]}]
    (root / "splits_final.json").write_text(json.dumps(folds))
    save(root / "imagesTs/t_0000.nii.gz", image())
    names = {
        split: [case.name for case in open_volume_data(f"{root}:{split}").cases]
        for split in ("train", "val", "train@1", "val@1", "test")
    }
    assert names == {"train": ["a", "b"], "val": ["c"], "train@1": ["c"], "val@1": ["a"], "test": ["t"]}
    assert open_volume_data(f"{root}:test")[0]["mask"] is None
    assert is_volume_folder(f"{root}:val@1")
    with pytest.raises(ValueError, match="no fold 2"):
        open_volume_data(f"{root}:val@2")


def test_the_command_prints_what_a_run_plans(tmp_path, capsys):
    root = folder(tmp_path, channels=2)
    assert main([str(root), "--sample", "1"]) == 0
    text = capsys.readouterr().out
    for expected in (
        "2 cases, 1 of them checked",
        "MR0, MR1",
        "4x5x6",
        "2x1x1 mm",
        "plan     crops",
        "ready",
    ):
        assert expected in text
    (root / "labelsTr/b.nii.gz").write_bytes(b"no volume")
    assert main([str(root), "--json"]) == 1
    (report,) = json.loads(capsys.readouterr().out)
    assert report["samples"] == 2
    assert report["checked"] == 2
    assert "b.nii.gz" in report["problems"][0]
    assert report["spacings"] == [{"spacing": [2.0, 1.0, 1.0], "images": 1}]


def test_ranges_of_several_sizes_are_told_by_axis():
    report = VolumeReport("d", ["background"], 3)
    report.sizes.update([(1, 9, 5), (3, 7, 5), (2, 8, 5)])
    assert range_text(report.sizes) == "min 1x7x5, median 2x8x5, max 3x9x5"


@each(
    ("origin", "advice"),
    [("dataset.json", r"Add them to '.*dataset\.json'"), (None, "Correct the files, or give a dataset")],
)
def test_ids_without_a_class_are_counted_with_the_file_that_lacks_them(tmp_path, origin, advice):
    root = folder(tmp_path, values=(0, 1, 7))
    if origin is None:
        (root / "dataset.json").unlink()
    data = open_volume_data(root, classes=None if origin else list(LABELS))
    (problem,) = check_volumes(data).problems
    assert re.match(
        rf"the labels contain 1 id without a class: 7 \(8 voxels, first in 'a'\)\. {advice}", problem
    )
    with pytest.raises(ValueError, match=f"'b' has 1 id without a class: 7 .*{advice}"):
        data[1]


def test_one_case_is_not_called_cases(tmp_path):
    root = folder(tmp_path, cases=("a",))
    assert "1 case\n" in checked(root).text()
    save(root / "imagesTr/b_0000.nii.gz", image())
    assert checked(root).problems[0].startswith("1 case has no label: b.")
