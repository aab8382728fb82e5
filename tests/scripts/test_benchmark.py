"""`contextseg-benchmark` compares like with like and writes its page; no test asserts a time."""

import pytest
import torch

from contextseg.scripts import benchmark
from contextseg.scripts.measuring import Timing, peak_memory, time_in_turn

CPU = torch.device("cpu")


def test_quick_benchmark_writes_one_table_per_work_and_that_of_global_attention(tmp_path):
    assert benchmark.main(["--quick", "--output", str(tmp_path / "new" / "speed.md")]) == 0
    page = (tmp_path / "new" / "speed.md").read_text()
    for work in benchmark.WORKS.values():
        assert f"## {work.title}" in page
    assert page.count("| inference | 1 |") == page.count("| training step | 1 |") == len(benchmark.WORKS)
    assert "| 128x128 | 250 |" in page
    assert "--quick" in page


def test_both_models_of_the_swin_comparison_compute_the_same():
    pair = benchmark.WORKS["swin"].build(True)
    pixels = torch.randn(2, 3, 40, 56)
    with torch.inference_mode():
        ours, theirs = (model.eval()(pixel_values=pixels).logits for model in pair[:2])
    resized = torch.nn.functional.interpolate(ours, (40, 56), mode="bilinear")
    torch.testing.assert_close(resized, theirs, atol=1e-4, rtol=1e-4)


def test_a_misspelt_work_is_answered_with_the_known_ones(tmp_path):
    with pytest.raises(SystemExit, match="no comparison glam_swim. Known: glam_swin, swin"):
        benchmark.main(["--works", "glam_swim", "--output", str(tmp_path / "speed.md")])


def test_batches_that_are_no_numbers_are_answered_with_an_example(tmp_path):
    with pytest.raises(SystemExit, match="--batches is 'one'"):
        benchmark.main(["--works", "swin", "--batches", "one", "--output", str(tmp_path / "speed.md")])


def test_rounds_take_turns_after_one_warm_up():
    calls = []
    timing = time_in_turn(lambda: calls.append("ours"), lambda: calls.append("theirs"), 3, CPU)
    assert calls == ["ours", "theirs"] * 4
    assert len(timing.ours) == len(timing.theirs) == 3


def test_ratios_are_those_of_each_round():
    timing = Timing(ours=[1.0, 4.0, 3.0], theirs=[2.0, 4.0, 2.0])
    assert timing.ratios == [0.5, 1.0, 1.5]
    assert timing.medians == (3.0, 2.0)


def test_peak_memory_counts_what_is_alive_at_once():
    def work():
        for _ in range(3):  # one after the other: never two at once
            torch.empty(2**20)
        kept = torch.empty(2**20)
        torch.empty(2**20), kept.numel()

    assert 8 * 2**20 <= peak_memory(work, CPU) < 8.1 * 2**20
