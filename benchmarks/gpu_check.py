"""What a GPU has to show, in a few minutes and without network; `make gpu-check`.

    python -m contextseg.benchmarks.gpu_check

Runs the tests marked `gpu`, measures training steps of every family in bf16, and trains on CamVid (in CONTEXTSEG_DATA)
in the time that remains. Writes benchmarks/gpu.json after each part, and the page benchmarks/gpu.md. Slow imports come
after the command line is parsed.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..training.command_line import CommandLine, CommandOptions, option, short_errors
from .gpu_page import gpu_page
from .time_budget import Part, TimeBudget, run_parts

if TYPE_CHECKING:
    import torch

    from .family_models import Family

PROGRAM = "python -m contextseg.benchmarks.gpu_check"
DESCRIPTION = """Run the tests marked gpu, measure bf16 training steps of every family, and train on CamVid while time remains.
Exits with 1 if a part failed or was not run, or if there is no GPU."""
TESTS = Path(__file__).resolve().parents[1] / "tests" / "test_gpu.py"
GOAL, GOAL_SHARE = "glam_swin tiny", 0.6
SCORED = 4  # times that the CamVid run is scored


class Scale(NamedTuple):
    """How large the parts are."""

    batches: dict[str, int]  # models of FAMILIES
    sizes: dict[int, tuple[int, ...]]  # by number of axes
    matrix: int
    goal: str
    backend: str  # of torch.compile
    camvid: dict[str, Any]  # options of contextseg-train


FULL = Scale(
    batches={
        **{GOAL: 16, "cswin tiny": 16, "maformer small": 16, "segdeformer mit_b0": 8, "caswit tiny": 8},
        **{"relay swinv2_small": 8, "nnformer synapse": 2, "glam_nnformer synapse": 2},
    },
    sizes={2: (512, 512), 3: (64, 128, 128)},
    matrix=8192,
    goal=GOAL,
    backend="inductor",
    camvid={"preset": "tiny", "crop_size": "360x480", "batch_size": 16},
)
QUICK = Scale(
    batches=dict.fromkeys(("glam_swin nano", "nnformer nano"), 1),
    sizes={2: (32, 32), 3: (32, 32, 32)},
    matrix=128,
    goal="glam_swin nano",
    backend="eager",
    camvid={"preset": "nano", "crop_size": "32", "batch_size": 2, "cpu": True, "workers": 0},
)


@dataclass
class GpuArguments(CommandOptions):
    minutes: float = option(8, "time for all parts together")
    device: str = option("cuda", "device to run on")
    output: str = option("benchmarks/gpu.json", "file of results", metavar="FILE")
    page: str = option("benchmarks/gpu.md", "page to write", metavar="FILE")
    quick: bool = option(False, "very small models; with --device cpu this checks the program without a GPU")


def main(argv: list[str] | None = None) -> int:
    arguments = CommandLine(GpuArguments, PROGRAM, DESCRIPTION).arguments(argv)
    budget = TimeBudget(60 * arguments.minutes)
    with short_errors(PROGRAM, arguments.traceback):
        from ..training.records import hardware, versions
        from .measuring import open_device

        check = Check(QUICK if arguments.quick else FULL, open_device(arguments.device))
        results: dict[str, Any] = {
            "hardware": hardware(),
            "versions": versions(),
            "minutes": arguments.minutes,
        }
        for name, result in run_parts(check.parts(), budget):
            results[name] = result
            print(f"{name}: {json.dumps(result)}", flush=True)
            Path(arguments.output).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        Path(arguments.page).write_text(gpu_page(results), encoding="utf-8")
    print(f"wrote {arguments.output} and {arguments.page}")
    return 1 if any(is_failure(results[part.name]) for part in check.parts()) else 0


def is_failure(result: dict[str, Any]) -> bool:
    """Whether a result, or a part of it, is that of something that failed or had no time."""
    if "failed" in result or "not run" in result:
        return True
    return any(is_failure(value) for value in result.values() if isinstance(value, dict))


class Check:
    """The parts of the check on one device; `camvid` takes its number of steps from `families`."""

    def __init__(self, scale: Scale, device: "torch.device") -> None:
        self.scale, self.device = scale, device
        self.rate, self.step_seconds = 1.0, 1.0

    def parts(self) -> list[Part]:
        # Seconds on one recent GPU; loading PyTorch is not in them.
        needs = (60, 5, 90, 100, 60) if self.device.type == "cuda" else (0,) * 5
        names = ("tests", "matrix", "families", "compiled", "camvid")
        return [Part(name, *rest) for name, *rest in zip(names, needs, self.runs(), strict=True)]

    def runs(self) -> list[Callable[[float], dict[str, Any]]]:
        return [self.tests, self.matrix, self.families, self.compiled, self.camvid]

    def tests(self, limit: float) -> dict[str, Any]:
        """The tests marked `gpu`, in a process of their own."""
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", str(TESTS)]
        environment = {**os.environ, "CONTEXTSEG_TEST_DEVICE": self.device.type}
        finished = subprocess.run(
            command, env=environment, cwd=TESTS.parents[1], timeout=limit, capture_output=True, text=True
        )
        closing = (finished.stdout.strip() or finished.stderr.strip()).splitlines()[-1]
        return {"passed" if finished.returncode == 0 else "failed": closing}

    def matrix(self, _limit: float) -> dict[str, Any]:
        from .gpu_parts import matrix_rate

        measured = matrix_rate(self.scale.matrix, self.device)
        self.rate = measured["rate"]
        return measured

    def chosen(self) -> "dict[str, tuple[Family, tuple[int, ...], int]]":
        """Families, sizes and batches."""
        from .family_models import FAMILIES

        return {
            name: (FAMILIES[name], self.scale.sizes[len(FAMILIES[name].stride)], batch)
            for name, batch in self.scale.batches.items()
        }

    def families(self, limit: float) -> dict[str, Any]:
        from .gpu_parts import families_in_time

        measured = families_in_time(self.chosen(), self.device, self.rate, limit)
        self.step_seconds = measured[self.scale.goal].get("seconds", self.step_seconds)
        return measured

    def compiled(self, _limit: float) -> dict[str, Any]:
        """The model of the goal, compiled."""
        from .gpu_parts import step_numbers

        numbers = step_numbers(
            *self.chosen()[self.scale.goal], self.device, self.rate, backend=self.scale.backend
        )
        return {**numbers, "goal": GOAL_SHARE, "reached": numbers["share"] >= GOAL_SHARE}

    def camvid(self, limit: float) -> dict[str, Any]:
        """GLAM-Swin on whole images of CamVid, from random weights, for as many steps as fit into 60 % of the limit.

        Loading images may take longer than the steps; a timer then stops the run, and the last score counts.
        """
        data = Path(os.environ.get("CONTEXTSEG_DATA", "")) / "camvid"
        if not os.environ.get("CONTEXTSEG_DATA") or not data.is_dir():
            return {"skipped": "CONTEXTSEG_DATA does not name a folder with camvid/train and camvid/val"}
        from ..training.options import SegmentationArguments
        from ..training.run import train

        steps = max(SCORED, int(0.6 * limit / self.step_seconds)) if self.device.type == "cuda" else SCORED
        options = {"train": f"{data}/train", "val": f"{data}/val", "precision": "bf16", "steps": steps}
        with tempfile.TemporaryDirectory() as folder:
            run = {"output": folder, "eval_interval": steps // SCORED, "clip_norm": 1.0, "tracker": "none"}
            timer = threading.Timer(0.95 * limit, partial(os.kill, os.getpid(), signal.SIGTERM))
            timer.start()
            try:
                train(SegmentationArguments(**options, **run, **self.scale.camvid))
            finally:
                timer.cancel()
            record = json.loads((Path(folder) / "run.json").read_text(encoding="utf-8"))
        return {name: record[name] for name in ("status", "steps_done", "seconds", "scores")}


if __name__ == "__main__":
    sys.exit(main())
