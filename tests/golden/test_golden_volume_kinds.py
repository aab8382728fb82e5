"""No golden case of volumes is left out: each kind is claimed by exactly one test, whatever its cases are called."""

import re
from pathlib import Path

import pytest
from golden_cases import golden_cases

TESTS = Path(__file__).parents[1]
CLAIM = re.compile(r'\bcases_of_kind\(\s*"(\w+)",\s*"([^"]+)"')
CLAIMS = [claim for path in sorted(TESTS.glob("*/test_*.py")) for claim in CLAIM.findall(path.read_text())]


@pytest.mark.parametrize("system", ["nnformer", "glam3d"])
def test_every_kind_is_claimed_by_one_test(system):
    claims = [pattern for claimed, pattern in CLAIMS if claimed == system]
    assert len(claims) >= 4
    for case in (parameter.values[0] for parameter in golden_cases(system)):
        found = [pattern for pattern in claims if case is not None and re.fullmatch(pattern, case.kind)]
        assert case is None or len(found) == 1, (case.kind, found)
