"""Scores: identities, and the Trainer hooks' memory."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from contextseg.processing import logits_to_masks, metrics
from contextseg.processing.boundary_metrics import BoundaryF, BoundaryIoU, add_boundaries
from contextseg.processing.metrics import (
    ConfusionMatrix,
    TrainerScores,
    reduce_logits,
    scores_table,
    without_nan,
)


@pytest.fixture
def pair():
    """Three classes, 255 ignored; the prediction is often right."""
    torch.manual_seed(0)
    labels = torch.randint(0, 3, (2, 19, 23))
    prediction = torch.where(torch.rand(labels.shape) < 0.6, labels, torch.randint(0, 3, labels.shape))
    labels[:, :4] = 255
    return prediction, labels


def scores_of(prediction, labels, num_labels=3):
    confusion = ConfusionMatrix(num_labels)
    confusion.update(prediction, labels)
    return confusion.compute()


def test_a_perfect_prediction_scores_one(pair):
    _, labels = pair
    scores = scores_of(labels.clamp(max=2), labels)
    assert [scores[key] for key in ("mean_iou", "mean_dice", "mean_accuracy", "pixel_accuracy")] == [1.0] * 4


def test_scores_equal_the_definition_on_sets_of_pixels(pair):
    prediction, labels = pair
    valid = labels != 255
    for index, row in enumerate(scores_of(*pair)["per_class"]):
        truth, found = (labels == index) & valid, (prediction == index) & valid
        shared = (truth & found).sum().item()
        assert row["iou"] == pytest.approx(shared / (truth | found).sum().item())
        assert row["dice"] == pytest.approx(2 * shared / (truth.sum() + found.sum()).item())
        assert row["accuracy"] == pytest.approx(shared / truth.sum().item())
        assert row["precision"] == pytest.approx(shared / found.sum().item())
        assert row["support"] == truth.sum().item()


def test_the_prediction_under_ignored_pixels_does_not_count(pair):
    prediction, labels = pair
    elsewhere = torch.where(labels == 255, 2 - prediction, prediction)
    assert scores_of(elsewhere, labels) == scores_of(prediction, labels)


def test_padding_with_minus_100_does_not_count(pair):
    padded = [F.pad(ids, (0, 5, 0, 3), value=-100) for ids in pair]
    assert scores_of(*padded) == scores_of(*pair)


def test_a_class_that_never_occurs_is_nan_and_left_out_of_the_mean(pair):
    with_absent_class, without = scores_of(*pair, num_labels=4), scores_of(*pair)
    assert math.isnan(with_absent_class["per_class"][3]["iou"])
    assert with_absent_class["mean_iou"] == without["mean_iou"]


def test_a_class_that_is_predicted_but_never_labeled_has_iou_zero():
    scores = scores_of(torch.tensor([[0, 1]]), torch.tensor([[0, 0]]), num_labels=2)
    assert scores["per_class"][1]["iou"] == 0.0
    assert scores["mean_iou"] == 0.25
    assert scores["mean_accuracy"] == 0.5  # class 1 has no labeled pixel to be right about


def test_nothing_but_ignored_pixels_gives_nan_everywhere():
    scores = scores_of(torch.zeros(4, 4, dtype=torch.long), torch.full((4, 4), 255))
    assert math.isnan(scores["mean_iou"])
    assert math.isnan(scores["pixel_accuracy"])


def test_matrices_of_two_halves_add_up_to_the_whole(pair):
    halves = [ConfusionMatrix(3), ConfusionMatrix(3)]
    for index, half in enumerate(halves):
        half.update(pair[0][index], pair[1][index])
    assert (halves[0] + halves[1]).compute() == scores_of(*pair)


def test_matrices_of_other_classes_do_not_add_up():
    with pytest.raises(ValueError, match="3 classes .* 4 classes"):
        ConfusionMatrix(3) + ConfusionMatrix(4)


def test_reduction_over_processes_leaves_the_own_counts_alone(pair):
    confusion = ConfusionMatrix(3)
    confusion.update(*pair)
    total = confusion.reduced(lambda matrix: matrix.mul_(2))
    torch.testing.assert_close(total.matrix, 2 * confusion.matrix)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int64])
def test_every_integer_type_counts_alike(pair, dtype):
    arrays = [ids.numpy().astype(dtype) for ids in pair]
    assert scores_of(*arrays) == scores_of(*pair)


def test_a_negative_ignore_index_is_not_mistaken_for_255():
    confusion = ConfusionMatrix(256, ignore_index=-1)
    confusion.update(np.full((2, 2), 255, np.uint8), np.full((2, 2), 255, np.uint8))
    assert confusion.matrix[255, 255] == 4


def test_counting_in_pieces_equals_counting_at_once(pair, monkeypatch):
    whole = scores_of(*pair)
    monkeypatch.setattr(metrics, "PIXELS_AT_ONCE", 7)
    assert scores_of(*pair) == whole


def test_an_unknown_id_is_named_with_its_count():
    with pytest.raises(ValueError, match=r"labels have the class ids 7 \(3 pixels\)"):
        scores_of(torch.zeros(1, 3, dtype=torch.long), torch.full((1, 3), 7))


def test_shapes_that_differ_raise():
    with pytest.raises(ValueError, match="resize logits"):
        scores_of(torch.zeros(2, 2, dtype=torch.long), torch.zeros(4, 4, dtype=torch.long))


def test_logits_in_place_of_ids_raise():
    with pytest.raises(ValueError, match="argmax"):
        scores_of(torch.zeros(4, 4), torch.zeros(4, 4, dtype=torch.long))


def test_reduced_logits_are_the_argmax_at_the_labels_size(monkeypatch):
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 5, 4, 6), torch.zeros(2, 15, 22)
    expected = F.interpolate(logits, size=(15, 22), mode="bilinear").argmax(1)
    monkeypatch.setattr(logits_to_masks, "CHUNK_VALUES", 2 * 15 * 22 * 2)  # two classes at a time
    classes = reduce_logits((logits, "hidden states"), labels)
    assert classes.dtype == torch.int32
    torch.testing.assert_close(classes.long(), expected)


def test_trainer_scores_of_batches_equal_those_of_the_whole_set(pair):
    scores = TrainerScores(3, names=["a", "b", "c"])
    batches = [SimpleNamespace(predictions=p[None], label_ids=y[None]) for p, y in zip(*pair, strict=True)]
    assert scores(batches[0], compute_result=False) == {}
    streamed = scores(batches[1], compute_result=True)
    whole = SimpleNamespace(predictions=pair[0].numpy(), label_ids=pair[1].numpy())
    assert scores(whole) == streamed  # the first call left nothing behind
    assert streamed["iou_b"] == scores_of(*pair)["per_class"][1]["iou"]


def test_the_table_has_a_line_for_each_class_and_a_dash_for_an_absent_one(pair):
    confusion = ConfusionMatrix(4)
    confusion.update(*pair)
    lines = scores_table(confusion.compute(["sky", "road", "tree", "absent"])).splitlines()
    assert len(lines) == 7
    assert lines[5].split("|")[2].strip() == "-"
    assert len({len(line) for line in lines}) == 1


def test_scores_without_nan_are_strict_json(pair):
    text = json.dumps(without_nan(scores_of(*pair, num_labels=4)), allow_nan=False)
    assert json.loads(text)["per_class"][3]["iou"] is None


def test_a_wrong_number_of_names_raises(pair):
    confusion = ConfusionMatrix(3)
    confusion.update(*pair)
    with pytest.raises(ValueError, match="2 class names for 3 classes"):
        confusion.compute(["a", "b"])


def test_of_equal_logits_the_first_class_is_reduced_to(monkeypatch):
    monkeypatch.setattr(metrics, "PIXELS_AT_ONCE", 1)  # one class at a time
    assert (reduce_logits(torch.zeros(1, 3, 2, 2), torch.zeros(1, 4, 4)) == 0).all()


@pytest.mark.parametrize("build", [ConfusionMatrix, BoundaryIoU, BoundaryF])
def test_the_first_id_beyond_the_classes_is_refused(build):
    right, wrong = torch.tensor([[0, 2]]), torch.tensor([[0, 3]])
    for pair in ((right, wrong), (wrong, right)):
        with pytest.raises(ValueError, match=r"have the class ids 3 \(1 pixels\), but there are 3 classes"):
            build(3).update(*pair)


def test_the_next_evaluation_of_trainer_scores_starts_afresh(pair):
    prediction, labels = pair
    batches = [SimpleNamespace(predictions=p[None], label_ids=y[None]) for p, y in zip(*pair, strict=True)]
    scores = TrainerScores(3)
    scores(batches[0])
    assert scores(batches[1]) == TrainerScores(3)(batches[1])
    assert scores.last["per_class"][0]["support"] == (labels[1] == 0).sum()


def test_the_table_shows_boundary_scores_that_were_added(pair):
    scores = scores_of(*pair)
    boundary_f = BoundaryF(3)
    boundary_f.update(*pair)
    add_boundaries(scores, boundary_f.compute())
    header, _, first, *_, mean = (line.split("|") for line in scores_table(scores).splitlines())
    assert header[-3].strip() == "boundary F %"
    assert "boundary IoU %" not in header
    assert first[-3].strip() == f"{100 * scores['per_class'][0]['boundary_f']:.2f}"
    assert mean[-3].strip() == f"{100 * scores['boundary_f']:.2f}"


@pytest.mark.parametrize("make", [ConfusionMatrix, BoundaryIoU, BoundaryF])
def test_class_255_counts_where_there_are_more_classes(make):
    metric = make(300)
    ids = np.repeat([7, 255], 32).reshape(8, 8)
    metric.update(ids, ids)
    scores = metric.compute()
    assert (
        next(value for name, value in scores.items() if name in ("mean_iou", "boundary_iou", "boundary_f"))
        == 1
    )
