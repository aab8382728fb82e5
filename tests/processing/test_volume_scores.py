"""Scores of volumes: numbers of MONAI 1.6.1, identities, and the golden case of nnFormer's evaluation."""

import json
import math

import numpy as np
import pytest
import torch
from cases import each
from golden_cases import cases_of_kind

from contextseg.processing.volumes.surface_distances import ndimage, surface_distances
from contextseg.processing.volumes.volume_scores import VolumeScores

pytestmark = pytest.mark.skipif(ndimage is None, reason="scipy is not installed")
NAN = float("nan")


def blocks():
    """Class 1 inside, 2 at three borders, 3 missed, 4 invented; 5 is in neither."""
    truth = np.zeros((9, 14, 12), np.int64)
    prediction = truth.copy()
    truth[2:7, 3:10, 2:9], prediction[3:7, 2:9, 3:11] = 1, 1
    truth[0:3, 0:3, 0:3], prediction[0:2, 0:4, 0:3] = 2, 2
    truth[8, 11:14, 9:12] = 3
    prediction[0, 13, 5] = 4
    return prediction, truth


def stripes(size):
    """Classes 0 to 2 in stripes across all axes."""
    places = np.indices(size)
    return (places[0] + 2 * places[1] + places[2] // 2) % 3, (places[0] // 2 + places[1] + 3 * places[2]) % 3


# Made by `compute_hausdorff_distance(..., percentile=95, spacing=spacing)` and `compute_surface_dice(..., class_thresholds=[1.0] * 5,
# spacing=spacing)` of MONAI 1.6.1 on the one-hot masks, without background.
MONAI = {
    "blocks": (blocks(), (2.5, 0.8, 1.1), [2.624881, 2.5, NAN, NAN, NAN], [0.5508982, 0.82, 0.0, 0.0, NAN]),
    "stripes": (stripes((5, 7, 6)), (1.0, 1.0, 1.0), [1.0, 1.4142135], [0.9859155, 0.9485294]),
    "one slice": (stripes((1, 9, 8)), (5.0, 0.7, 0.7), [0.7, 1.2949998], [1.0, 0.9583333]),
    "thin": (stripes((40, 3, 2)), (0.4, 1.0, 3.0), [0.4299994, 0.8], [0.9875, 1.0]),
}


@each(("masks", "spacing", "hd95", "nsd"), MONAI)
def test_surface_scores_are_those_of_monai(masks, spacing, hd95, nsd):
    scores = VolumeScores([str(index) for index in range(len(hd95) + 1)])
    case = scores.update(*masks, spacing)
    assert case.hd95 == pytest.approx(hd95, rel=1e-5, nan_ok=True)
    assert case.nsd == pytest.approx(nsd, rel=1e-5, nan_ok=True)


def distances_one_by_one(prediction, truth, spacing):
    """Every surface voxel against every other one."""

    def surface(mask):
        padded = np.pad(mask, 1)
        outside = [~np.roll(padded, step, axis) for axis in range(mask.ndim) for step in (1, -1)]
        return np.argwhere(padded & np.logical_or.reduce(outside)) * np.asarray(spacing)

    pairs = np.linalg.norm(surface(prediction)[:, None] - surface(truth), axis=-1)
    return pairs.min(1), pairs.min(0)


@each("axes", [(11,), (6, 7), (3, 5, 4), (1, 4, 3), (2, 3, 2, 3)])
def test_distances_are_those_of_the_definition_for_any_number_of_axes(axes):
    generator, spacing = np.random.default_rng(3), np.linspace(0.5, 2.0, len(axes))
    prediction, truth = generator.random((2, *axes)) < 0.4
    ours = surface_distances(prediction, truth, spacing)
    for distances, expected in zip(ours, distances_one_by_one(prediction, truth, spacing), strict=True):
        np.testing.assert_allclose(distances, expected, rtol=1e-12)


@pytest.mark.parametrize("case", cases_of_kind("nnformer", "evaluation_metrics"))
def test_rule_of_nnformer_is_that_of_its_evaluation(case):
    classes = [str(index) for index in range(case.description["constructor"]["classes"] + 1)]
    scores = VolumeScores(classes, surface_rule="nnformer")
    ours = scores.update(
        case.tensors["prediction"], case.tensors["label"], (5.0, 0.7, 0.7)
    )  # in voxels all the same
    for name in ("dice", "hd95"):
        torch.testing.assert_close(torch.tensor(getattr(ours, name)).double(), case.tensors[f"out.{name}"])


def test_pooled_rule_takes_both_directions_together():
    truth = np.zeros((1, 1, 40), np.int64)
    truth[..., :20] = 1
    prediction = truth.copy()
    prediction[..., 30] = 1  # 1 of 21 surface voxels is 11 mm off
    cases = [VolumeScores("ab", surface_rule=rule).update(prediction, truth) for rule in ("max", "pooled")]
    assert [case.hd95 for case in cases] == [[0.0], [0.0]]
    prediction[..., 31] = 1  # 2 of 22: above 5 % of the prediction's, and below 5 % of all 42
    cases = [VolumeScores("ab", surface_rule=rule).update(prediction, truth) for rule in ("max", "pooled")]
    assert cases[0].hd95[0] > 10 > cases[1].hd95[0] == 0


def test_surfaces_one_voxel_apart_agree_at_a_tolerance_of_one_voxel():
    truth = np.zeros((4, 6, 30), np.int64)
    truth[1:3, 1:5, 11:20] = 1
    prediction = np.roll(truth, 1, axis=2)
    for step in (0.7, 1.0000001, 0.1 + 0.2):  # rounding must not decide
        tolerance = float(f"{step:.4g}")
        score = VolumeScores("ab", tolerance=tolerance).update(prediction, truth, (3.0, 1.0, step))
        assert score.nsd == [1.0]
        assert (
            VolumeScores("ab", tolerance=0.99 * tolerance).update(prediction, truth, (3.0, 1.0, step)).nsd[0]
            < 1
        )


def test_ignored_voxels_take_no_part():
    prediction, truth = blocks()
    void = np.zeros(truth.shape, bool)
    void[:, 9:, :] = True
    expected = VolumeScores("abcdef").update(np.where(void, 0, prediction), np.where(void, 0, truth))
    unlike = np.where(void, 77, prediction), np.where(void, -1, truth)
    ours = VolumeScores("abcdef", ignore_index=-1).update(*map(torch.as_tensor, unlike))
    for name in ("dice", "hd95", "nsd", "truth_voxels"):
        assert getattr(ours, name) == pytest.approx(getattr(expected, name), nan_ok=True)


def test_region_is_scored_as_the_union_of_its_classes():
    prediction, truth = blocks()
    scores = VolumeScores("abcdef", regions={"whole": (1, 2, 3), "core": (5,)})
    scores.update(prediction, truth, (2.0, 1.0, 1.0))
    union = VolumeScores("ab")
    union.update(*(np.isin(ids, (1, 2, 3)).astype(int) for ids in (prediction, truth)), (2.0, 1.0, 1.0))
    whole, core = scores.compute()["per_region"]
    assert whole == union.compute()["per_class"][0] | {"name": "whole"}
    assert math.isnan(core["dice"])
    assert scores.compute()["mean_region_dice"] == whole["dice"]


def test_means_are_over_cases_and_then_over_the_averaged_classes():
    scores = VolumeScores(["background", "liver", "spleen", "aorta"], averaged=["liver", "spleen"])
    truth = np.zeros((2, 4, 4), np.int64)
    truth[0, 0, :2], truth[1, 3, :2] = 1, 3
    scores.update(truth, truth, name="perfect")
    scores.update(
        np.where(truth == 1, 2, 0), truth, name="mistaken"
    )  # no liver, and a spleen that is not there
    means = scores.compute()
    assert [row["dice"] for row in means["per_class"]] == [0.5, 0.0, 0.5]
    assert [row["truth_cases"] for row in means["per_class"]] == [2, 0, 2]
    assert [row["predicted_cases"] for row in means["per_class"]] == [1, 1, 1]
    assert [row["hd95_cases"] for row in means["per_class"]] == [1, 0, 1]
    assert means["mean_dice"] == 0.25
    assert means["mean_hd95"] == 0.0  # of the liver, in the case where it is found
    assert [scores.case_mean(case) for case in scores.cases] == [1.0, 0.0]
    json.dumps(means)  # plain numbers


def test_large_class_ids_are_counted():
    classes, truth = [str(index) for index in range(300)], np.zeros((3, 4, 5), np.int32)
    truth[1], truth[2] = 255, 299
    case = VolumeScores(classes).update(truth, truth)
    assert (case.dice[254], case.nsd[298], case.truth_voxels[254]) == (1.0, 1.0, 20)


@each(
    ("options", "words"),
    [
        ({"surface_rule": "mean"}, "max, pooled, nnformer"),
        ({"tolerance": NAN}, "0 or more"),
        ({"averaged": ["liver"]}, "'liver'"),
        ({"regions": {"whole": [1, 9]}}, "0..1"),
    ],
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        VolumeScores("ab", **options)


@each("spacing", [(1.0, 1.0), (1.0, 0.0, 1.0), (1.0, 1.0, NAN)])
def test_wrong_spacings_are_refused(spacing):
    masks = np.zeros((2, 3, 4, 5), np.int64)
    with pytest.raises(ValueError, match="3 finite numbers above 0"):
        VolumeScores("ab").update(*masks, spacing)
