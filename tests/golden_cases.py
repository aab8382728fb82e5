"""Golden cases: tensors of the authors' own code, one folder per case, listed at collection time.

The folder is `$CONTEXTSEG_GOLDEN`, by default `shared/golden` beside the repository. `case.json` alone says how a
case is built; the tests know no case by name.
"""

import json
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parents[1]
GOLDEN = Path(os.environ.get("CONTEXTSEG_GOLDEN", REPOSITORY.parent / "shared" / "golden"))


def golden_file(name: str) -> Path:
    """A file of the golden folder; the test is skipped without it."""
    path = GOLDEN / name
    if not path.exists():
        pytest.skip(f"no {path}; set CONTEXTSEG_GOLDEN to the folder of golden data")
    return path


@dataclass(frozen=True)
class GoldenCase:
    """One folder of golden data, read when a test asks for it."""

    folder: Path

    @cached_property
    def description(self) -> dict[str, Any]:
        return json.loads((self.folder / "case.json").read_text())

    @property
    def kind(self) -> str:
        return self.description["kind"]

    @property
    def arguments(self) -> dict[str, Any]:
        return self.description["constructor_arguments"]

    def meaning(self, name: str) -> str:
        """What a stored tensor is."""
        return self.description["tensors"][name]["meaning"]

    @property
    def tolerance(self) -> float:
        suggested = self.description.get("suggested_tolerance", self.description.get("tolerance"))
        values = suggested if isinstance(suggested, dict) else {}
        return values.get("atol", values.get("max_abs", 1e-4))

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        return load_file(self.folder / "weights.safetensors")

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return load_file(self.folder / "io.safetensors")

    def starting(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names start with `prefix`, named without it."""
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}

    def check(self, name: str, ours: Tensor, last_rows_only: bool = False) -> None:
        """Fails unless our tensor is the stored one, or the last rows of its matrices."""
        expected = self.tensors[name]
        if last_rows_only:
            expected = expected[..., -ours.shape[-2] :, :]
        ours = ours.detach().reshape(expected.shape)
        torch.testing.assert_close(
            ours, expected, rtol=0, atol=self.tolerance, msg=lambda text: f"{name}: {text}"
        )


def golden_cases(system: str, storing: str = "") -> list:
    """Test parameters: each case of a system, or one skipped parameter where there is no golden data.

    storing: only cases with tensors whose names start so.
    """
    folders = sorted(path.parent for path in (GOLDEN / system).glob("*/case.json"))
    if not folders:
        reason = f"no golden cases in {GOLDEN / system}; set CONTEXTSEG_GOLDEN to the folder of golden data"
        return [pytest.param(None, id="none", marks=pytest.mark.skip(reason=reason))]
    cases = [GoldenCase(folder) for folder in folders]
    chosen = [case for case in cases if any(name.startswith(storing) for name in case.description["tensors"])]
    return [pytest.param(case, id=case.folder.name) for case in chosen]


def cases_of_kind(system: str, pattern: str) -> list:
    """Test parameters: the cases of a system whose kind this expression matches, whatever they are called."""
    return [
        parameter
        for parameter in golden_cases(system)
        if parameter.values[0] is None or re.fullmatch(pattern, parameter.values[0].kind)
    ]
