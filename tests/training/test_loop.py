"""The numbers that the training loop goes by."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from cases import each
from torch import nn

from contextseg.training.loop import Meter, Schedule, Training, optimizer_step, shares, train_loop
from contextseg.training.state_checks import NonFiniteWeightsError, check_weights_to_save
from contextseg.training.stopping import StopSignal


class Line(nn.Module):
    """The loss is its one weight times a number."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, slope):
        return SimpleNamespace(loss=(self.weight * slope).sum())


@pytest.fixture
def training(tmp_path):
    accelerator, model = Accelerator(cpu=True), Line()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=1.0))
    optimizer.param_groups[0]["initial_lr"] = 1.0
    return Training(accelerator, model, optimizer, tmp_path, count=lambda _: 1.0)


def step(training, slope, **settings):
    schedule = Schedule(steps=9, warmup_steps=0, shape="constant", **settings)
    return optimizer_step(training, [{"slope": torch.tensor([slope]), "name": ["a"]}], schedule)[0]


def test_the_gradient_is_clipped_where_it_is_asked_for(training):
    step(training, 4.0, clip_norm=0.5)
    assert training.plain_model.weight.item() == pytest.approx(1 - 0.5)
    step(training, 4.0)
    assert training.plain_model.weight.item() == pytest.approx(0.5 - 4)


def test_the_loss_that_is_reported_keeps_no_graph(training):
    assert not step(training, 1.0).requires_grad


def test_the_step_whose_loss_is_not_finite_is_named_with_its_samples(training):
    training.step = 12
    meter = Meter(training, Schedule(steps=20, warmup_steps=0, shape="constant"), log=None)
    meter.names = [["a"], ["b"], ["c", "d"]]
    complaint = meter.complaint(torch.tensor([1.0, torch.nan, torch.inf]))
    assert complaint.startswith(
        "the loss of step 11 is nan. Its samples: b. Or the step before overflowed: a."
    )
    assert complaint.endswith("No checkpoint was saved.")


def meter_after_a_finite_loss(training, weight):
    meter = Meter(training, Schedule(steps=20, warmup_steps=0, shape="constant"), log=None)
    meter.add(torch.tensor(0.5), ["a"])
    training.step = 12
    with torch.no_grad():
        training.plain_model.weight.fill_(weight)
    return meter


@each("weight", [torch.nan, torch.inf])
def test_weights_that_overflowed_after_a_finite_loss_are_found_at_once(weight, training):
    with pytest.raises(
        NonFiniteWeightsError, match="after step 12, weight is not finite, although the loss was"
    ):
        meter_after_a_finite_loss(training, weight).flush()


@each(("weights", "averages"), [(torch.nan, 0.0), (1.0, torch.inf)])
def test_a_checkpoint_with_values_that_are_not_finite_never_replaces_a_good_one(weights, averages, tmp_path):
    (tmp_path / "last").mkdir()
    state = {"weight": {"exp_avg_sq": torch.tensor(averages), "step": torch.tensor(3.0)}}
    with pytest.raises(NonFiniteWeightsError, match="after step 3, weight.* is from before and intact"):
        check_weights_to_save({"weight": torch.tensor(weights)}, state, 3, tmp_path)


def test_a_run_is_saved_after_every_interval_and_at_its_end_but_not_before_its_first_step():
    schedule = Schedule(steps=10, warmup_steps=0, shape="poly", eval_interval=4)
    assert [step for step in range(11) if schedule.has_checkpoint(step)] == [4, 8, 10]


@pytest.fixture
def plain_loop(training):
    """Runs the loop with evaluations that find these scores; returns the steps at which it evaluated."""

    def run(scores, schedule, meter):
        evaluated, scores = [], iter(scores)

        def checkpoint(meter, stopping):  # noqa: ARG001
            evaluated.append(training.step)
            is_best = next(scores) > training.best.get("score", -1)
            training.evaluations_since_best = 0 if is_best else training.evaluations_since_best + 1
            if is_best:
                training.best = {"score": 1}
            return stopping

        batches = ({"slope": torch.ones(1), "name": ["a"]} for _ in range(99))
        assert train_loop(training, batches, schedule, meter, StopSignal(), checkpoint=checkpoint)
        return evaluated

    return run


def meter_without_log(training, schedule):
    meter = Meter(training, schedule, log=None)
    meter.report = dict
    return meter


def test_a_run_ends_after_evaluations_without_a_better_score_and_remembers_them(training, plain_loop):
    schedule = Schedule(steps=20, warmup_steps=0, shape="constant", eval_interval=2, patience=3)
    meter = meter_without_log(training, schedule)
    assert plain_loop([1, 0, 0, 0, 0], schedule, meter) == [2, 4, 6, 8]
    assert schedule.has_stalled(training)
    assert training.state()["progress"]["evaluations_since_best"] == 3
    assert plain_loop([], schedule, meter) == []  # resumed, it is still over
    schedule.patience = 5
    assert plain_loop([0, 0, 0], schedule, meter) == [10, 12]


def test_the_seconds_of_a_resumed_run_add_to_those_before(training):
    training.seconds, training.clock = 100.0, training.clock - 5
    training.count_seconds()
    training.count_seconds()
    assert 105 <= training.seconds < 150


def test_a_part_counts_by_its_labels_and_parts_without_any_count_nothing():
    accelerator = SimpleNamespace(device=torch.device("cpu"), reduce=lambda value, reduction: value)  # noqa: ARG005
    training = SimpleNamespace(accelerator=accelerator, count=float)
    assert shares(training, [1, 3]).tolist() == [0.5, 1.5]
    assert shares(training, [0, 0]).tolist() == [0.0, 0.0]
