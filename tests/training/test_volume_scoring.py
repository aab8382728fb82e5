"""Scores of volumes by command: cases that fail, stops, and the files that are written."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from contextseg.processing.image_reading import ImageReadError
from contextseg.processing.volumes.surface_distances import ndimage
from contextseg.processing.volumes.volume_scores import VolumeScores
from contextseg.scripts.evaluate import new_parser
from contextseg.training.case_records import CaseRecords
from contextseg.training.inference_options import check_task
from contextseg.training.volume_evaluation import evaluate_cases
from contextseg.training.volume_evaluation_files import report_volumes
from contextseg.training.volume_scoring import VolumeScoringRun

pytestmark = pytest.mark.skipif(ndimage is None, reason="scipy is not installed")
CLASSES = ["background", "liver", "left | kidney"]


class Cases:
    """Volumes whose prediction is the mask moved by the number of the case; one cannot be read."""

    def __init__(self, unreadable=(), unlabeled=()):
        self.unreadable, self.unlabeled = unreadable, unlabeled

    def __len__(self):
        return 4

    def case(self, index):
        return SimpleNamespace(name=f"case_{index}")

    def __getitem__(self, index):
        if index in self.unreadable:
            raise ImageReadError("the file is truncated")
        mask = np.zeros((6, 8, 10), np.int64)
        mask[1:4, 1:5, 1:5] = 1
        if index != 3:
            mask[4:6, 5:8, 2:4] = 2
        volume = SimpleNamespace(spacing=(5.0, 0.7, 0.8), moved=np.roll(mask, index, axis=2))
        return {"name": f"case_{index}", "image": volume, "mask": None if index in self.unlabeled else mask}


def moved(volume):
    return volume.moved


def new_scores(**options):
    return VolumeScores(CLASSES, regions={"both": (1, 2)}, **options)


def run(scores, folder=None, segment=moved, **faults):
    cases = Cases(**faults)
    return VolumeScoringRun(cases, segment, scores, CaseRecords(folder, 0), Accelerator(cpu=True)).run()


def test_case_that_fails_is_named_and_the_others_are_scored():
    scores = new_scores()
    assert run(scores, unreadable=[1]) == ["'case_1': the file is truncated"]
    assert [case.name for case in scores.cases] == ["case_0", "case_2", "case_3"]


def test_case_without_a_label_is_named():
    assert run(new_scores(), unlabeled=[2]) == ["'case_2': it has no label file, so it cannot be scored."]


def test_stopped_evaluation_goes_on_with_the_same_scores(tmp_path, caplog):
    expected, scores, calls = new_scores(), new_scores(), []
    run(expected)

    def stopping(volume):
        calls.append(volume)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return volume.moved

    with pytest.raises(KeyboardInterrupt, match="2 of 4 cases were scored.*again to go on"):
        run(new_scores(), tmp_path, stopping)
    with (tmp_path / "cases-0.jsonl").open("a") as file:
        file.write('[2, {"name": "ca')  # a killed process
    run(scores, tmp_path, stopping)
    assert len(calls) == 5
    assert "2 of 4 cases were scored before" in caplog.text
    np.testing.assert_equal(scores.compute(), expected.compute())
    assert [case.name for case in scores.cases] == [case.name for case in expected.cases]


def test_files_tell_every_case_and_class(tmp_path, capsys):
    scores = new_scores(averaged=["liver"])
    run(scores)
    report_volumes(scores.compute(), {"data": "d"}, scores, tmp_path)
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert (
        written["mean_dice"] == written["per_class"][0]["dice"] == np.mean([c.dice[0] for c in scores.cases])
    )
    assert [row["truth_cases"] for row in written["per_class"]] == [4, 3]
    assert written["per_region"][0]["name"] == "both"
    with (tmp_path / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["class"]) for row in rows[:4]] == [
        ("case_0", "liver"),
        ("case_0", "left | kidney"),
        ("case_0", "both"),
        ("case_1", "liver"),
    ]
    assert [row["kind"] for row in rows[:3]] == ["class", "class", "region"]
    assert float(rows[3]["hd95"]) == scores.cases[1].hd95[0] == pytest.approx(0.8)
    assert rows[10]["dice"] == "nan"  # case_3 has no kidney, in truth or prediction
    with (tmp_path / "evaluation.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["liver", "left | kidney", "both"]
    printed = capsys.readouterr().out
    assert "| **mean of regions** |" in printed
    assert "means over 4 cases, then over 1 class\n" in printed
    assert "lowest Dice: case_3 25.00 %" in printed


def test_report_says_what_hd95_leaves_out(tmp_path, capsys):
    scores = new_scores()
    run(scores, segment=lambda volume: np.where(volume.moved == 2, 0, volume.moved))
    report_volumes(scores.compute(), {}, scores, tmp_path)
    assert (
        "HD95 leaves out cases in which truth or prediction lacks the class: left \\| kidney 3"
        in capsys.readouterr().out
    )


class NamedCases(Cases):
    """Data as the command opens it; the model calls a class "Liver"."""

    classes, ignore_index, regions, label_map = CLASSES, 255, {"both": (1, 2)}, {0: 0, 1: 1, 2: 2}

    def case(self, index):
        return SimpleNamespace(
            name=f"case_{index}", images=(f"{index}_0000.nii.gz",), label=f"{index}.nii.gz"
        )


def evaluated(folder, *options, **faults):
    model = torch.nn.Linear(1, 1)
    names = dict(enumerate(["background", "Liver", "left | kidney"]))
    model.config = SimpleNamespace(id2label=names, num_labels=3)
    processor = SimpleNamespace(to_dict=dict)
    arguments = new_parser().arguments(["runs/x", "--data", "d:val", "--output", str(folder), *options])
    data = NamedCases(**faults)
    return evaluate_cases(arguments, model, processor, "runs/x/best", data, moved, Accelerator(cpu=True))


def test_options_of_the_command_choose_classes_and_rules(tmp_path):
    scores = evaluated(tmp_path, "--mean-classes", "liver", "--tolerance", "0.5")
    plain = new_scores(averaged=["liver"], tolerance=0.5)
    run(plain)
    assert scores["mean_nsd"] == plain.compute()["mean_nsd"]
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written["mean over"] == "Liver"
    assert written["surfaces"].endswith("NSD at 0.5 mm")
    assert not list(tmp_path.glob("*.parts"))
    voxels = evaluated(tmp_path, "--surface-rule", "nnformer")
    assert voxels["per_class"][0]["hd95"] == np.mean([0, 1, 2, 3])


def test_command_lists_the_cases_that_failed(tmp_path):
    assert evaluated(tmp_path, unreadable=[0])["not_scored"] == ["'case_0': the file is truncated"]
    assert json.loads((tmp_path / "evaluation.json").read_text())["cases"] == 3
    with pytest.raises(ValueError, match="none of the 4 cases can be scored"):
        evaluated(tmp_path, unreadable=range(4))


def test_options_of_volumes_are_refused_for_images():
    arguments = new_parser().arguments(["runs/x", "--data", "d", "--mean-classes", "liver"])
    with pytest.raises(ValueError, match="--mean-classes has no effect"):
        check_task(arguments, "segmentation")
