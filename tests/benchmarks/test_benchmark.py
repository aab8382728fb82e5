"""`contextseg-benchmark` compares like with like and writes its page; no test asserts a time."""

import pytest
import torch
from cases import each

from contextseg.benchmarks import benchmark
from contextseg.benchmarks.comparisons import WORKS
from contextseg.benchmarks.measuring import Timing, macs, peak_memory, time_in_turn

CPU = torch.device("cpu")


@pytest.mark.slow
def test_quick_benchmark_writes_one_table_per_work_and_that_of_global_attention(tmp_path):
    assert benchmark.main(["--quick", "--output", str(tmp_path / "new" / "speed.md")]) == 0
    page = (tmp_path / "new" / "speed.md").read_text()
    for work in WORKS.values():
        assert f"## {work.title}" in page
    for mode in ("inference", "training step"):
        assert page.count(f"| {mode} | 64x64 | 1 |") == sum(mode in work.modes for work in WORKS.values())
    assert "| 128x128 | 250 |" in page
    assert "--quick" in page
    assert "1024x2048" not in page


def test_works_without_glam_make_a_page_without_global_attention(tmp_path):
    page = tmp_path / "segdeformer.md"
    benchmark.main(["--quick", "--large", "--works", "segdeformer_efficient", "--output", str(page)])
    titles = [line for line in page.read_text().splitlines() if line.startswith("## ")]
    assert titles == [
        f"## {WORKS['segdeformer_efficient'].title}",
        "## SegDeformer's head on an image of 64x128",
    ]


def test_measuring_again_replaces_the_tables_of_a_page_and_keeps_what_was_written_by_hand(tmp_path):
    page = tmp_path / "speed.md"
    page.write_text(f"old tables\n\n{benchmark.BY_HAND}\n\n## Where the time goes\n")
    benchmark.main(["--quick", "--works", "segdeformer_efficient", "--output", str(page)])
    text = page.read_text()
    assert text.startswith("# Speed and memory\n")
    assert "old tables" not in text
    assert text.endswith(f"|\n\n{benchmark.BY_HAND}\n\n## Where the time goes\n")


def contrasting_heads(work):
    """Both heads of a work, with equal weights of a size that lets every part show in the scores."""
    ours, theirs = work.build(True)[:2]
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    for tokens in (ours.decoder.external.tokens.class_tokens, ours.decoder.external.tokens.info_tokens):
        torch.nn.init.normal_(tokens)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.fixture
def doubles():
    torch.set_default_dtype(torch.double)
    yield
    torch.set_default_dtype(torch.float)


@pytest.mark.usefixtures("doubles")
@each("name", ["segdeformer", "segdeformer_linear"])
def test_both_heads_of_a_segdeformer_comparison_give_the_same_scores(name):
    work, scores = WORKS[name], []
    for head in contrasting_heads(work):
        torch.manual_seed(1)
        scores.append(work.job(head.eval(), 2, (36, 52))())
    assert [part.shape for part in scores[0]] == 2 * [(2, 150, 9, 13)]
    torch.testing.assert_close(*scores)


@pytest.mark.usefixtures("doubles")
@each("name", ["segdeformer", "segdeformer_linear"])
def test_both_heads_of_a_segdeformer_comparison_take_the_same_training_step(name):
    work, results = WORKS[name], []
    for head in contrasting_heads(work):
        torch.manual_seed(1)
        loss = work.job(head.train(), 2, (36, 52))()
        loss.backward()
        gradients = {key: parameter.grad for key, parameter in head.named_parameters()}
        results.append((loss, gradients, dict(head.named_buffers())))
    torch.testing.assert_close(*results)


def test_efficient_attention_differs_from_the_whole_one_by_its_reductions_alone():
    efficient, whole = (model.state_dict().keys() for model in WORKS["segdeformer_efficient"].build(True)[:2])
    assert efficient - whole == {
        "decoder.internal.layers.0.attention.reduction.weight",
        "decoder.external.attention.reduction.weight",
    }


def test_both_models_of_the_swin_comparison_compute_the_same():
    pair = WORKS["swin"].build(True)
    pixels = torch.randn(2, 3, 40, 56)
    with torch.inference_mode():
        ours, theirs = (model.eval()(pixel_values=pixels).logits for model in pair[:2])
    resized = torch.nn.functional.interpolate(ours, (40, 56), mode="bilinear")
    torch.testing.assert_close(resized, theirs, atol=1e-4, rtol=1e-4)


def test_a_misspelled_work_is_answered_with_the_known_ones(tmp_path):
    with pytest.raises(SystemExit, match="no comparison glam_swim. Known: glam_swin, swin"):
        benchmark.main(["--works", "glam_swim", "--output", str(tmp_path / "speed.md")])


def test_batches_that_are_no_numbers_are_answered_with_an_example(tmp_path, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--works", "swin", "--batches", "one", "--output", str(tmp_path / "speed.md")])
    assert "--batches is 'one'" in capsys.readouterr().err


def test_rounds_take_turns_after_one_warm_up():
    calls = []
    timing = time_in_turn(lambda: calls.append("ours"), lambda: calls.append("theirs"), 3, CPU)
    assert calls == ["ours", "theirs"] * 4
    assert len(timing.ours) == len(timing.theirs) == 3


def test_ratios_are_those_of_each_round():
    timing = Timing(ours=[1.0, 4.0, 3.0], theirs=[2.0, 4.0, 2.0])
    assert timing.ratios == [0.5, 1.0, 1.5]
    assert timing.medians == (3.0, 2.0)


def test_a_training_step_counts_the_scores_that_attention_makes_again():
    torch.manual_seed(0)
    attention = torch.nn.MultiheadAttention(3, num_heads=1, batch_first=True)

    class Pixels(torch.nn.Module):
        def forward(self, pixels):
            tokens = pixels.flatten(2).transpose(1, 2)
            return attention(tokens, tokens, tokens, need_weights=False)[0]

    counted, tokens = macs(lambda: Pixels()(torch.randn(1, 3, 8, 8))), 8 * 8
    linear, products = 4 * tokens * 3 * 3, 2 * tokens * tokens * 3
    assert counted == (linear + products, 3 * linear + 3.5 * products)


def test_peak_memory_counts_what_is_alive_at_once():
    def work():
        for _ in range(3):  # one after the other: never two at once
            torch.empty(2**20)
        kept = torch.empty(2**20)
        torch.empty(2**20), kept.numel()

    assert 8 * 2**20 <= peak_memory(work, CPU) < 8.1 * 2**20
