"""Deterministic kernels: the same run on the same machine gives the same weights, on a GPU as well."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .command_line import CommandError

# cuBLAS is deterministic with a workspace of fixed size; it reads the variable when it starts.
CUBLAS_WORKSPACE = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


def use_deterministic_kernels() -> None:
    """Makes PyTorch use deterministic kernels, and raise RuntimeError where it has none.

    Our own modules then resample feature maps by matrix products, see `modeling/upsampling.py`.
    """
    for name, value in CUBLAS_WORKSPACE.items():
        os.environ.setdefault(name, value)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True)


@contextmanager
def explained_missing_kernel() -> Iterator[None]:
    """Context manager that explains PyTorch's error for an operation without a deterministic kernel.

    Raises:
        CommandError: If there is such an operation.
    """
    try:
        yield
    except RuntimeError as error:
        operation, missing, _ = str(error).partition(" does not have a deterministic implementation")
        if not missing:
            raise
        raise CommandError(
            f"the model uses {operation}, of which PyTorch has no deterministic kernel on this device. Leave out "
            "--deterministic, use --cpu, or choose another model or loss."
        ) from error
