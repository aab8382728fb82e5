"""The numbers that the training loop goes by."""

from types import SimpleNamespace

import torch

from contextseg.training.loop import Schedule, shares


def test_a_run_is_saved_after_every_interval_and_at_its_end_but_not_before_its_first_step():
    schedule = Schedule(steps=10, warmup_steps=0, shape="poly", eval_interval=4)
    assert [step for step in range(11) if schedule.has_checkpoint(step)] == [4, 8, 10]


def test_a_part_counts_by_its_labels_and_parts_without_any_count_nothing():
    accelerator = SimpleNamespace(device=torch.device("cpu"), reduce=lambda value, reduction: value)  # noqa: ARG005
    training = SimpleNamespace(accelerator=accelerator, count=float)
    assert shares(training, [1, 3]).tolist() == [0.5, 1.5]
    assert shares(training, [0, 0]).tolist() == [0.0, 0.0]
