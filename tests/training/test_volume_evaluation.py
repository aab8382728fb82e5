"""Scores of volumes by command are those on the grid of the file: for any storage order, slice axis and resampling."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cases import each

from contextseg import VolumeImageProcessor
from contextseg.scripts.evaluate import new_parser
from contextseg.training import volume_evaluation
from contextseg.training.volume_evaluation import evaluate_volumes

nibabel = pytest.importorskip("nibabel")
pytest.importorskip("scipy")
CLASSES = ["background", "organ (label 4)", "core"]
SPACING = (0.8, 0.9, 3.0)  # x, y, z
ORDERS = {"las": "LAS", "pir": "PIR", "ras": "RAS", "sal": "SAL"}  # name of a case -> its axes on disk


class Nearest(torch.nn.Module):
    """A segmenter that takes the class whose number is nearest to the value of a voxel."""

    def __init__(self):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        names = dict(enumerate(CLASSES))
        self.config = SimpleNamespace(id2label=names, num_labels=3, num_channels=1, crop_size=(8, 16, 16))
        self.device, self.dtype = self.anchor.device, self.anchor.dtype

    def forward(self, pixel_values):
        return SimpleNamespace(logits=-50 * (pixel_values - torch.arange(3.0).view(3, 1, 1, 1)) ** 2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """One anatomy stored in several orders; ids have gaps, a block is ignored, and values are class numbers."""
    root = tmp_path_factory.mktemp("Dataset002")
    values = np.zeros((24, 20, 14), np.float32)
    values[4:18, 4:16, 3:11], values[8:14, 7:13, 5:9] = 1, 2
    ids = np.array([0, 4, 9], np.uint8)[values.astype(int)]
    values[:2], ids[:2] = 2, 7
    for folder, array in (("imagesTr", values), ("labelsTr", ids)):
        (root / folder).mkdir()
        volume = nibabel.Nifti1Image(array, np.diag([*SPACING, 1.0]))
        for name, axes in ORDERS.items():
            orientation = nibabel.orientations.axcodes2ornt(axes)
            file = f"{name}_0000.nii.gz" if folder == "imagesTr" else f"{name}.nii.gz"
            nibabel.save(volume.as_reoriented(orientation), root / folder / file)
    labels = {"background": 0, "organ": [4, 9], "core": [9], "ignore": 7}
    content = {"channel_names": {"0": "CT"}, "labels": labels, "regions_class_order": [4, 9]}
    (root / "dataset.json").write_text(json.dumps({**content, "file_ending": ".nii.gz"}))
    return root


def evaluated(data, folder, monkeypatch, **options):
    """The rows of cases.csv by class and kind."""
    processor = VolumeImageProcessor(normalization="none", **options)
    monkeypatch.setattr(volume_evaluation, "open_model", lambda name: (Nearest(), processor, name))
    evaluate_volumes(new_parser().arguments(["x", "--data", str(data), "--output", str(folder), "--cpu"]))
    rows = {}
    with (folder / "cases.csv").open() as file:
        for row in csv.DictReader(file):
            rows.setdefault((row["class"], row["kind"]), []).append(row)
    return rows


def numbers(rows, key):
    return [float(row[key]) for row in rows]


@each("slice_axis", ["z", "y", "x"])
def test_perfect_masks_have_perfect_scores(data, tmp_path, monkeypatch, slice_axis):
    rows = evaluated(data, tmp_path, monkeypatch, slice_axis=slice_axis)
    assert list(rows) == [
        ("organ (label 4)", "class"),
        ("core", "class"),
        ("organ", "region"),
        ("core", "region"),
    ]
    for found in rows.values():
        assert [row["case"] for row in found] == list(ORDERS)
        assert numbers(found, "dice") == numbers(found, "nsd") == [1.0] * 4
        assert numbers(found, "hd95") == [0.0] * 4


@each(("axis", "slice_axis"), [(0, "z"), (1, "x"), (2, "y"), (2, "z")])
def test_distances_are_in_the_spacing_of_the_file(data, tmp_path, monkeypatch, axis, slice_axis):
    moved = data.with_name(f"{data.name}-{axis}{slice_axis}")
    for folder in ("imagesTr", "labelsTr"):
        (moved / folder).mkdir(parents=True)
    (moved / "dataset.json").write_bytes((data / "dataset.json").read_bytes())
    for path in data.glob("imagesTr/*"):
        (moved / "imagesTr" / path.name).write_bytes(path.read_bytes())
    for path in data.glob("labelsTr/*"):
        label = nibabel.load(path)
        place = nibabel.aff2axcodes(label.affine)
        along = next(k for k, code in enumerate(place) if code in ("LR", "AP", "IS")[axis])
        ids = np.asarray(label.dataobj)
        rolled = np.where(ids == 7, 7, np.roll(np.where(ids == 7, 0, ids), 1, along))
        nibabel.save(nibabel.Nifti1Image(rolled, label.affine), moved / "labelsTr" / path.name)
    rows = evaluated(moved, tmp_path, monkeypatch, slice_axis=slice_axis)
    assert numbers(rows["core", "class"], "hd95") == pytest.approx([SPACING[axis]] * 4)


def test_resampled_volumes_are_scored_on_their_own_grid(data, tmp_path, monkeypatch):
    rows = evaluated(data, tmp_path, monkeypatch, target_spacing=[2.0, 1.3, 1.1])
    for found in rows.values():
        assert [row["truth_voxels"] for row in found] == [found[0]["truth_voxels"]] * 4
        assert numbers(found, "dice") == pytest.approx(numbers(found, "dice")[:1] * 4, abs=1e-6)
        assert 0.8 < float(found[0]["dice"]) < 1
    assert rows["core", "class"][0]["truth_voxels"] == str(6 * 6 * 4)
