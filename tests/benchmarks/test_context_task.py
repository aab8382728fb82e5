"""contextseg-context: views that gradients confirm, scores that mean what the page says, and a quick run of it all."""

import numpy as np
import pytest
import torch
from cases import each

from contextseg import GlamSwinForSemanticSegmentation
from contextseg.benchmarks import context_task
from contextseg.benchmarks.context_networks import (
    Network,
    Task,
    distances,
    draw_near,
    flag_box,
    place,
    predict,
    run_all,
    score,
)
from contextseg.benchmarks.receptive_field import axis_view, reach, sees_box
from contextseg.processing.data.scenes import AMBIGUOUS, FLAGS, ICE, SNOW

SIDE, EDGES = 96, (0, 16, 24, 32, 40, 48, 96)
WITHOUT = [Network(0), Network(5, use_global_attention=False)]


def both_flags(number):
    return tuple(draw_near(0, number, SIDE, nearest=12, swap_flag=swap) for swap in (False, True))


def little_task():
    return Task(
        scenes=8,
        scored=4,
        size=SIDE,
        nearest=12,
        edges=EDGES,
        steps=2,
        patience=2,
        learning_rate=1e-3,
        batch_size=4,
    )


def gradient_of_one_logit(network, row, column, side=SIDE, **sizes):
    """(S, S): how much each pixel moves the logits at one place; random weights."""
    torch.manual_seed(0)
    model = GlamSwinForSemanticSegmentation(network.config(**sizes)).eval()
    pixels = torch.randn(1, 3, side, side, requires_grad=True)
    (gradient,) = torch.autograd.grad(
        model(pixel_values=pixels).logits[0, :, row, column].square().sum(), pixels
    )
    return gradient[0].abs().amax(dim=0).numpy()


def seen_from(row, column, network, side=SIDE, **sizes):
    view = axis_view(network.config(**sizes), side)
    return view[row][:, None] & view[column]


@each("network", WITHOUT)
@each("position", [(47, 40), (24, 71), (39, 56)])
def test_without_global_attention_gradients_are_exactly_zero_out_of_view_and_only_there(network, position):
    gradient = gradient_of_one_logit(network, *position)
    assert np.array_equal(gradient > 0, seen_from(*position, network))


@each("sizes", [{"depths": (2, 2)}, {"depths": (1, 2)}, {"window_size": 4, "depths": (2, 1)}])
def test_views_of_other_depths_and_windows_are_those_of_the_gradients(sizes):
    gradient = gradient_of_one_logit(WITHOUT[1], 61, 66, side=128, **sizes)
    assert np.array_equal(gradient > 0, seen_from(61, 66, WITHOUT[1], side=128, **sizes))


def test_tokens_carry_around_the_border_and_the_view_knows_it():
    gradient = gradient_of_one_logit(WITHOUT[1], 2, 50)
    seen = seen_from(2, 50, WITHOUT[1])
    assert (gradient[~seen] == 0).all()
    assert (gradient[88:, 40:60] > 0).any()
    assert seen[88:, 40:60].any()


@each("tokens", [1, 5])
def test_with_global_attention_every_pixel_moves_every_logit(tokens):
    gradient = gradient_of_one_logit(Network(tokens), 47, 40)
    assert (gradient > 0).all()


def test_the_reach_of_two_blocks_is_a_window_and_a_half():
    view = axis_view(Network(0).config(depths=(1, 2)), SIDE)
    assert reach(view) == 23  # of windows of 16 pixels, whatever the finer stage adds within them
    assert [reach(axis_view(Network(0).config(depths=(1, n)), SIDE)) for n in (1, 3)] == [15, 31]


def test_most_of_the_white_is_out_of_view():
    scored = draw_near(0, 20, SIDE, nearest=12)
    places = place(scored.scenes, Network(0).config(), EDGES)
    assert places.in_view.sum() < 0.4 * (places.bins >= 0).sum()
    assert not places.in_view[places.bins >= EDGES.index(32)].any()
    assert places.in_view[places.bins == 0].mean() > 0.5


def test_windows_as_large_as_the_coarser_grid_see_everything_without_tokens():
    control = Network(*context_task.NETWORKS[-1])
    assert control.num_global_tokens == 0
    assert axis_view(control.config(), SIDE).all()


def test_sizes_that_leave_windows_incomplete_are_refused():
    with pytest.raises(ValueError, match="Pass a multiple of 16"):
        axis_view(Network(0).config(), 100)


def test_a_box_is_seen_by_who_sees_one_of_its_corners():
    view = np.eye(4, dtype=bool)
    assert np.argwhere(sees_box(view, (slice(1, 3), slice(3, 4)))).tolist() == [[1, 3], [2, 3]]


def test_distance_is_the_larger_of_rows_and_columns_and_zero_in_the_box():
    apart = distances((slice(2, 4), slice(1, 2)), 6)
    assert (apart[2, 1], apart[3, 1], apart[0, 1], apart[3, 4], apart[5, 5]) == (0, 0, 2, 3, 4)


def test_every_scene_has_white_near_the_flag_and_its_twin_differs_in_the_flags_box_only():
    scored, twins = both_flags(6)
    for scene, twin in zip(scored.scenes, twins.scenes, strict=True):
        assert scene.distance <= 12
        repainted = (scene.image != twin.image).any(axis=2)
        repainted[flag_box(scene.mask)] = False
        assert not repainted.any()


def answers(both, answer):
    return tuple(torch.stack([answer(labels) for labels in images.labels]) for images in both)


def test_who_knows_the_flag_has_an_iou_of_one_and_who_does_not_a_third_at_most():
    both = both_flags(6)
    places = place(both[0].scenes, Network(0).config(), EDGES)
    knowing = score(answers(both, lambda labels: labels), both, places)
    assert [(row["iou"], row["follows"]) for row in knowing] == [(1, 1)] * 6
    guess = torch.where(torch.arange(SIDE) % 2 == 0, SNOW, ICE).expand(SIDE, SIDE)
    for row in score(answers(both, lambda _: guess), both, places):
        assert row["iou"] <= 1 / 3 + 1e-6
        assert row["follows"] == 0


def test_one_name_for_all_white_has_an_iou_of_a_quarter():
    both = both_flags(6)
    places = place(both[0].scenes, Network(0).config(), EDGES)
    rows = score(answers(both, lambda labels: torch.full_like(labels, SNOW)), both, places)
    assert [row["iou"] for row in rows] == pytest.approx([0.25] * 6)


@each("network", WITHOUT)
def test_without_global_attention_repainting_the_flag_changes_no_bit_of_logits_out_of_view(network):
    torch.manual_seed(0)
    model = GlamSwinForSemanticSegmentation(network.config()).eval()
    both = both_flags(3)
    with torch.inference_mode():
        ours, theirs = (
            torch.cat([model(pixel_values=one[None]).logits for one in p.pixel_values]) for p in both
        )
    view = axis_view(model.config, SIDE)
    seen = torch.from_numpy(np.stack([sees_box(view, flag_box(s.mask)) for s in both[0].scenes]))
    changed = (ours != theirs).any(dim=1)
    assert not changed[~seen].any()
    assert changed[seen].any()


def test_predictions_are_those_of_the_whole_batch():
    model = GlamSwinForSemanticSegmentation(Network(1).config()).eval()
    images = draw_near(0, 2, SIDE, nearest=12)
    with torch.inference_mode():
        together = model(pixel_values=images.pixel_values).logits.argmax(dim=1)
    assert (predict(model, images) == together).float().mean() > 0.999


def test_networks_differ_by_tokens_and_global_attention_only():
    ours, theirs = (Network(*options).config().to_dict() for options in ((10, True), (10, False)))
    assert {name for name in ours if ours[name] != theirs[name]} == {"use_global_attention"}
    assert set(FLAGS).isdisjoint(AMBIGUOUS)


def test_networks_that_see_little_train_longer():
    networks = [Network(0), Network(5, use_global_attention=False), Network(5), Network(0, window_size=12)]
    assert [little_task().steps_of(network) for network in networks] == [4, 4, 2, 2]


@pytest.mark.slow
@pytest.mark.processes
def test_two_processes_find_what_one_finds():
    task = little_task()
    networks = [Network(0), Network(1)]
    alone, shared = (
        {
            result.network: (result.iou, result.follows)
            for result in run_all(task, networks, seeds=1, jobs=jobs)
        }
        for jobs in (1, 2)
    )
    assert alone.keys() == shared.keys() == set(networks)
    for network in networks:
        assert alone[network] == shared[network]


NONE_AND_BOTH = (
    (0, True, 2),
    (10, False, 2),
    (10, True, 2),
)  # no tokens; ten without, and with, global attention


@pytest.mark.slow
@pytest.mark.parametrize("networks", [NONE_AND_BOTH, context_task.NETWORKS], ids=["three", "all"])
def test_a_quick_run_writes_the_page_with_a_row_for_each_network_and_its_images(
    networks, tmp_path, monkeypatch
):
    monkeypatch.setattr(context_task, "NETWORKS", networks)
    output = tmp_path / "new" / "context.md"
    assert context_task.main(["--quick", "--output", str(output)]) == 0
    page = output.read_text()
    for options in networks:
        assert page.count(f"| {Network(*options).title} |") == 3
    assert "sees at most 31 pixels far" in page
    assert (tmp_path / "new" / "images" / "context_curves.png").exists()
    assert (tmp_path / "new" / "images" / "context_scenes.png").exists()


@each("edges", ["0,12,eight", "8,16", "0,16,16", "0,24,12", "0,96"])
def test_columns_that_do_not_fit_are_refused(tmp_path, edges):
    with pytest.raises(SystemExit, match="Give increasing distances below 96 that start with 0"):
        context_task.main(["--edges", edges, "--output", str(tmp_path / "context.md")])
