"""Boundary scores: identities, and literal transcriptions of their definitions."""

import math

import pytest
import torch
import torch.nn.functional as F
from cases import each

from contextseg.processing import boundary_pixels
from contextseg.processing.boundary_metrics import BoundaryF, BoundaryIoU
from contextseg.processing.metrics import ConfusionMatrix
from contextseg.processing.row_scores import rows_of


def eroded_boundary(mask, radius):
    """The authors' definition: the mask minus itself after `radius` erosions by a 3x3 square, zeros outside."""
    inside = mask[None, None].float()
    for _ in range(radius):
        inside = -F.max_pool2d(-F.pad(inside, (1, 1, 1, 1)), kernel_size=3, stride=1)
    return mask & (inside[0, 0] == 0)


@each(("size", "radius"), [((30, 40), 1), ((60, 80), 2), ((125, 250), 6)])
def test_boundary_iou_equals_repeated_erosion_class_by_class(size, radius):
    torch.manual_seed(1)
    coarse = torch.rand(2, 3, 5, 7)
    labels, prediction = F.interpolate(coarse + torch.rand(2, 1, 1, 1), size=size, mode="bilinear").argmax(1)
    expected = []
    for index in range(3):
        truth, found = eroded_boundary(labels == index, radius), eroded_boundary(prediction == index, radius)
        expected.append((truth & found).sum().item() / (truth | found).sum().item())
    score = BoundaryIoU(3)
    score.update(prediction, labels)
    assert score.compute()["per_class_boundary_iou"] == pytest.approx(expected)


def test_boundary_iou_ignores_pixels_far_from_every_border():
    labels = torch.zeros(64, 64, dtype=torch.long)
    labels[:, 32:] = 1
    prediction = labels.clone()
    prediction[:, 31] = 1  # one column off: a small IoU loss and a large boundary loss
    score = BoundaryIoU(2)
    score.update(prediction, labels)
    confusion = ConfusionMatrix(2)
    confusion.update(prediction, labels)
    assert score.compute()["boundary_iou"] < 0.85 < 0.96 < confusion.compute()["mean_iou"]


def test_boundary_iou_of_an_image_of_a_few_pixels_has_a_boundary_of_one_pixel():
    labels = torch.zeros(8, 8, dtype=torch.long)
    score = BoundaryIoU(1)
    score.update(labels, labels)
    assert score.counts.tolist() == [[28], [56]]


def test_boundary_iou_of_a_perfect_prediction_is_one_around_an_ignored_region():
    labels = torch.zeros(40, 40, dtype=torch.long)
    labels[10:30, 10:30] = 255
    score = BoundaryIoU(1)
    score.update(torch.zeros_like(labels), labels)
    assert score.compute()["boundary_iou"] == 1.0


def edge_pixels(ids, index):
    """Coordinates (N, 2) of the pixels of a class that have another id above, below, left or right of them."""
    height, width = ids.shape
    found = []
    for y, x in (ids == index).nonzero().tolist():
        near = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        if any(0 <= v < height and 0 <= u < width and ids[v, u] != index for v, u in near):
            found.append((y, x))
    return torch.tensor(found, dtype=torch.float64).reshape(-1, 2)


def literal_boundary_f(prediction, labels, index, distance):
    """F, precision and recall of one class in one image, from all distances; NaN without a boundary."""
    void = labels == 255
    found, truth = (edge_pixels(ids.masked_fill(void, 255), index) for ids in (prediction, labels))
    if not len(found) and not len(truth):
        return math.nan, math.nan, math.nan
    if not len(found) or not len(truth):
        return 0.0, 0.0 if len(found) else math.nan, 0.0 if len(truth) else math.nan
    near = torch.cdist(found, truth) <= distance
    precision, recall = near.any(1).double().mean().item(), near.any(0).double().mean().item()
    return (
        2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        precision,
        recall,
    )


def random_images(size, seed=0):
    """Labels and prediction (2, H, W) with three classes in blobs and an ignored rectangle."""
    torch.manual_seed(seed)
    coarse = torch.rand(4, 3, 5, 7)
    coarse[2:] = coarse[:2] + 0.4 * torch.rand(2, 3, 5, 7)
    labels, prediction = F.interpolate(coarse, size=size, mode="bilinear").argmax(1).split(2)
    labels = labels.clone()
    labels[:, : size[0] // 4, : size[1] // 3] = 255
    return prediction, labels


@each(("size", "tolerance"), [((20, 30), 0.0075), ((24, 33), 0.09)])
def test_boundary_f_equals_the_definition_on_all_pairs_of_pixels(size, tolerance, monkeypatch):
    prediction, labels = random_images(size)
    counts = []
    for share, at_once in [(1, 1 << 22), (1, 100), (0, 1 << 22)]:  # by pixel, by few pixels at once, by image
        monkeypatch.setattr(boundary_pixels, "DENSE", share)
        monkeypatch.setattr(boundary_pixels, "COMPARED_AT_ONCE", at_once)
        score = BoundaryF(4, tolerance=tolerance)
        score.update(prediction, labels)
        counts.append(score.counts.tolist())
    assert counts[0] == counts[1] == counts[2]
    distance = max(1.0, tolerance * math.hypot(*size))
    each_image = [
        [literal_boundary_f(*pair, index, distance) for index in range(4)]
        for pair in zip(prediction, labels, strict=True)
    ]
    expected = torch.tensor(each_image).nanmean(0)  # over images; the fourth class never occurs
    computed = score.compute()
    for column, name in enumerate(("boundary_f", "boundary_precision", "boundary_recall")):
        assert computed[f"per_class_{name}"] == pytest.approx(expected[:, column].tolist(), nan_ok=True)
        assert computed[name] == pytest.approx(expected[:3, column].mean().item())


def test_a_boundary_that_is_off_by_more_than_the_distance_counts_as_missed():
    labels = torch.zeros(60, 80, dtype=torch.long)  # a diagonal of 100 pixels
    labels[:, 40:] = 1
    near, far = (labels.roll(-shift, 1).index_fill(1, torch.arange(75, 80), 1) for shift in (2, 4))
    scores = []
    for prediction in (near, far):
        score = BoundaryF(2, tolerance=0.03)
        score.update(prediction, labels)
        scores.append(score.compute()["boundary_f"])
    assert scores == [1.0, 0.0]


def test_the_boundary_f_of_a_missed_class_is_zero_and_that_of_a_class_without_boundary_undefined():
    labels = torch.zeros(8, 8, dtype=torch.long)
    score = BoundaryF(2)
    score.update(labels, labels)
    assert math.isnan(score.compute()["boundary_f"])  # nothing but one class
    labels[3:5, 3:5] = 1
    score.update(torch.zeros_like(labels), labels)
    assert score.compute()["per_class_boundary_f"] == [0.0, 0.0]
    assert math.isnan(score.compute()["boundary_precision"])


@pytest.mark.parametrize("distance", [-1, 1.5, math.nan, "0.1"])
@pytest.mark.parametrize(("build", "name"), [(BoundaryIoU, "dilation_ratio"), (BoundaryF, "tolerance")])
def test_a_distance_that_is_no_fraction_of_the_diagonal_is_refused(build, name, distance):
    with pytest.raises(ValueError, match=f"{name} is .*fraction of the image diagonal"):
        build(3, **{name: distance})


@pytest.mark.parametrize("build", [BoundaryIoU, BoundaryF])
def test_boundary_scores_of_two_processes_add_up_and_leave_void_out(build):
    prediction, labels = random_images((40, 48))
    whole, halves = build(3), [build(3), build(3)]
    whole.update(torch.where(labels == 255, 2 - prediction, prediction), labels)
    for half, *pair in zip(halves, prediction, labels, strict=True):
        half.update(*pair)
    total = halves[0].reduced(lambda counts: counts.add_(halves[1].counts))
    assert total.compute() == whole.compute()
    assert halves[0].compute() != whole.compute()


@pytest.mark.parametrize(("build", "mean"), [(BoundaryIoU, "boundary_iou"), (BoundaryF, "boundary_f")])
def test_a_perfect_prediction_scores_one_beside_ignored_regions(build, mean):
    _, labels = random_images((40, 48))
    score = build(3)
    score.update(labels.clamp(max=2), labels)
    assert score.compute()[mean] == 1.0


@each(
    ("kind", "pixels"),
    [
        (ConfusionMatrix, None),
        *((kind, pixels) for kind in (BoundaryIoU, BoundaryF) for pixels in (None, 1, 5, 200)),
    ],
)
def test_parts_of_an_image_in_bands_sum_to_the_score_of_the_whole(kind, pixels):
    """Bands are shorter and longer than the distance, and the image has ignored pixels."""
    torch.manual_seed(0)
    labels, prediction = F.interpolate(torch.rand(2, 3, 9, 8), size=(97, 60), mode="bilinear").argmax(1)
    labels[40:60, 10:20] = 255
    options = {} if pixels is None else {"pixels": pixels}
    whole, banded = kind(3, **options), kind(3, **options)
    whole.update(prediction, labels)
    parts = [rows_of(banded, labels.shape, rows) for rows in ((0, 41), (41, 43), (43, 97))]
    for part in parts:
        for band in torch.arange(97).split([1, 2, 30, 3, 60, 1]):
            rows = band[(part.needed[0] <= band) & (band < part.needed[1])]
            if len(rows):
                part.update(prediction[rows], labels[rows])
    banded.add(sum(part.sums for part in parts))
    assert torch.equal(banded.counts, whole.counts)
    assert banded.counts.sum() > 0


@each("kind", [BoundaryIoU, BoundaryF])
def test_a_distance_in_pixels_is_that_fraction_of_the_diagonal(kind):
    torch.manual_seed(0)
    labels, prediction = F.interpolate(torch.rand(2, 3, 9, 8), size=(30, 40), mode="bilinear").argmax(1)
    scores = [kind(3, None, 0.06), kind(3, pixels=3), kind(3, pixels=4)]
    for score in scores:
        score.update(prediction, labels)
    assert torch.equal(scores[0].counts, scores[1].counts)
    assert not torch.equal(scores[1].counts, scores[2].counts)


@each("pixels", [0, -1, 1.5, True])
def test_a_distance_in_pixels_is_a_whole_number(pixels):
    with pytest.raises(ValueError, match="whole number of pixels"):
        BoundaryIoU(3, pixels=pixels)
