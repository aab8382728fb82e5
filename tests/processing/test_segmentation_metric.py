"""The `evaluate.Metric` form of the scores."""

import numpy as np
import pytest

from contextseg.processing.boundary_metrics import BoundaryF
from contextseg.processing.metrics import ConfusionMatrix
from contextseg.processing.segmentation_metric import SegmentationMetric


@pytest.fixture
def metric(tmp_path):
    return SegmentationMetric(num_labels=3, cache_dir=str(tmp_path))


@pytest.fixture
def images():
    """Two images of different sizes, as (predictions, references)."""
    random = np.random.default_rng(0)
    return tuple([random.integers(0, 3, size) for size in ((5, 7), (4, 9))] for _ in range(2))


def test_the_evaluate_metric_equals_the_confusion_matrix(metric, images):
    confusion = ConfusionMatrix(3)
    for prediction, reference in zip(*images, strict=True):
        confusion.update(prediction, reference)
    assert metric.compute(predictions=images[0], references=images[1]) == confusion.compute()


def test_batches_added_one_by_one_count_once(metric, images):
    whole = metric.compute(predictions=images[0], references=images[1])
    for prediction, reference in zip(*images, strict=True):
        metric.add(prediction=prediction, reference=reference)
    assert metric.compute() == whole


def test_no_cache_file_is_written(metric, images, tmp_path):
    metric.add_batch(predictions=images[0], references=images[1])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_metric_over_several_processes_says_what_to_do_instead(tmp_path):
    with pytest.raises(ValueError, match="reduced"):
        SegmentationMetric(num_labels=3, num_process=2, cache_dir=str(tmp_path))


def test_another_number_of_references_is_refused_before_anything_is_counted(metric, images):
    with pytest.raises(ValueError, match="got 2 predictions and 1 references"):
        metric.compute(predictions=images[0], references=images[1][:1])
    assert metric.confusion.matrix.sum() == 0


def test_boundary_scores_come_with_the_others_on_request_and_start_afresh(images, tmp_path):
    metric = SegmentationMetric(num_labels=3, boundaries=True, cache_dir=str(tmp_path))
    first, second = (metric.compute(predictions=images[0], references=images[1]) for _ in range(2))
    boundary_f = BoundaryF(3)
    for pair in zip(*images, strict=True):
        boundary_f.update(*pair)
    expected = boundary_f.compute()
    assert first == second
    assert first["boundary_f"] == expected["boundary_f"]
    assert [row["boundary_f"] for row in first["per_class"]] == expected["per_class_boundary_f"]
    assert "boundary_iou" in first
