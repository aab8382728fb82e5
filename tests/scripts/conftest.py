"""What the tests of several scripts share."""

import pytest
from tiny_runs import write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))
