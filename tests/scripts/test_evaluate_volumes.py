"""contextseg-evaluate on volumes: the scores of a plain loop, and options that are refused."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cases import each

from contextseg import NnFormerConfig, NnFormerForSemanticSegmentation, VolumeImageProcessor, VolumeScores
from contextseg.processing.data.volume_datasets import open_volume_data
from contextseg.processing.inference import Inference
from contextseg.processing.volumes.volume_inference import segment_volume
from contextseg.scripts.evaluate import main
from contextseg.training.evaluation_options import EvaluateArguments
from contextseg.training.volume_evaluation import new_scores

nibabel = pytest.importorskip("nibabel")
pytest.importorskip("scipy")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(1)
    names = {0: "background", 1: "liver", 2: "spleen"}
    config = NnFormerConfig.preset(
        "nano", id2label=names, label2id={name: key for key, name in names.items()}
    )
    folder = tmp_path_factory.mktemp("model")
    NnFormerForSemanticSegmentation(config).save_pretrained(folder)
    VolumeImageProcessor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """An nnU-Net folder of three cases with thick slices; "whole" is a region of its own."""
    root, generator = tmp_path_factory.mktemp("Dataset001"), np.random.default_rng(1)
    (root / "imagesTr").mkdir()
    (root / "labelsTr").mkdir()
    for name in "abc":
        label = np.zeros((20, 18, 10), np.uint8)
        label[3:9, 2:12, 2:6], label[12:16, 9:15, 4:8] = 1, 2 if name != "c" else 0
        image = label + generator.normal(size=label.shape)
        affine = np.diag([-0.8, -0.9, 5.0, 1.0])
        nibabel.save(
            nibabel.Nifti1Image(image.astype(np.float32), affine), root / f"imagesTr/{name}_0000.nii.gz"
        )
        nibabel.save(nibabel.Nifti1Image(label, affine), root / f"labelsTr/{name}.nii.gz")
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "spleen": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def test_scores_are_those_of_a_plain_loop_over_the_cases(model, data, tmp_path):
    options = ["--output", str(tmp_path), "--window", "8x16x16", "--cpu", "--tolerance", "2"]
    assert main([str(model), "--data", str(data), *options]) == 0
    written = json.loads((tmp_path / "evaluation.json").read_text())
    segmenter = NnFormerForSemanticSegmentation.from_pretrained(model).eval()
    scores = VolumeScores(["background", "liver", "spleen"], tolerance=2.0)
    for sample in open_volume_data(data):
        volume, inference = sample["image"], Inference(window=(8, 16, 16))
        mask = segment_volume(segmenter, VolumeImageProcessor.from_pretrained(model), volume, inference)
        scores.update(mask, sample["mask"], (5.0, 0.9, 0.8), sample["name"])
    expected = scores.compute()
    for key in ("mean_dice", "mean_hd95", "mean_nsd"):
        assert written[key] == pytest.approx(expected[key], nan_ok=True)
    assert [row["truth_cases"] for row in written["per_class"]] == [3, 2]
    assert (tmp_path / "cases.csv").read_text().startswith("case,class,kind,dice,hd95,nsd")


def test_damaged_case_is_named_and_the_others_are_scored(model, data, tmp_path, capsys):
    path = data / "labelsTr/b.nii.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    code = main([str(model), "--data", str(data), "--output", str(tmp_path), "--cpu"])
    path.write_bytes(whole)
    assert code == 1
    assert "b.nii.gz" in capsys.readouterr().err
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert (written["cases"], len(written["not_scored"])) == (2, 1)


@each(
    ("options", "words"),
    [
        (["--boundary-band", "3"], "--boundary-band has no effect"),
        (["--workers", "2"], "--workers has no effect on volumes"),
        (["--mean-classes", "liver", "aorta"], "no class 'aorta'"),
        (["--scales", "0.5,1"], "--scales has no effect"),
        (["--blend", "center"], "blend='center' is for images"),
        (["--window", "16x16"], "volumes have three axes"),
        (["--tolerance", "2", "--surface-rule", "nnformer"], "--tolerance has no effect"),
        (["--num-channels", "2"], "the model takes 1 channel\\."),
    ],
)
def test_options_without_effect_are_refused(model, data, tmp_path, options, words):
    with pytest.raises(SystemExit, match=words):
        main([str(model), "--data", str(data), "--output", str(tmp_path), "--cpu", *options])


@each(("of_data", "scored"), [({}, "all"), ({"both": (1, 2)}, "both")])
def test_regions_of_the_model_are_scored_where_the_data_has_none(of_data, scored):
    options = EvaluateArguments("model", data="data")
    data = SimpleNamespace(ignore_index=255, regions=of_data)
    scores = new_scores(options, ["background", "liver", "spleen"], data, {"all": (1, 2)})
    assert [structure.name for structure in scores.structures if structure.is_region] == [scored]
