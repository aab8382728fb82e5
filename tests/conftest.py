"""Runs before any test is collected, and before torch and huggingface_hub are imported: both read their settings then."""

import contextlib
import os
import random
import signal
import socket
import sys
import tempfile
from pathlib import Path

import pytest

# Settings of the machine change nothing: only those of these tests count, and no cache is read or written.
OURS = {"CONTEXTSEG_DATA", "CONTEXTSEG_GOLDEN", "CONTEXTSEG_PICTURES", "CONTEXTSEG_TEST_DEVICE"}
FOREIGN = ("HF_", "HUGGINGFACE_", "HUGGING_FACE_", "TRANSFORMERS_", "ACCELERATE_", "CONTEXTSEG_")
for name in [name for name in os.environ if name.startswith(FOREIGN) and name not in OURS]:
    del os.environ[name]
CACHE = tempfile.TemporaryDirectory(prefix="contextseg-tests-")
os.environ["HF_HOME"] = CACHE.name
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"  # nobody listens: no test reaches the Hub by accident
os.environ["OMP_NUM_THREADS"] = "1"  # one thread in each of xdist's workers, and in what the tests start

SIGNALS, SIGNAL_WRITER = socket.socketpair()
SIGNALS.setblocking(False)
SIGNAL_WRITER.setblocking(False)


def pytest_configure():
    """Python notes here every signal that it handles, whoever handles it."""
    signal.set_wakeup_fd(SIGNAL_WRITER.fileno(), warn_on_full_buffer=False)


def received_signals() -> bytes:
    with contextlib.suppress(BlockingIOError):
        return SIGNALS.recv(1 << 16)
    return b""


def pytest_runtest_logfinish():
    """A training takes SIGTERM as the request to save and stop; whoever sends it to pytest means all of the tests."""
    if signal.SIGTERM in received_signals():
        pytest.exit("SIGTERM", returncode=128 + signal.SIGTERM)


@pytest.fixture
def own_sigterm():
    """For a test that sends SIGTERM to its own process."""
    yield
    received_signals()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Random numbers do not depend on the tests that ran before, which xdist chooses."""
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def pytest_collection_modifyitems():
    # pytest imports the `__init__.py` of the repository's root as a package named after the folder. As a second copy of
    # contextseg it would register its own classes with transformers' Auto classes; so that name is given to the first
    # one. Here rather than above: xdist's first process runs no test and need not import anything.
    import contextseg

    for name in (
        Path(contextseg.__file__).parent.name,
        "__init__",
    ):  # the latter if the folder's name is no identifier
        sys.modules.setdefault(name, contextseg)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small dataset of images and masks on disk: the folder that holds its splits."""
    from tiny_runs import write_data

    return write_data(tmp_path_factory.mktemp("data"))
