"""`make gpu-check` without a GPU: it says so; and its program runs on a CPU with very small models."""

import json

import pytest
import torch
from accelerate.state import AcceleratorState
from cases import each
from tiny_runs import write_data

from contextseg.benchmarks import gpu_check, gpu_parts
from contextseg.benchmarks.family_models import FAMILIES
from contextseg.benchmarks.gpu_page import gpu_page

CPU = torch.device("cpu")
STEP = {
    "size": "512x512",
    "batch": 16,
    "first_seconds": 40.0,
    "seconds": 0.25,
    "samples_per_second": 64.0,
    "tokens_per_second": 1048576.0,
    "share": 0.62,
    "memory": 2**30,
}
RESULTS = {
    "hardware": {"gpus": ["NVIDIA H200"], "processor": "a processor"},
    "versions": {"torch": "2.14.1", "transformers": "5.24.0"},
    "minutes": 8,
    "tests": {"passed": "7 passed in 20 s"},
    "matrix": {"side": 8192, "rate": 7e14},
    "families": {
        "glam_swin tiny": {
            **STEP,
            "attention": {"operators": {"efficient_attention": 12}, "kernels": [], "all_fused": True},
        },
        "cswin tiny": {"failed": "out of memory"},
    },
    "compiled": {**STEP, "goal": 0.6, "reached": True},
    "camvid": {"skipped": "no data"},
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path):
    files = ["--output", str(tmp_path / "gpu.json"), "--page", str(tmp_path / "gpu.md")]
    with pytest.raises(SystemExit, match="PyTorch finds no CUDA device"):
        gpu_check.main(files)
    assert not any(tmp_path.iterdir())


def test_the_page_tells_every_part():
    page = gpu_page(RESULTS)
    assert (
        "| glam_swin tiny | 512x512 | 16 | 250.0 ms | 64.0 | 1,048,576 | 62.0% | 1,024 MiB | yes | efficient_attention 12x |"
        in page
    )
    assert "| cswin tiny | failed: out of memory |" in page
    assert "62.0% of the matrix rate, goal 60%, reached; the first step took 40 s" in page
    assert "7 passed" in page
    assert "skipped: no data" in page
    assert "- Tests marked `gpu`: not run" in gpu_page({**RESULTS, "tests": None})


@each(("change", "is_wrong"), {
    "everything ran": ({"cswin tiny": STEP}, False),
    "a family failed": ({}, True),
    "no time": ({"cswin tiny": {"not run": "no time was left"}}, True),
})  # fmt: skip
def test_a_part_or_family_that_failed_or_had_no_time_counts_as_failure(change, is_wrong):
    families = {**RESULTS["families"], **change}
    assert gpu_check.is_failure(families) == is_wrong
    assert not gpu_check.is_failure(RESULTS["camvid"])


def test_families_stop_when_the_time_is_over(monkeypatch):
    now = [0.0]

    def numbers(*_arguments):
        now[0] += 40
        return STEP

    monkeypatch.setattr(gpu_parts, "step_numbers", numbers)
    chosen = dict.fromkeys(("one", "two", "three"), (FAMILIES["glam_swin nano"], (32, 32), 1))
    found = gpu_parts.families_in_time(chosen, CPU, 1.0, limit=60, clock=lambda: now[0])
    assert found == {"one": STEP, "two": STEP, "three": {"not run": "no time was left"}}


def test_every_published_family_is_checked_once():
    families = {name.split()[0] for name in FAMILIES}
    assert {name.split()[0] for name in gpu_check.FULL.batches} == families
    assert not any("nano" in name for name in gpu_check.FULL.batches)


@pytest.mark.slow
def test_the_program_runs_on_a_cpu(tmp_path, monkeypatch):
    write_data(tmp_path / "camvid")
    monkeypatch.setattr(gpu_parts, "WARM_UP", 0)
    monkeypatch.setattr(gpu_parts, "ROUNDS", 1)
    monkeypatch.setenv("CONTEXTSEG_DATA", str(tmp_path))
    monkeypatch.setattr(gpu_check.Check, "tests", lambda *_: {"passed": "elsewhere"})  # they start a process
    files = ["--output", str(tmp_path / "gpu.json"), "--page", str(tmp_path / "gpu.md")]
    try:
        assert gpu_check.main(["--device", "cpu", "--quick", *files]) == 0
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)  # its training in bf16
    results = json.loads((tmp_path / "gpu.json").read_text())
    steps = [*results["families"].values(), results["compiled"]]
    assert all(
        step["share"] > 0 for step in steps
    )  # above 1 if the machine was busy while the rate was measured
    assert all(step["attention"]["operators"] for step in steps[:-1])
    assert results["camvid"]["steps_done"] == 4
    assert 0 <= results["camvid"]["scores"]["mean_iou"] <= 1
    page = (tmp_path / "gpu.md").read_text()
    assert all(f"| {name} | 32x32" in page for name in results["families"])
