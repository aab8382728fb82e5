"""The order of samples, and how they are shared between processes."""

from contextseg.processing.data.batches import default_workers, epoch_order, evaluation_loader


def test_the_next_epoch_is_not_the_first_one_of_the_next_seed():
    assert epoch_order(50, seed=0, epoch=1) != epoch_order(50, seed=1, epoch=0)


def test_processes_share_the_images_of_an_evaluation():
    shares = [list(evaluation_loader([None] * 7, workers=0, rank=rank, world=3).sampler) for rank in range(3)]
    assert sorted(index for share in shares for index in share) == list(range(7))
    assert max(map(len, shares)) - min(map(len, shares)) == 1


def test_a_process_has_workers_for_its_share_of_the_cores_and_one_at_least(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert default_workers() == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert default_workers() == 1
