"""The losses equal their definitions on the enlarged logits, and keep the promises on ignored and wrong labels."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from cases import each, slow_but
from packaging.version import Version
from torch.profiler import ProfilerActivity, profile

from contextseg.modeling import loss_operators, losses
from contextseg.modeling.losses import LOSS_TERMS, check_labels, near_boundary, parse_terms, segmentation_loss
from contextseg.modeling.upsampling import interpolation_matrix

ALL_TERMS = "+".join(LOSS_TERMS)
SIZES = [
    ((4, 5), (16, 20)),
    ((5, 7), (18, 25)),
    ((6, 6), (6, 6)),
    ((9, 11), (4, 3)),
    ((1, 1), (3, 2)),
    ((3, 1), (1, 7)),
]


def batch(grid=(4, 5), size=(16, 20), num_labels=5, ignored=0.2, dtype=torch.float64, ignore_index=255):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, num_labels, *grid, generator=generator, dtype=dtype)
    labels = torch.randint(num_labels, (2, *size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = ignore_index
    return logits.requires_grad_(), labels


def enlarge(logits, labels):
    return F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)


def gradient(loss, logits):
    return torch.autograd.grad(loss, logits)[0]


def assert_same_loss(ours, theirs, logits):
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours, logits), gradient(theirs, logits))


@each(("grid", "size"), SIZES)
def test_cross_entropy_is_that_of_the_enlarged_logits(grid, size):
    logits, labels = batch(grid, size)
    expected = F.cross_entropy(enlarge(logits, labels), labels, ignore_index=255)
    assert_same_loss(segmentation_loss(logits, labels), expected, logits)


def test_class_weights_give_torchs_weighted_mean():
    logits, labels = batch()
    weights = [0.5, 2.0, 1.0, 0.0, 3.0]
    expected = F.cross_entropy(
        enlarge(logits, labels), labels, ignore_index=255, weight=torch.tensor(weights).double()
    )
    assert_same_loss(segmentation_loss(logits, labels, class_weights=weights), expected, logits)


def test_reduction_all_counts_ignored_pixels_as_zero():
    logits, labels = batch()
    expected = F.cross_entropy(enlarge(logits, labels), labels, ignore_index=255, reduction="none").mean()
    assert_same_loss(segmentation_loss(logits, labels, reduction="all"), expected, logits)


@each("elements", [1, 500, 900])
@each(("grid", "size"), SIZES)
def test_the_size_of_a_block_does_not_matter(grid, size, elements, monkeypatch):
    logits, labels = batch(grid, size)
    whole = segmentation_loss(logits, labels, terms=ALL_TERMS)
    expected = gradient(whole, logits)
    monkeypatch.setitem(loss_operators.BLOCK_ELEMENTS, "cpu", elements)
    in_blocks = segmentation_loss(logits, labels, terms=ALL_TERMS)
    torch.testing.assert_close(in_blocks, whole)
    torch.testing.assert_close(gradient(in_blocks, logits), expected)


@each("source", [1, 3, 8, 45, 128])
@each("target", [1, 2, 7, 64, 90, 509, 512])
@each("rows", [1, 5, 64])
def test_the_rows_of_the_blocks_are_exactly_those_of_the_full_resize(source, target, rows):
    matrix = interpolation_matrix(source, target, dtype=torch.float32, device="cpu")
    blocks = torch.zeros_like(matrix)
    for inside, sources in loss_operators.row_blocks(source, target, rows):
        blocks[inside, sources] += matrix[inside, sources]
    assert torch.equal(blocks, matrix)


def test_dice_is_the_mean_over_classes_present():
    logits, labels = batch(num_labels=6)
    labels[labels == 4] = 255
    labeled = labels != 255
    probabilities = enlarge(logits, labels).softmax(1).movedim(1, -1)[labeled]
    truth = F.one_hot(labels[labeled], 6)
    ratios = 2 * (probabilities * truth).sum(0) / (probabilities.sum(0) + truth.sum(0))
    expected = 1 - ratios[[0, 1, 2, 3, 5]].mean()
    assert_same_loss(segmentation_loss(logits, labels, terms="dice"), expected, logits)


@each(("alpha", "beta"), [(0.3, 0.7), (0.5, 0.5), (1.0, 0.0)])
def test_tversky_is_equation_3_of_salehi(alpha, beta, monkeypatch):
    monkeypatch.setattr(loss_operators, "TVERSKY_ALPHA", alpha)
    monkeypatch.setattr(loss_operators, "TVERSKY_BETA", beta)
    logits, labels = batch(num_labels=6)
    labels[labels == 4] = 255
    probabilities = enlarge(logits, labels).softmax(1).movedim(1, -1)[labels != 255]
    indices = []
    for label in (0, 1, 2, 3, 5):
        p0, g0 = probabilities[:, label], (labels[labels != 255] == label).double()
        hits, false_alarms, misses = (p0 * g0).sum(), (p0 * (1 - g0)).sum(), ((1 - p0) * g0).sum()
        indices.append(hits / (hits + alpha * false_alarms + beta * misses))
    expected = 1 - torch.stack(indices).mean()
    assert_same_loss(segmentation_loss(logits, labels, terms="tversky"), expected, logits)
    if alpha == beta:
        dice = segmentation_loss(logits, labels, terms="dice")
        assert_same_loss(segmentation_loss(logits, labels, terms="tversky"), dice, logits)


@each("weights", [None, [0.5, 2.0, 1.0, 0.0, 3.0]])
@each("smoothing", [0.1, 0.5])
@each(("grid", "size"), SIZES[:3])
def test_smoothed_cross_entropy_is_torchs(weights, smoothing, grid, size):
    logits, labels = batch(grid, size)
    given = torch.tensor(weights).double() if weights else None
    expected = F.cross_entropy(
        enlarge(logits, labels), labels, weight=given, ignore_index=255, label_smoothing=smoothing
    )
    ours = segmentation_loss(logits, labels, class_weights=weights, label_smoothing=smoothing)
    assert_same_loss(ours, expected, logits)


def test_smoothing_leaves_the_other_terms_alone_and_a_batch_without_labels_at_zero():
    logits, labels = batch()
    for term in set(LOSS_TERMS) - {"cross_entropy"}:
        smoothed = segmentation_loss(logits, labels, terms=term, label_smoothing=0.3)
        assert smoothed == segmentation_loss(logits, labels, terms=term)
    loss = segmentation_loss(logits, torch.full_like(labels, 255), label_smoothing=0.3)
    assert loss == 0
    assert gradient(loss, logits).abs().sum() == 0


@each("terms", ["dice", "tversky", "lovasz", "cross_entropy", "focal", "boundary"])
def test_a_perfect_mask_has_no_loss(terms):
    _, labels = batch(ignored=0.0)
    logits = 1000.0 * F.one_hot(labels, 5).movedim(-1, 1).float()
    labels[:, 3] = 255
    assert segmentation_loss(logits, labels, terms=terms) == 0


def test_a_perfectly_wrong_mask_has_dice_and_lovasz_loss_one():
    labels = torch.arange(2).repeat(1, 4, 4)
    logits = 1000.0 * F.one_hot(1 - labels, 2).movedim(-1, 1).float()
    assert segmentation_loss(logits, labels, terms="dice") == 1
    torch.testing.assert_close(segmentation_loss(logits, labels, terms="lovasz"), torch.tensor(1.0))


def test_focal_without_focus_is_cross_entropy(monkeypatch):
    logits, labels = batch()
    monkeypatch.setitem(LOSS_TERMS, "unfocused", lambda pixels: losses.focal(pixels, gamma=0.0))
    options = {"class_weights": [1.0, 2, 3, 4, 5], "reduction": "all"}
    ours = segmentation_loss(logits, labels, terms="unfocused", **options)
    assert_same_loss(ours, segmentation_loss(logits, labels, **options), logits)


def test_focal_is_the_papers_formula():
    logits, labels = batch()
    true = (
        enlarge(logits, labels)
        .softmax(1)
        .gather(1, labels.where(labels != 255, 0)[:, None])[:, 0][labels != 255]
    )
    expected = -((1 - true) ** 2 * true.log()).mean()
    assert_same_loss(segmentation_loss(logits, labels, terms="focal"), expected, logits)


@each(("term", "axes"), [("foreground_dice", (0, 2, 3)), ("foreground_dice_per_image", (2, 3))])
def test_foreground_dice_counts_all_classes_but_the_first(term, axes):
    logits, labels = batch(num_labels=6)
    labels[labels == 4] = 255
    labeled = (labels != 255)[:, None]
    probabilities = enlarge(logits, labels).softmax(1) * labeled
    truth = F.one_hot(labels.where(labels != 255, 0), 6).movedim(-1, 1) * labeled
    hits, total = 2 * (probabilities * truth).sum(axes), (probabilities + truth).sum(axes)
    expected = 1 - ((hits + 1e-5) / (total + 1e-5))[..., 1:].mean()
    assert_same_loss(segmentation_loss(logits, labels, terms=term), expected, logits)


@each("terms", [*LOSS_TERMS])
@each(("grid", "size"), SIZES)
def test_a_volume_of_one_slice_has_the_loss_of_the_image(terms, grid, size):
    logits, labels = batch(grid, size)
    flat = segmentation_loss(logits, labels, terms=terms)
    volume = segmentation_loss(logits[:, :, None], labels[:, None], terms=terms)
    assert torch.equal(volume, flat)
    assert torch.equal(gradient(volume, logits), gradient(flat, logits))


@each("terms", [*LOSS_TERMS])
@each(
    ("grid", "size"),
    [((2, 3, 4), (5, 6, 8)), ((3, 4, 5), (3, 4, 5)), ((1, 2, 2), (4, 2, 5)), ((5, 3, 2), (2, 3, 4))],
)
def test_losses_of_volumes_are_those_of_the_enlarged_logits(terms, grid, size, monkeypatch):
    monkeypatch.setitem(loss_operators.BLOCK_ELEMENTS, "cpu", 100)
    logits, labels = batch(grid, size)
    enlarged = F.interpolate(logits, size=size, mode="trilinear", align_corners=False)
    options = {"terms": terms, "label_smoothing": 0.1}
    assert_same_loss(
        segmentation_loss(logits, labels, **options), segmentation_loss(enlarged, labels, **options), logits
    )


def test_cross_entropy_of_a_volume_is_torchs():
    logits, labels = batch((3, 4, 5), (3, 4, 5))
    assert_same_loss(
        segmentation_loss(logits, labels), F.cross_entropy(logits, labels, ignore_index=255), logits
    )


def literal_lovasz_softmax(probabilities, labels, num_labels):
    """Algorithm 1 of Berman et al.: errors in decreasing order times the differences of the Jaccard loss."""
    of_classes = []
    for label in range(num_labels):
        truth = (labels == label).double()
        if truth.sum() == 0:
            continue
        errors, order = (truth - probabilities[:, label]).abs().sort(descending=True)
        truth = truth[order]
        jaccard = 1 - (truth.sum() - truth.cumsum(0)) / (truth.sum() + (1 - truth).cumsum(0))
        of_classes.append((errors * torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])).sum())
    return torch.stack(of_classes).mean()


def test_lovasz_is_berman_algorithm_1_over_labeled_pixels():
    logits, labels = batch(num_labels=6)
    labels[labels == 4] = 255
    labeled = labels != 255
    probabilities = enlarge(logits, labels).softmax(1).movedim(1, -1)[labeled]
    expected = literal_lovasz_softmax(probabilities, labels[labeled], 6)
    assert_same_loss(segmentation_loss(logits, labels, terms="lovasz"), expected, logits)


def literal_band(labels, radius):
    """Pixels with another label at most `radius` rows and columns away, pixel by pixel."""
    band = torch.zeros_like(labels, dtype=torch.bool)
    for image, row, column in (labels != 255).nonzero().tolist():
        near = labels[
            image, max(row - radius, 0) : row + radius + 1, max(column - radius, 0) : column + radius + 1
        ]
        band[image, row, column] = ((near != labels[image, row, column]) & (near != 255)).any()
    return band


def test_boundary_is_cross_entropy_with_all_but_the_band_ignored():
    logits, labels = batch()
    labels = labels * 0
    labels[0, :, 9:], labels[1, 5:8, 5:8], labels[1, 4, :6], labels[:, 12:] = 3, 1, 255, 255
    band = literal_band(labels, losses.BOUNDARY_RADIUS)
    assert 0 < band.sum() < (labels != 255).sum()
    expected = segmentation_loss(logits, labels.where(band, 255))
    assert_same_loss(segmentation_loss(logits, labels, terms="boundary", reduction="all"), expected, logits)


def test_boundary_of_a_single_region_is_zero():
    logits, labels = batch()
    labels = labels.where(labels == 255, 2)
    assert segmentation_loss(logits, labels, terms="boundary") == 0


def test_terms_add_up_with_their_factors():
    logits, labels = batch()
    expected = segmentation_loss(logits, labels) + 0.5 * segmentation_loss(logits, labels, terms="dice")
    torch.testing.assert_close(segmentation_loss(logits, labels, terms="cross_entropy + 0.5*dice"), expected)


@each("terms", [*LOSS_TERMS])
@each("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_batch_without_labels_has_loss_zero_and_zero_gradients(terms, dtype):
    logits, labels = batch(ignored=1.0, dtype=dtype)
    loss = segmentation_loss(logits, labels, terms=terms)
    assert loss == 0
    assert torch.equal(gradient(loss, logits), torch.zeros_like(logits))


@each("terms", [*LOSS_TERMS])
@each("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_labeled_pixel_suffices(terms, dtype):
    logits, labels = batch(ignored=1.0, dtype=dtype)
    labels[1, 3, 4] = 2
    loss = segmentation_loss(logits, labels, terms=terms)
    assert loss.isfinite()
    assert gradient(loss, logits).isfinite().all()


@each("terms", [*LOSS_TERMS])
def test_weights_of_zero_for_all_labeled_classes_stay_finite(terms):
    logits, labels = batch()
    assert segmentation_loss(logits, labels, terms=terms, class_weights=[0.0] * 5).isfinite()


@each("terms", [*LOSS_TERMS])
@each("ignore_index", [255, -100, -1, 2])
def test_logits_seen_by_ignored_pixels_only_change_nothing(terms, ignore_index):
    logits, labels = batch(size=(16, 20), ignore_index=ignore_index)
    labels[:, :8] = ignore_index  # rows 0 and 1 of the grid of 4 reach up to image row 9, row 0 up to row 5
    changed = logits.detach().clone()
    changed[:, :, 0] += 7 * torch.randn_like(changed[:, :, 0])
    options = {"terms": terms, "ignore_index": ignore_index}
    loss = segmentation_loss(logits, labels, **options)
    assert loss > 0
    assert torch.equal(segmentation_loss(changed, labels, **options), loss)
    assert not gradient(loss, logits)[:, :, 0].any()


@each("terms", [*LOSS_TERMS])
@each("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_and_autocast_are_computed_in_float32(terms, dtype):
    logits, labels = batch(dtype=dtype)
    expected = segmentation_loss(logits.float(), labels, terms=terms)
    with torch.autocast("cpu", dtype=dtype):
        loss = segmentation_loss(logits, labels, terms=terms)
        slope = gradient(loss, logits)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
    assert torch.equal(slope, gradient(expected, logits))


@each("terms", [*LOSS_TERMS])
@each("elements", [1, 200, 2**21])
def test_gradients_are_those_of_the_loss(terms, elements, monkeypatch):
    monkeypatch.setitem(loss_operators.BLOCK_ELEMENTS, "cpu", elements)
    logits, labels = batch((2, 3), (7, 8), num_labels=3)
    assert torch.autograd.gradcheck(lambda logits: segmentation_loss(logits, labels, terms=terms), logits)


@pytest.mark.parametrize("backend", slow_but(["eager", "aot_eager"], "eager"))
@each("terms", [*LOSS_TERMS])
def test_compiles_without_graph_breaks(terms, backend):
    logits, labels = batch(num_labels=4)
    labels[labels == 3] = 255  # the compiled loop over classes meets an absent one
    torch.compiler.reset()
    compiled = torch.compile(segmentation_loss, fullgraph=True, backend=backend)
    assert_same_loss(
        compiled(logits, labels, terms=terms), segmentation_loss(logits, labels, terms=terms), logits
    )


def allocations(step):
    """Bytes allocated (positive) and freed (negative) during a step, in order."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return torch.tensor([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])


@each("terms", [*LOSS_TERMS])
def test_forward_and_backward_take_a_fraction_of_the_memory_of_the_enlarged_logits(terms, monkeypatch):
    monkeypatch.setitem(loss_operators.BLOCK_ELEMENTS, "cpu", 2 * 100 * 64 * 2)
    logits, labels = batch((16, 16), (64, 64), num_labels=100, dtype=torch.float32)
    labels %= 4
    enlarged = 4 * enlarge(logits, labels).numel()
    ours = allocations(lambda: segmentation_loss(logits, labels, terms=terms).backward())
    plain = allocations(lambda: F.cross_entropy(enlarge(logits, labels), labels).backward())
    assert plain.cumsum(0).max() > 2 * enlarged
    assert ours.cumsum(0).max() < 0.4 * enlarged
    assert ours.max() < 0.1 * enlarged


def test_one_compiled_graph_serves_all_image_sizes():
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    compiled = torch.compile(segmentation_loss, fullgraph=True, dynamic=True, backend=count)
    for grid, size in [((4, 3), (16, 21)), ((6, 7), (18, 25)), ((9, 11), (40, 32))]:
        logits, labels = batch(grid, size)
        expected = segmentation_loss(logits, labels, terms=ALL_TERMS)
        assert_same_loss(compiled(logits, labels, terms=ALL_TERMS), expected, logits)
    assert len(graphs) == 1


@pytest.mark.slow
@pytest.mark.skipif(
    Version(torch.__version__) < Version("2.9"), reason="opcheck of torch 2.8 goes twice through one graph"
)
def test_the_operators_keep_the_contract_that_compilation_relies_on():
    logits, labels = batch((2, 3), (4, 5), num_labels=3)
    is_labeled, labels = labels != 255, labels.where(labels != 255, 0)
    _, normalizer = loss_operators.label_likelihood(logits, labels)
    torch.library.opcheck(loss_operators.label_likelihood, (logits, labels))
    for name in loss_operators.CLASS_LOSSES:
        torch.library.opcheck(loss_operators.class_loss, (logits, normalizer, labels, is_labeled, name))


def test_a_wrong_label_is_named_with_its_number_of_pixels():
    logits, labels = batch(num_labels=5)
    labels[0, 0, :3], labels[1, 2, 7] = 9, -3
    message = r"-3 \(1 pixels\), 9 \(3 pixels\), but the classes are 0..4 and the ignore index is 255"
    with pytest.raises(ValueError, match=message):
        segmentation_loss(logits, labels)


def test_255_is_a_wrong_label_under_another_ignore_index():
    with pytest.raises(ValueError, match=r"255 \(6 pixels\)"):
        check_labels(torch.full((1, 2, 3), 255), 5, ignore_index=-100)


def test_many_wrong_labels_are_summed_up():
    with pytest.raises(ValueError, match=r"17 \(1 pixels\) and 2 more values"):
        check_labels(torch.arange(20).view(1, 4, 5), 10, ignore_index=255)


@each("dtype", [torch.uint8, torch.int32])
def test_any_integer_labels_will_do(dtype):
    logits, labels = batch()
    assert torch.equal(segmentation_loss(logits, labels.to(dtype)), segmentation_loss(logits, labels))


@each(
    ("change", "message"),
    [
        (lambda labels: labels.float(), "labels are torch.float32"),
        (lambda labels: labels == 1, "labels are torch.bool"),
        (lambda labels: labels[:, None], r"labels are \(2, 1, 16, 20\).*squeeze\(1\)"),
        (lambda labels: labels[:1], r"labels are \(1, 16, 20\), but must be \(2, height, width\)"),
        (lambda labels: labels[0], r"labels are \(16, 20\)"),
    ],
)
def test_labels_of_a_wrong_kind_are_refused(change, message):
    logits, labels = batch()
    with pytest.raises(ValueError, match=message):
        segmentation_loss(logits, change(labels))


@each(
    ("options", "message"),
    [
        (
            {"terms": "cross_entropy+dise"},
            "no loss 'dise' in 'cross_entropy.dise', did you mean 'dice'.*lovasz",
        ),
        ({"terms": "0*dice+0*focal"}, "all factors in .* are 0"),
        ({"terms": "1e7*dice"}, "'1e7' in .* is not a weight"),
        ({"terms": ""}, "no loss '' in ''.*: cross_entropy, dice, tversky, focal, lovasz, boundary"),
        ({"terms": "half*dice"}, "'half' in 'half.dice' is not a number"),
        ({"reduction": "mean"}, "no reduction 'mean'.*'valid', 'all'"),
        ({"class_weights": [1.0, 2.0]}, "2 class_weights for 5 labels"),
    ],
)
def test_unknown_options_are_answered_with_the_known_ones(options, message):
    logits, labels = batch()
    with pytest.raises(ValueError, match=message):
        segmentation_loss(logits, labels, **options)


def test_terms_are_read_with_their_factors():
    assert parse_terms("cross_entropy + 0.5*dice+2 * lovasz") == [
        (1.0, "cross_entropy"),
        (0.5, "dice"),
        (2.0, "lovasz"),
    ]


def test_the_boundary_is_three_pixels_wide_on_either_side():
    labels = torch.zeros(1, 4, 20, dtype=torch.long)
    labels[..., 10:] = 1
    is_labeled = torch.ones_like(labels, dtype=torch.bool)
    is_labeled[:, 3] = False
    band = [7 <= column < 13 for column in range(20)]
    assert near_boundary(SimpleNamespace(labels=labels, is_labeled=is_labeled)).tolist() == [
        [band, band, band, [False] * 20]
    ]


def test_the_scale_of_class_weights_does_not_matter():
    logits, labels = batch(num_labels=3)
    weights = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    large, small = (
        segmentation_loss(logits, labels, terms=ALL_TERMS, class_weights=weights * scale)
        for scale in (1, 1e-6)
    )
    torch.testing.assert_close(small, large)


def test_the_first_label_beyond_the_classes_is_refused():
    check_labels(torch.tensor([[[2, 255]]]), 3, ignore_index=255)
    with pytest.raises(ValueError, match=r"labels contain 3 \(1 pixels\)"):
        check_labels(torch.tensor([[[2, 3]]]), 3, ignore_index=255)


def test_classes_weigh_the_pixels_of_the_boundary_too():
    logits, labels = batch()
    labels = labels * 0
    labels[0, :, 9:] = 3
    band = literal_band(labels, losses.BOUNDARY_RADIUS)
    weights = (1.0, 2.0, 3.0, 4.0, 5.0)
    expected = segmentation_loss(logits, labels.where(band, 255), class_weights=weights)
    loss = segmentation_loss(logits, labels, terms="boundary", class_weights=weights)
    torch.testing.assert_close(loss, expected)


def test_eight_wrong_labels_are_all_named():
    with pytest.raises(ValueError, match=r"17 \(1 pixels\), but"):
        check_labels(torch.arange(18).view(1, 3, 6), 10, ignore_index=255)
